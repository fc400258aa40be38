"""The profiler: what this device needs for a layer and for the head of a model, measured here.

A real layer with real weights runs at several token counts in the worker thread. The result is
kept on disk by model, version and thread count: a device is measured once.
"""

from __future__ import annotations

import json
import os
import platform
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from planner.plan import Span
from planner.profile import Curve
from runtime.kv_cache import SessionCache
from runtime.models.block import Block, Run
from runtime.weights import Checkpoint

TOKEN_COUNTS = (1, 16, 64, 256, 512)
REPEATS = 3
BUDGET_S = 0.1  # of repeating, for one token count: a device that joins is waited for
FEW_TOKENS = 16  # up to here a layer is bound by reading its weights; beyond, by arithmetic
FEW_LAYERS = 2  # are enough then, for they need not be too many for the processor's cache
CACHE_BYTES = 128 * 1024 * 1024  # more than the caches of any processor in a home
MEASURE_VERSION = 3  # raise when the compute path changes, so that old figures are not believed


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds on this device: one layer at several token counts, the head for one token."""

    layer: Curve
    head_s: float


def measure(checkpoint: Checkpoint) -> Measured:
    """Runs in the worker thread; takes seconds. Raises BadModelFile for a damaged file.

    Several layers in turn, as in a real step: one alone would stay in the processor's cache and
    look faster than it is.
    """
    layers = checkpoint.profile().layers
    count = max(1, min(len(layers), -(-CACHE_BYTES // max(1, layers[0].weight_bytes))))
    blocks = [checkpoint.load_layer(index) for index in range(count)]
    counts = [tokens for tokens in TOKEN_COUNTS if tokens <= checkpoint.spec.context]
    points = tuple(
        (tokens, _layer_seconds(checkpoint, blocks[: _layers_for(tokens)], tokens))
        for tokens in counts
    )
    return Measured(Curve(points), _head_seconds(checkpoint))


def _layers_for(tokens: int) -> int | None:
    return None if tokens <= FEW_TOKENS else FEW_LAYERS


def stored(checkpoint: Checkpoint, folder: Path, threads: int) -> Measured | None:
    """What was measured before for this model, version and machine. Reads the disk."""
    try:
        record = json.loads(_path(checkpoint, folder, threads).read_text())
        if record["model"] != checkpoint.model_id or record["machine"] != _machine():
            return None
        points = tuple((int(tokens), float(seconds)) for tokens, seconds in record["layer"])
        return Measured(Curve(points), float(record["head_s"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not measured yet, or a torn file: measuring again costs seconds


def store(measured: Measured, checkpoint: Checkpoint, folder: Path, threads: int) -> None:
    """Keeps a measurement. A full disk costs a measurement next time, nothing more."""
    record = {
        "model": checkpoint.model_id,
        "machine": _machine(),
        "layer": measured.layer.points,
        "head_s": measured.head_s,
    }
    path = _path(checkpoint, folder, threads)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}.tmp")
        scratch.write_text(json.dumps(record))
        scratch.replace(path)


@torch.inference_mode()
def _layer_seconds(checkpoint: Checkpoint, blocks: list[Block], tokens: int) -> float:
    """The mean over the blocks; the median over the repeats."""
    hidden = torch.randn(tokens, checkpoint.spec.hidden_size)  # [S, D]
    span = Span(0, len(blocks))
    caches = SessionCache(checkpoint.spec, span, checkpoint.spec.context)
    times: list[float] = []
    while len(times) <= REPEATS:  # the first warms memory up
        if len(times) > 1 and sum(times) * len(blocks) > BUDGET_S:
            break
        caches.truncate(0)  # emptied, not new: touching memory for the first time would be measured
        started_s = time.perf_counter()
        for block, cache in zip(blocks, caches.layers, strict=True):
            block(hidden, (Run(0, tokens, 0, cache),))
        times.append((time.perf_counter() - started_s) / len(blocks))
    return median(times[1:])


@torch.inference_mode()
def _head_seconds(checkpoint: Checkpoint) -> float:
    """A matrix-vector product over part of the vocabulary, scaled: the head is bound by memory."""
    spec = checkpoint.spec
    rows = min(CACHE_BYTES // (4 * spec.hidden_size), spec.vocabulary)
    head = checkpoint.head_rows(rows)
    hidden = torch.randn(1, spec.hidden_size)
    times = []
    for _ in range(REPEATS + 1):
        started_s = time.perf_counter()
        int(torch.argmax(head(hidden)))
        times.append(time.perf_counter() - started_s)
    return median(times[1:]) * spec.vocabulary / rows


def _machine() -> str:
    return f"{platform.machine()} {os.cpu_count()} torch {torch.__version__} v{MEASURE_VERSION}"


def _path(checkpoint: Checkpoint, folder: Path, threads: int) -> Path:
    return folder / f"{checkpoint.model_id[:16]}-{checkpoint.precision}-{threads}.json"

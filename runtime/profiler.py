"""The profiler: what this device needs for a layer and for the head of a model, measured here.

A real layer with real weights runs at several token counts in the worker thread. The result is
kept on disk by model, version and thread count: a device is measured once.
"""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from mesh.ids import ModelId
from planner.plan import Span
from planner.profile import Curve
from runtime.kv_cache import SessionCache
from runtime.weights import Checkpoint

TOKEN_COUNTS = (1, 16, 64, 256, 512)
REPEATS = 3
HEAD_SAMPLE_ROWS = 16_384  # far more bytes than any cache, far fewer than a head
MEASURE_VERSION = 1  # raise when the compute path changes, so that old figures are not believed


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds on this device: one layer at several token counts, the head for one token."""

    layer: Curve
    head_s: float


def measure(checkpoint: Checkpoint) -> Measured:
    """Runs in the worker thread; takes seconds. Raises BadModelFile for a damaged file."""
    layers = range(len(checkpoint.profile().layers))
    # The first and the last layer stand for all: in the families we have, layers differ only in
    # their window, and profiles are rescaled by what steps really took.
    curves = [_layer_seconds(checkpoint, index) for index in {layers[0], layers[-1]}]
    points = tuple(
        (count, sum(curve[count] for curve in curves) / len(curves)) for count in TOKEN_COUNTS
    )
    return Measured(Curve(points), _head_seconds(checkpoint))


def load_or_measure(checkpoint: Checkpoint, folder: Path, threads: int) -> Measured:
    """The stored measurement for this model, version and machine, else a fresh one."""
    path = folder / f"{checkpoint.model_id[:16]}-{threads}.json"
    stored = _load(path, checkpoint.model_id)
    if stored is None:
        stored = measure(checkpoint)
        _store(path, checkpoint.model_id, stored)
    return stored


@torch.inference_mode()
def _layer_seconds(checkpoint: Checkpoint, index: int) -> dict[int, float]:
    block = checkpoint.load_layer(index)
    spec = checkpoint.spec
    seconds: dict[int, float] = {}
    for count in TOKEN_COUNTS:
        if count > spec.context:
            continue
        hidden = torch.randn(count, spec.hidden_size)  # [S, D]
        times = []
        for _ in range(REPEATS + 1):  # the first warms caches and pages up
            cache = SessionCache(spec, Span(index, index + 1), spec.context).layers[0]
            started_s = time.perf_counter()
            block.forward(hidden, 0, cache)
            times.append(time.perf_counter() - started_s)
        seconds[count] = median(times[1:])
    largest = max(seconds)
    for count in TOKEN_COUNTS:
        seconds.setdefault(count, seconds[largest] * count / largest)
    return seconds


@torch.inference_mode()
def _head_seconds(checkpoint: Checkpoint) -> float:
    """A matrix-vector product over part of the vocabulary, scaled: the head is bound by memory."""
    spec = checkpoint.spec
    rows = min(HEAD_SAMPLE_ROWS, spec.vocabulary)
    weight = torch.randn(rows, spec.hidden_size)
    hidden = torch.randn(1, spec.hidden_size)
    times = []
    for _ in range(REPEATS + 1):
        started_s = time.perf_counter()
        int(torch.argmax(hidden @ weight.T))
        times.append(time.perf_counter() - started_s)
    return median(times[1:]) * spec.vocabulary / rows


def _machine() -> str:
    return f"{platform.machine()} {os.cpu_count()} torch {torch.__version__} v{MEASURE_VERSION}"


def _load(path: Path, model: ModelId) -> Measured | None:
    try:
        stored = json.loads(path.read_text())
        if stored["model"] != model or stored["machine"] != _machine():
            return None
        points = tuple((int(count), float(seconds)) for count, seconds in stored["layer"])
        return Measured(Curve(points), float(stored["head_s"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not measured yet, or a torn file: measuring again costs seconds


def _store(path: Path, model: ModelId, measured: Measured) -> None:
    record = {
        "model": model,
        "machine": _machine(),
        "layer": measured.layer.points,
        "head_s": measured.head_s,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}.tmp")
        scratch.write_text(json.dumps(record))
        scratch.replace(path)
    except OSError:
        return  # a full disk costs a measurement next time, nothing more

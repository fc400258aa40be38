"""The profiler: what this device needs for a layer and for the head of a model, measured here.

Real layers with real weights run at several token counts in the worker thread. The result is
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

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from planner.plan import Span
from planner.profile import Curve
from runtime.checkpoints import Model
from runtime.compute import kernels
from runtime.kv_cache import SessionCache
from runtime.models.block import Run
from runtime.weights import Checkpoint

TOKEN_COUNTS = (512, 256, 64, 16, 1)  # the largest first: it makes room for the others
REPEATS, HEAD_REPEATS = 3, 5
BUDGET_S = 0.06  # of repeating, for one token count: a device that joins is waited for
FEW_TOKENS = 16  # up to here a layer is bound by reading its weights; beyond, by arithmetic
FEW_LAYERS = 4  # are measured then, spread over the model: files pack some tighter than others
CACHE_BYTES = 64 * 1024 * 1024  # more than the caches of nearly all processors in a home
HEAD_BYTES = 64 * 1024 * 1024  # in fp32, of the head's rows that stand for all of them
MEASURE_VERSION = 4  # raise when the compute path changes, so that old figures are not believed


Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds on this device: one layer at several token counts, the head for one token."""

    layer: Curve
    head_s: float


def warm_up() -> None:
    """What the first measuring on a device has to wait for, whatever the model; in the worker
    thread. It may go on while the model is still fetched.
    """
    import runtime.loading  # noqa: F401 - with all that a layer is made of

    kernels.reads_blocks()  # brings the compiler


def measure(checkpoint: Checkpoint) -> Measured:
    """Runs in the worker thread, for about a second. Raises BadModelFile for a damaged file."""
    sweep = np.ones(CACHE_BYTES // 8)
    count = len(checkpoint.spec.layers)
    wanted = min(count, FEW_LAYERS)
    layers = [_Layer(checkpoint, index * count // wanted) for index in range(wanted)]
    counts = [tokens for tokens in TOKEN_COUNTS if tokens <= checkpoint.spec.context]
    points = [(n, _layer_seconds(layers, checkpoint.spec.hidden_size, n, sweep)) for n in counts]
    return Measured(Curve(tuple(sorted(points))), _head_seconds(checkpoint, sweep))


class _Layer:
    """One of the model's layers, with a cache for one session."""

    def __init__(self, checkpoint: Checkpoint, index: int) -> None:
        self._block = checkpoint.load_layer(index)
        span = Span(index, index + 1)
        self._caches = SessionCache(checkpoint.spec, span, checkpoint.spec.context)

    def seconds(self, hidden: Tensor) -> float:
        """For a step [S, D] into the empty cache, which keeps its memory: touching that for the
        first time would be measured else.
        """
        self._caches.truncate(0)
        started_s = time.perf_counter()
        self._block(hidden, (Run(0, len(hidden), 0, self._caches.layers[0]),))
        return time.perf_counter() - started_s


def stored(checkpoint: Model, folder: Path, threads: int) -> Measured | None:
    """What was measured before for this model, version and machine. Reads the disk."""
    try:
        record = json.loads(_path(checkpoint, folder, threads).read_text())
        if record["model"] != checkpoint.model_id or record["machine"] != _machine():
            return None
        points = tuple((int(tokens), float(seconds)) for tokens, seconds in record["layer"])
        return Measured(Curve(points), float(record["head_s"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not measured yet, or a torn file: measuring again costs seconds


def store(measured: Measured, checkpoint: Model, folder: Path, threads: int) -> None:
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
def _layer_seconds(layers: list[_Layer], width: int, tokens: int, sweep: Floats) -> float:
    """The mean over the layers, or of the first alone; the median over the repeats.

    In a real step each layer's weights come from memory, for all the others were read since. So
    other memory goes through the processor's caches first, where reading weights is what counts.
    """
    hidden = torch.randn(tokens, width)  # [S, D]
    is_few = tokens <= FEW_TOKENS
    chosen = layers if is_few else layers[:1]
    for layer in chosen:
        layer.seconds(hidden)  # warms the memory up, and compiles
    times: list[float] = []
    while len(times) < REPEATS and sum(times) * len(chosen) < BUDGET_S:
        if is_few:
            sweep.sum()
        times.append(sum(layer.seconds(hidden) for layer in chosen) / len(chosen))
    return median(times)


@torch.inference_mode()
def _head_seconds(checkpoint: Checkpoint, sweep: Floats) -> float:
    """A matrix-vector product over part of the vocabulary, scaled: the head is bound by memory."""
    spec = checkpoint.spec
    rows = min(HEAD_BYTES // (4 * spec.hidden_size), spec.vocabulary)
    head, few = checkpoint.head_rows(rows), checkpoint.head_rows(1)
    hidden = torch.randn(1, spec.hidden_size)
    head(hidden)
    times = []
    for _ in range(HEAD_REPEATS):
        sweep.sum()
        int(torch.argmax(few(hidden)))  # the code is used all the time; only the weights are not
        started_s = time.perf_counter()
        int(torch.argmax(head(hidden)))
        times.append(time.perf_counter() - started_s)
    return median(times) * spec.vocabulary / rows


def _machine() -> str:
    return f"{platform.machine()} {os.cpu_count()} torch {torch.__version__} v{MEASURE_VERSION}"


def _path(checkpoint: Model, folder: Path, threads: int) -> Path:
    return folder / f"{checkpoint.model_id[:16]}-{checkpoint.precision}-{threads}.json"

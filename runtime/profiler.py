"""The profiler: what this device needs for a layer and for the head of a model, measured here.

Real layers with real weights run at several token counts in the worker thread, part by part, and a
small share of one. The result is kept on disk (`runtime.measured`): a device is measured once.
"""

from __future__ import annotations

import time
from statistics import median

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from planner.plan import Span
from planner.profile import Curve
from runtime.compute import kernels
from runtime.compute.torch_device import CPU, synchronize
from runtime.cores import cores
from runtime.cut import WHOLE, Cut, decoder_share
from runtime.kv_cache import SessionCache
from runtime.measured import Measured
from runtime.models.block import Run
from runtime.part_timing import (
    FEW_TOKENS,
    Clock,
    PartSeconds,
    Spent,
    by_clock,
    is_alone,
    mean,
    middle,
    part_curves,
    quick_for_small,
    small_cut,
    time_parts,
)
from runtime.weights import Checkpoint

TOKEN_COUNTS = (512, 256, 64, 16, 1)  # the largest first: it makes room for the others
REPEATS, HEAD_REPEATS = 3, 5
BUDGET_S = 0.06  # of repeating, for one token count: a device that joins is waited for
FEW_LAYERS = 4  # are measured then, spread over the model: files pack some tighter than others
CACHE_BYTES = 64 * 1024 * 1024  # more than the caches of nearly all processors in a home
HEAD_BYTES = 64 * 1024 * 1024  # in fp32, of the head's rows that stand for all of them
LEAST_CORE = 0.5  # that computing must leave free for the network to have one of its own

Floats = npt.NDArray[np.float64]


def warm_up() -> None:
    """What the first measuring on a device has to wait for, whatever the model; in the worker
    thread. It may go on while the model is still fetched.
    """
    import runtime.loading  # noqa: F401 - with all that a layer is made of

    kernels.reads_blocks()  # brings the compiler


def measure(checkpoint: Checkpoint, device: torch.device = CPU) -> Measured:
    """Runs in the worker thread, for about a second, with the weights on `device`. Raises
    BadModelFile for a damaged file.
    """
    spec = checkpoint.spec
    sweep = np.ones(CACHE_BYTES // 8)
    count = len(spec.layers)
    wanted = min(count, FEW_LAYERS)
    layers = [_Layer(checkpoint, index * count // wanted, device) for index in range(wanted)]
    counts = [tokens for tokens in TOKEN_COUNTS if tokens <= spec.context]
    spent = Spent()
    whole = {tokens: _seconds(layers, spec.hidden_size, tokens, sweep, spent) for tokens in counts}
    cut, small = small_cut(spec.heads, spec.ffn_size), {}
    if cut is not None:
        share = [_Layer(checkpoint, 0, device, cut)]
        quick = quick_for_small(whole)
        small = {rows: _seconds(share, spec.hidden_size, rows, sweep, spent) for rows in quick}
    while not spent.is_known:
        _seconds(layers, spec.hidden_size, counts[0], sweep, spent)
    slowdown, own_core = share_of_cores(device, spent)
    whole, small = (by_clock(one, spent) for one in (whole, small))
    total_s = {tokens: one.wall for tokens, one in whole.items()}
    if device != CPU:  # between its parts nobody waits there, unless the layer is shared
        total_s = {tokens: _unparted_s(layers, spec.hidden_size, tokens) for tokens in counts}
    parts = None
    if cut is not None:
        parts = part_curves(spec.heads, spec.ffn_size, cut, whole, small, device, slowdown)
    layer = Curve(tuple(sorted(total_s.items())))
    head_s = spent.stretch * _head_seconds(checkpoint, device, sweep)
    return Measured(layer, head_s, parts, slowdown, own_core)


def share_of_cores(device: torch.device, spent: Spent) -> tuple[float, bool]:
    """Seconds that a second of processor time takes while all threads compute, and whether they
    leave a core to others.
    """
    threads = torch.get_num_threads() if device == CPU else 1
    found = cores(threads + 1)
    has_own = found >= threads + LEAST_CORE or device != CPU
    # One thread's own passes took longer than that look at the processor.
    is_told = is_alone(device) and spent.is_told
    slowdown = spent.stretch if is_told else threads / max(found, 0.01)
    return max(1.0, slowdown), has_own


class _Layer:
    """One of the model's layers, or a share of it, with a cache for one session."""

    def __init__(
        self, checkpoint: Checkpoint, index: int, device: torch.device, cut: Cut = WHOLE
    ) -> None:
        self._block = checkpoint.load_layer(index, device, cut)
        self._device = device
        spec, span = decoder_share(checkpoint.spec, cut), Span(index, index + 1)
        self._caches = SessionCache(spec, span, spec.context, device)

    def seconds(self, hidden: Tensor) -> PartSeconds:
        """For a step [S, D] into the empty cache, which keeps its memory: touching that for the
        first time would be measured else.
        """
        hidden, at = self._ready(hidden)
        return time_parts(self._block, hidden, at, self._device)

    def unparted_s(self, hidden: Tensor) -> float:
        """The same in one go."""
        hidden, at = self._ready(hidden)
        synchronize(self._device)
        started_s = time.perf_counter()
        self._block(hidden, at)
        synchronize(self._device)
        return time.perf_counter() - started_s

    def _ready(self, hidden: Tensor) -> tuple[Tensor, tuple[Run, ...]]:
        self._caches.truncate(0)
        return hidden.to(self._device), (Run(0, len(hidden), 0, self._caches.layers[0]),)


@torch.inference_mode()
def _seconds(
    layers: list[_Layer], width: int, tokens: int, sweep: Floats, spent: Spent
) -> PartSeconds:
    """The mean over the layers, or of the first alone; the median over the repeats, or, of many
    rows, the least: the first passes of a process wait for new memory, later ones do not.

    In a real step each layer's weights come from memory, for all the others were read since. So
    other memory goes through the processor's caches first, where reading weights is what counts.
    """
    hidden = torch.randn(tokens, width)  # [S, D]
    is_few = tokens <= FEW_TOKENS
    chosen = layers if is_few else layers[:1]
    for layer in chosen:
        layer.seconds(hidden)  # warms the memory up, and compiles
    times: list[PartSeconds] = []
    while len(times) < 2 or (
        len(times) < REPEATS and sum(one.total for one in times) * len(chosen) < BUDGET_S
    ):
        if is_few:
            sweep.sum()
        times.append(mean([spent.note(layer.seconds(hidden)) for layer in chosen]))
    return middle(times) if is_few else min(times, key=lambda one: one.total)


@torch.inference_mode()
def _unparted_s(layers: list[_Layer], width: int, tokens: int) -> float:
    """The mean over the layers; the median over the repeats."""
    hidden = torch.randn(tokens, width)  # [S, D]
    return median(
        sum(layer.unparted_s(hidden) for layer in layers) / len(layers) for _ in range(REPEATS)
    )


@torch.inference_mode()
def _head_seconds(checkpoint: Checkpoint, device: torch.device, sweep: Floats) -> float:
    """A matrix-vector product over part of the vocabulary, scaled: the head is bound by memory. As
    `Clock` counts.
    """
    spec = checkpoint.spec
    rows = min(HEAD_BYTES // (4 * spec.hidden_size), spec.vocabulary)
    head, few = checkpoint.head_rows(rows, device), checkpoint.head_rows(1, device)
    hidden = torch.randn(1, spec.hidden_size, device=device)
    head(hidden)
    clock, times = Clock(device), []
    for _ in range(HEAD_REPEATS):
        sweep.sum()
        int(torch.argmax(few(hidden)))  # the code is used all the time; only the weights are not
        clock.lap()
        int(torch.argmax(head(hidden)))
        times.append(clock.lap())
    return median(times) * spec.vocabulary / rows

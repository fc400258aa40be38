"""How fast this device is with an encoder, and with the decoder behind it.

The planner knows one curve for all layers of a model. So what it gets is the mean over both stacks
of what a request takes: at n tokens, a source of n rows through the encoder and one token of the
decoder; at a single token, one token of the decoder, which is all that a step of an answer is. The
sum over the layers of a plan is right, wherever it is cut.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import cycle
from statistics import median
from typing import Final

import torch
from torch import Tensor

from planner.profile import Curve
from runtime.compute.torch_device import CPU, synchronize
from runtime.measured import Measured
from runtime.models.decoder_block import DecoderCache, DecoderLayer, Target
from runtime.models.encoder_block import EncoderLayer
from runtime.part_timing import (
    PartSeconds,
    Spent,
    by_clock,
    middle,
    part_curves,
    quick_for_small,
    small_cut,
    time_parts,
)
from runtime.profiler import BUDGET_S, REPEATS, TOKEN_COUNTS, share_of_cores
from runtime.seq2seq.section import Layer
from runtime.seq2seq.weights import Seq2SeqCheckpoint

LAYERS: Final = 3  # of each stack in turn: one alone would stay in the processor's cache
SOURCE_ROWS: Final = 256  # that a decoder's token looks at


def measure_stacks(checkpoint: Seq2SeqCheckpoint, device: torch.device = CPU) -> Measured:
    """Runs in the worker thread; takes seconds. Raises BadModelFile for a damaged file."""
    spec = checkpoint.spec
    depth, total = spec.encoder.layers, spec.layers
    encoders = _first(checkpoint, 0, depth, device)
    decoders = _first(checkpoint, depth, total, device)
    counts = sorted(count for count in TOKEN_COUNTS if count <= spec.source.context)
    spent = Spent()
    if not decoders:
        return _measure_parts(checkpoint, encoders, counts, device, spent)
    slowdown, own_core = share_of_cores(device, spent)
    points = []
    for count in counts:
        reads = count > 1
        read_s = _encode_s(checkpoint, encoders, count, device) * depth if reads else 0.0
        answer_s = _decode_s(checkpoint, decoders, count, device, reads=reads)
        points.append((count, (read_s + answer_s * (total - depth)) / total))
    head_s = _head_s(checkpoint, device)
    return Measured(Curve(tuple(points)), head_s, None, slowdown, own_core)


def _measure_parts(
    checkpoint: Seq2SeqCheckpoint,
    layers: list[Layer],
    counts: list[int],
    device: torch.device,
    spent: Spent,
) -> Measured:
    """An encoder's layer, which several devices may share."""
    stack, width = checkpoint.spec.encoder, checkpoint.spec.hidden_size
    descending = counts[::-1]  # the most rows first: they make room for the others
    whole = _parts_s(layers, width, descending, device, spent)
    cut, small = small_cut(stack.heads, stack.ffn_size), {}
    if cut is not None:
        share = checkpoint.load_layer(0, device, cut).layer
        small = _parts_s([share], width, quick_for_small(whole), device, spent)
    while not spent.is_known:
        _parts_s(layers, width, descending[:1], device, spent)
    slowdown, own_core = share_of_cores(device, spent)
    whole, small = (by_clock(one, spent) for one in (whole, small))
    parts = None
    if cut is not None:
        parts = part_curves(stack.heads, stack.ffn_size, cut, whole, small, device, slowdown)
    layer = Curve(tuple((rows, whole[rows].wall) for rows in counts))
    return Measured(layer, _head_s(checkpoint, device), parts, slowdown, own_core)


@torch.inference_mode()
def _parts_s(
    layers: list[Layer], width: int, counts: list[int], device: torch.device, spent: Spent
) -> dict[int, PartSeconds]:
    """One layer of an encoder, with sources of so many rows; the median of a few passes. The layers
    take turns, so that the weights of each come from memory.
    """
    turns = cycle(layers)

    def run(rows: int) -> PartSeconds:
        hidden = torch.randn(rows, width, device=device)  # [S, hidden]
        return time_parts(next(turns), hidden, None, device)

    for _ in layers:
        run(1)  # their weights are there then
    run(counts[0])  # and memory for all that a pass makes
    times: dict[int, list[PartSeconds]] = {rows: [] for rows in counts}
    for _ in range(REPEATS):  # in rounds: what disturbs one is over in the next
        for rows, known in times.items():
            if len(known) < 2 or sum(one.total for one in known) < BUDGET_S:
                known.append(spent.note(run(rows)))
    return {rows: middle(known) for rows, known in times.items()}


def _first(
    checkpoint: Seq2SeqCheckpoint, first: int, last: int, device: torch.device
) -> list[Layer]:
    indexes = range(first, min(last, first + LAYERS))
    return [checkpoint.load_layer(index, device).layer for index in indexes]


def _encode_s(
    checkpoint: Seq2SeqCheckpoint, layers: list[Layer], rows: int, device: torch.device
) -> float:
    """One layer with a source of so many rows."""
    hidden = torch.randn(rows, checkpoint.spec.hidden_size, device=device)  # [S, hidden]

    def run() -> None:
        for layer in layers:
            assert isinstance(layer, EncoderLayer), "the encoder's layers come first"
            layer.forward(hidden)

    return _seconds(run, device) / len(layers)


def _decode_s(
    checkpoint: Seq2SeqCheckpoint,
    layers: list[Layer],
    rows: int,
    device: torch.device,
    *,
    reads: bool,
) -> float:
    """One layer with one token; before it, if it `reads`, it takes in a source of so many rows."""
    spec = checkpoint.spec
    assert spec.decoder is not None, "only a model with a decoder is measured so"
    cache = DecoderCache(spec.decoder, spec.context, device)
    heard = rows if reads else SOURCE_ROWS
    source = torch.randn(heard, spec.hidden_size, device=device)  # [T, hidden]
    token = torch.randn(1, spec.hidden_size, device=device)
    kept: list[tuple[Tensor, Tensor]] = []

    def run() -> None:
        for number, layer in enumerate(layers):
            assert isinstance(layer, DecoderLayer), "the decoder's layers come last"
            if reads or len(kept) <= number:
                layer.remember(source, cache)
                kept.append(cache.source)
            else:
                cache.source = kept[number]
            layer.forward(token, Target(0, cache))

    return _seconds(run, device) / len(layers)


def _head_s(checkpoint: Seq2SeqCheckpoint, device: torch.device) -> float:
    hidden = torch.randn(1, checkpoint.spec.hidden_size, device=device)
    ending = checkpoint.load_head(device)

    def run() -> None:
        if ending.exit is None:
            ending.vector(hidden)
        else:
            ending.exit.forward(hidden)

    return _seconds(run, device)


@torch.inference_mode()
def _seconds(run: Callable[[], None], device: torch.device) -> float:
    """The median of a few, after one that warms memory up."""
    times: list[float] = []
    while len(times) <= REPEATS:
        if len(times) > 1 and sum(times) > BUDGET_S:
            break
        synchronize(device)
        started_s = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - started_s)
    return median(times[1:])

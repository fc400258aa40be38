"""How fast this device is with an encoder, and with the decoder behind it.

The planner knows one curve for all layers of a model. So what it gets is the mean over both stacks
of what a request takes: at n tokens, a source of n rows through the encoder and one token of the
decoder; at a single token, one token of the decoder, which is all that a step of an answer is. The
sum over the layers of a plan is right, wherever it is cut.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Final

import torch
from torch import Tensor

from planner.profile import Curve
from runtime.models.decoder_block import DecoderCache, DecoderLayer
from runtime.models.encoder_block import EncoderLayer
from runtime.profiler import BUDGET_S, REPEATS, TOKEN_COUNTS, Measured
from runtime.seq2seq.section import Layer
from runtime.seq2seq.weights import Seq2SeqCheckpoint

LAYERS: Final = 3  # of each stack in turn: one alone would stay in the processor's cache
SOURCE_ROWS: Final = 256  # that a decoder's token looks at


def measure_stacks(checkpoint: Seq2SeqCheckpoint) -> Measured:
    """Runs in the worker thread; takes seconds. Raises BadModelFile for a damaged file."""
    spec = checkpoint.spec
    depth, total = spec.encoder.layers, spec.layers
    encoders = _first(checkpoint, 0, depth)
    decoders = _first(checkpoint, depth, total)
    counts = sorted(count for count in TOKEN_COUNTS if count <= spec.source.context)
    points = []
    for count in counts:
        reads = count > 1 or not decoders
        read_s = _encode_s(checkpoint, encoders, count) * depth if reads else 0.0
        if decoders:
            read_s += _decode_s(checkpoint, decoders, count, reads=reads) * (total - depth)
        points.append((count, read_s / total))
    return Measured(Curve(tuple(points)), _head_s(checkpoint))


def _first(checkpoint: Seq2SeqCheckpoint, first: int, last: int) -> list[Layer]:
    indexes = range(first, min(last, first + LAYERS))
    return [checkpoint.load_layer(index).layer for index in indexes]


def _encode_s(checkpoint: Seq2SeqCheckpoint, layers: list[Layer], rows: int) -> float:
    """One layer with a source of so many rows."""
    hidden = torch.randn(rows, checkpoint.spec.hidden_size)  # [S, hidden]

    def run() -> None:
        for layer in layers:
            assert isinstance(layer, EncoderLayer), "the encoder's layers come first"
            layer.forward(hidden)

    return _seconds(run) / len(layers)


def _decode_s(
    checkpoint: Seq2SeqCheckpoint, layers: list[Layer], rows: int, *, reads: bool
) -> float:
    """One layer with one token; before it, if it `reads`, it takes in a source of so many rows."""
    spec = checkpoint.spec
    assert spec.decoder is not None, "only a model with a decoder is measured so"
    cache = DecoderCache(spec.decoder, spec.context)
    source = torch.randn(rows if reads else SOURCE_ROWS, spec.hidden_size)  # [T, hidden]
    token = torch.randn(1, spec.hidden_size)
    kept: list[tuple[Tensor, Tensor]] = []

    def run() -> None:
        for number, layer in enumerate(layers):
            assert isinstance(layer, DecoderLayer), "the decoder's layers come last"
            if reads or len(kept) <= number:
                layer.remember(source, cache)
                kept.append(cache.source)
            else:
                cache.source = kept[number]
            layer.forward(token, 0, cache)

    return _seconds(run) / len(layers)


def _head_s(checkpoint: Seq2SeqCheckpoint) -> float:
    hidden = torch.randn(1, checkpoint.spec.hidden_size)
    ending = checkpoint.load_head()

    def run() -> None:
        if ending.exit is None:
            ending.vector(hidden)
        else:
            ending.exit.forward(hidden)

    return _seconds(run)


@torch.inference_mode()
def _seconds(run: Callable[[], None]) -> float:
    """The median of a few, after one that warms memory up."""
    times: list[float] = []
    while len(times) <= REPEATS:
        if len(times) > 1 and sum(times) > BUDGET_S:
            break
        started_s = time.perf_counter()
        run()
        times.append(time.perf_counter() - started_s)
    return median(times[1:])

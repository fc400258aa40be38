"""What bounds every strategy: the same walk with an exchange that costs nothing, and the same
exchange with layers that do nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from runtime.models.encoder_block import EncoderLayer
from runtime.seq2seq.section import Section
from runtime.walks.exchange import Key


class NoWire:
    """An exchange (`runtime.walks.exchange`) that loses what is sent, and gives zeros at once."""

    def __init__(self, me: int, count: int) -> None:
        self.me, self.count = me, count

    def start_pass(self) -> None:
        pass

    def send(self, number: int, rows: Mapping[int, Tensor], *, exact: bool = False) -> None:
        pass

    def take(self, origin: int, number: int, shape: tuple[int, int]) -> Tensor:
        return _zeros(shape)

    def wait(self, wanted: Sequence[Sequence[Key]]) -> int:
        return 0


class _Nothing(nn.Module):
    """A part of a layer that is not computed: what goes in comes out."""

    def opening(self, x: Tensor) -> Tensor:
        return x

    def inside(self, opened: Tensor, at: Any) -> Tensor:
        return opened

    def project(self, opened: Tensor, at: Any) -> tuple[Tensor, Tensor, Tensor]:
        keys = _zeros((1, len(opened)))[:, :, None]  # [1, S, 1]
        return opened, keys, keys

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, at: Any) -> Tensor:
        return q

    def closing(self, inner: Tensor) -> Tensor:
        return inner


class IdleLayer(EncoderLayer):
    """A layer that computes nothing, for an encoder or a decoder. Rows go on as they came: what all
    devices add up would outgrow fp16 within some layers, and travel as fp32 from then on.
    """

    def __init__(self) -> None:
        nn.Module.__init__(self)  # there is nothing that could be filled
        nothing: Any = _Nothing()  # has no map that could be told as its opening or closing
        self.parts = (nothing, nothing)

    def enter(self, hidden: Tensor) -> Tensor:
        return hidden

    def connect(self, index: int, hidden: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
        return hidden, hidden


def idle(layers: Mapping[int, Any]) -> dict[int, Any]:
    """In place of what `load_layer` returned: the ends of a model stay as they are."""
    return {
        index: Section(IdleLayer(), one.source, one.middle, one.target)
        if isinstance(one, Section)
        else IdleLayer()
        for index, one in layers.items()
    }


@cache
def _zeros(shape: Sequence[int]) -> Tensor:
    """Shared by all who ask: nobody writes to what came."""
    return torch.zeros(*shape)

"""The MLPs of decoders, and the nonlinearities of all families."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.compute import pointwise
from runtime.compute.kinds import Gate
from runtime.compute.linear import Linear
from runtime.models.spec import Activation, DecoderSpec

ACTIVATIONS: Final[Mapping[Activation, Callable[[Tensor], Tensor]]] = {
    Activation.GELU_TANH: partial(F.gelu, approximate="tanh"),
    Activation.GELU: F.gelu,
    Activation.SILU: F.silu,
    Activation.RELU: F.relu,
    Activation.TANH: torch.tanh,
}


# What is compiled for a gate; the others are torch's.
GATES: Final[Mapping[Activation, Gate]] = {
    Activation.GELU_TANH: Gate.GELU_TANH,
    Activation.SILU: Gate.SILU,
}


class MLP(nn.Module):
    """down(activation(up(x)))."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.activate = ACTIVATIONS[spec.activation]
        self.up = Linear(spec.ffn_size, spec.hidden_size, bias=spec.mlp_bias)
        self.down = _down(spec)

    @property
    def opening(self) -> Linear:
        return self.up

    @property
    def closing(self) -> Linear:
        return self.down

    def inside(self, opened: Tensor, at: object) -> Tensor:
        """[S, ffn] -> [S, ffn], wherever the rows stand."""
        return self.activate(opened)


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)), gate and up in one matrix."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.activate = ACTIVATIONS[spec.activation]
        gate = GATES.get(spec.activation)
        self._gate = gate if pointwise.fits(spec.ffn_size) else None
        self.gate_up = Linear(2 * spec.ffn_size, spec.hidden_size, bias=spec.mlp_bias)
        self.down = _down(spec)

    @property
    def opening(self) -> Linear:
        return self.gate_up

    @property
    def closing(self) -> Linear:
        return self.down

    def inside(self, opened: Tensor, at: object) -> Tensor:
        """[S, 2 * ffn] -> [S, ffn], wherever the rows stand."""
        if self._gate is not None:
            return pointwise.gated(opened, self._gate)
        gate, up = opened.chunk(2, dim=-1)
        return self.activate(gate).mul_(up)


def _down(spec: DecoderSpec) -> Linear:
    return Linear(spec.hidden_size, spec.ffn_size, bias=spec.mlp_bias and spec.closing_bias)

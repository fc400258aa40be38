"""What a block does between its products, on torch tensors: compiled where that is possible."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from runtime.compute.compiled import Loop, available, bits, lanes
from runtime.compute.kinds import Gate, Heads
from runtime.compute.torch_device import runs_loops


def fits(width: int) -> bool:
    """Whether rows of so many numbers can be computed here; else torch has to. Asked by modules
    as they are made, of the torch device they are made on.
    """
    return runs_loops(torch.get_default_device()) and available() and width % lanes() == 0


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension, of which `fits` is true."""
    x = x.contiguous()
    out, width = torch.empty_like(x), x.shape[-1]
    places = (x.data_ptr(), weight.data_ptr(), out.data_ptr())
    _norm().run(x.numel() // width, x.numel(), *places, width, bits(eps))
    return out


def residual(
    hidden: Tensor, added: Tensor, post: Tensor | None, then: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """(hidden + post(added), then(that)), all [S, width], of which `fits` is true.

    `post` and `then` are the weights of RMS norms; without `then` the sum comes twice.
    """
    hidden, added = hidden.contiguous(), added.contiguous()
    rows, width = hidden.shape
    sums = torch.empty_like(hidden)
    normed = sums if then is None else torch.empty_like(hidden)
    weights = (0 if each is None else each.data_ptr() for each in (post, then))
    _residual(post is not None, then is not None).run(
        rows,
        2 * hidden.numel(),
        hidden.data_ptr(),
        added.data_ptr(),
        *weights,
        sums.data_ptr(),
        normed.data_ptr(),
        width,
        bits(eps),
    )
    return sums, normed


def gated(x: Tensor, gate: Gate) -> Tensor:
    """gate(x[:, :F]) * x[:, F:] of x [S, 2 F]: [S, F], of which `fits` is true."""
    x = x.contiguous()
    rows, width = x.shape[0], x.shape[1] // 2
    out = torch.empty(rows, width)
    _gate(gate).run(rows, x.numel(), x.data_ptr(), out.data_ptr(), width)
    return out


def by_head(
    qkv: Tensor,
    heads: Heads,
    weights: tuple[Tensor, Tensor] | None,
    angles: tuple[Tensor, Tensor] | None,
    eps: float,
) -> Tensor:
    """[S, (H + 2 K) D] to [H + 2 K, S, D]; queries and keys are normed with the two weights [D],
    and turned by cosines and sines [S, D], contiguous. `fits` is true of D / 2.
    """
    qkv = qkv.contiguous()
    rows, count = qkv.shape[0], heads.queries + 2 * heads.keys
    out = torch.empty(count, rows, heads.dim)
    normed = (0, 0) if weights is None else tuple(each.data_ptr() for each in weights)
    turned = (0, 0) if angles is None else tuple(each.data_ptr() for each in angles)
    places = (qkv.data_ptr(), *normed, *turned, out.data_ptr())
    _heads(heads).run(rows, qkv.numel(), *places, rows, bits(eps))
    return out


@cache
def _norm() -> Loop:
    from runtime.compute.pointwise_code import norm_kernel

    return Loop(lambda module: norm_kernel(module, lanes()))


@cache
def _residual(post: bool, then: bool) -> Loop:
    from runtime.compute.pointwise_code import residual_kernel

    return Loop(lambda module: residual_kernel(module, lanes(), post, then))


@cache
def _gate(gate: Gate) -> Loop:
    from runtime.compute.pointwise_code import gate_kernel

    return Loop(lambda module: gate_kernel(module, lanes(), gate))


@cache
def _heads(heads: Heads) -> Loop:
    from runtime.compute.pointwise_code import heads_kernel

    return Loop(lambda module: heads_kernel(module, lanes(), heads))

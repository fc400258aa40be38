"""A torch device that computes nothing (`meta`), watched: what meets what, what goes to and fro.

An accelerator that a test may not have is like it in this: a tensor of the processor that meets one
of its own is a mistake, and each crossing waits for all that was computed before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")
_MOVES = {torch.ops.aten.to, torch.ops.aten._to_copy}


class OneDevice(TorchDispatchMode):
    """Fails where an operation has tensors of two devices, and counts the crossings."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = self.left = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func.overloadpacket in _MOVES:
            return self._moved(func, args, options)
        out = func(*args, **options)
        seen = _devices((args, options, out))
        assert len(seen) < 2, f"{func} has tensors of {seen}"
        return out

    def _moved(self, func: Any, args: Sequence[Any], options: dict[str, Any]) -> Any:
        source, target = args[0].device, options.get("device")
        if target is None or source == target:
            return func(*args, **options)
        if source != META:
            self.entered += 1
            return func(*args, **options)
        self.left += 1  # there is nothing in it to be copied
        return torch.zeros(args[0].shape, dtype=args[0].dtype, device=target)


def _devices(values: Any) -> set[torch.device]:
    return {one.device for one in tree_leaves(values) if isinstance(one, Tensor)}

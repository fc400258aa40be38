"""Which plans may be made, beside one device and a pipeline of some."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.ids import PeerId
from planner.plan import Split, Wire


@dataclass(frozen=True, slots=True)
class Allowed:
    """What the devices know to do, and what they are free for."""

    strategies: frozenset[Split] = frozenset({Split.WHOLE})  # WHOLE: one device, or a pipeline
    # Numbers of 8 bits are many times further from the truth than those of 16, and in the residual
    # stream of some models too far: they are taken only where somebody measured what it costs.
    wires: frozenset[Wire] = frozenset({Wire.FP32, Wire.FP16})
    chunks: bool = False  # a prompt through a pipeline in pieces, which overlap
    head: bool = False  # the vocabulary's rows over several devices
    grouped: frozenset[PeerId] = frozenset()  # these share a stage of another model already

    @property
    def splits(self) -> tuple[Split, ...]:
        """Of groups, in a fixed order."""
        return tuple(one for one in Split if one in self.strategies and one is not Split.WHOLE)


PIPELINES = Allowed()
EVERYTHING = Allowed(frozenset(Split), chunks=True, head=True)


def wires_to(narrowest: Wire) -> frozenset[Wire]:
    """The types that are no narrower."""
    widest_first = (Wire.FP32, Wire.FP16, Wire.INT8)
    return frozenset(widest_first[: widest_first.index(narrowest) + 1])

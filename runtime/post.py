"""A device's post: its place in a plan in force, and the conversations that go through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from mesh.errors import MeshError, ProtocolError
from mesh.ids import PeerId, SessionId
from mesh.tensor_frame import DType, FrameHeader, Kind
from planner.plan import Plan, Span
from runtime.arrival import Arrival, Tile
from runtime.assembly import Assembly, Expected
from runtime.former import Former, Parted
from runtime.history import History
from runtime.kv_cache import LayerCache
from runtime.logs import Logs
from runtime.refill import Held
from runtime.sampling import Sampling
from runtime.session_messages import OpenSession
from runtime.stage import Slice
from runtime.traffic import Traffic
from runtime.turns import MAX_STEP_ROWS
from runtime.walks.walk import WHOLE, Walk


class Computing(Protocol):
    """A stage of whatever kind of model; see `runtime.stage.Stage`."""

    @property
    def span(self) -> Span: ...

    @property
    def widest(self) -> int:
        """How many numbers a row has at most that devices of this stage send each other."""

    def open(
        self,
        session: SessionId,
        sampling: Sampling,
        context: int,
        *,
        name: SessionId | None = None,
        afresh: bool = False,
        prefix: bytes = b"",
        history: History | None = None,
        places: int = 1,
    ) -> Held:
        """Makes room for a session; what is known here of its conversation, or of `prefix`."""

    def close(self, session: SessionId, prefix: bytes = b"", *, paused: bool = False) -> None:
        """Ends a session; its conversation may only be paused."""

    def follow(self, before: object, logs: Logs) -> None:
        """Comes in force, after another stage of the model on this device or after none."""

    def given(self, session: SessionId, layer: int, first: int, count: int) -> Tensor:
        """Rows that went into a layer before. Raises GenerationFailed."""

    def parting(self, kept: Span | None) -> list[Parted]:
        """Caches of conversations that go on, of the layers that are others' from now on."""

    def adopt(self, former: Former) -> None:
        """Goes on with what was kept here of these layers."""

    def cache_of(self, name: SessionId, layer: int) -> LayerCache | None:
        """A conversation's cache of one layer, for another device."""

    @property
    def cache_bytes(self) -> int:
        """What its caches take by now."""

    @property
    def cache_width(self) -> int:
        """How many numbers a layer keeps of a token; 0 where caches stay where they are."""

    def fill(self, session: SessionId, layer: int, tile: Tile) -> None:
        """Takes what another device had in its cache. Raises GenerationFailed."""

    def held(self, session: SessionId) -> Held:
        """What is here of an open session by now."""

    def limit(self, places: int) -> None:
        """From now on at most so many caches stay in memory."""

    def turn(self, slices: Sequence[Slice], walk: Walk = WHOLE) -> list[Tensor | None]:
        """What comes out of each slice, in the worker's thread."""


@dataclass(slots=True)
class Conversation:
    """One session as a stage sees it."""

    opened: OpenSession
    assembly: Assembly | None = None
    arrival: Arrival | None = None  # of a layer's cache, while one is asked for

    def give_up(self, error: MeshError) -> None:
        """Nothing more will come of a cache that is asked for."""
        if self.arrival is not None:
            self.arrival.fail(error)


@dataclass(frozen=True, slots=True)
class Post:
    """This device's place in the plan in force."""

    plan: Plan
    index: int  # of its stage
    stage: Computing
    traffic: Traffic
    conversations: dict[SessionId, Conversation] = field(default_factory=dict)

    @property
    def is_last(self) -> bool:
        return self.index == len(self.plan.stages) - 1

    def upstream(self, opened: OpenSession, kind: Kind) -> PeerId:
        """Who sends frames of a kind to this stage's lead: the session's owner, or the lead of the
        stage before.
        """
        if kind is Kind.AGAIN:
            return opened.owner
        is_first = self.index == self._first(kind)
        return opened.owner if is_first else self.plan.stages[self.index - 1].lead

    def downstream(self, opened: OpenSession, until: int = 0) -> PeerId:
        """Who gets what this stage computes: the next stage, or the session's owner."""
        return opened.owner if self.ends(until) else self.plan.stages[self.index + 1].lead

    def ends(self, until: int) -> bool:
        """Whether a step that goes through the layers before `until` ends here; 0: through all."""
        return self.is_last or 0 < until <= self.stage.span.last

    def layers(self, until: int) -> Span | None:
        """The layers of this stage that such a step goes through alone; None: all."""
        span = self.stage.span
        if not until:
            return None
        if until <= span.first:
            raise ProtocolError(f"a step that ends before layer {until} does not come here")
        return Span(span.first, min(until, span.last))

    def outgoing(self, header: FrameHeader, outs: Sequence[Tensor]) -> tuple[FrameHeader, Tensor]:
        """As what the outcome of a step leaves here: as one tile, which the outbox cuts.

        Without `outs` the step is done, and nothing was to be chosen.
        """
        kind, is_source = Kind.DONE, header.kind.is_source
        if not self.ends(header.until):
            kind = Kind.ENCODED if is_source else Kind.HIDDEN
        elif outs and not header.until:
            kind = Kind.VECTOR if is_source else Kind.CHOSEN
        out = torch.zeros(1, 1, dtype=torch.int32)
        if kind is not Kind.DONE:
            out = torch.cat(list(outs)) if len(outs) > 1 else outs[0]
        rows, width = out.shape
        dtype = DType.FLOAT32 if out.is_floating_point() else DType.INT32
        whole = replace(
            header, kind=kind, dtype=dtype, rows=rows, row=0, tile_rows=rows, width=width
        )
        return whole, out

    def expected(self, opened: OpenSession, kind: Kind) -> Expected:
        """What a step of that pass looks like here. Raises ProtocolError where none comes."""
        if kind is Kind.AGAIN:
            return Expected(Kind.AGAIN, DType.INT32, 2, 1, opened.context)
        is_first = self.index == self._first(kind)
        hidden = self.traffic.hidden_size
        source = self.traffic.source
        if kind.is_source and source is not None:
            most = self.traffic.most_rows(opened.context)
            if is_first:
                return Expected(Kind.SOURCE, source.dtype, source.width, most, None)
            return Expected(Kind.ENCODED, DType.FLOAT32, hidden, most, None)
        if is_first:
            return Expected(Kind.TOKENS, DType.INT32, 1, MAX_STEP_ROWS, opened.context)
        return Expected(Kind.HIDDEN, DType.FLOAT32, hidden, MAX_STEP_ROWS, opened.context)

    def _first(self, kind: Kind) -> int:
        """The number of the stage where a pass of that kind begins. Raises ProtocolError."""
        if kind.is_source and self.traffic.source is not None:
            return 0
        first = self.traffic.entry(self.plan)
        if self.index < first:
            raise ProtocolError("a stage with none but layers of the encoder takes no tokens")
        return first

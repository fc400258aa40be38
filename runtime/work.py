"""The work of a device under one plan: the conversations that have a place, and their steps."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from torch import Tensor

from mesh.errors import Busy, NotFinite, ProtocolError, StaleEpoch
from mesh.ids import PeerId, SessionId
from mesh.tensor_frame import DType, FrameHeader, Kind, TensorFrame
from planner.plan import Capacity, Span
from runtime.assembly import assembly_for
from runtime.finite import MAX_NOT_FINITE, check_finite
from runtime.history import History
from runtime.post import Conversation, Post
from runtime.refill import Held
from runtime.session_messages import OpenSession
from runtime.turns import MAX_STEP_ROWS, Pace, Waiting
from runtime.walks.group import Group
from runtime.walks.sharing import Solitude


@dataclass(slots=True)
class Work:
    """A post, and how its work goes."""

    post: Post
    room: Capacity  # less than in the plan where another model needs the memory
    group: Group | None  # where other devices share the stage
    solitude: Solitude
    used_s: float | None = None  # when a conversation last came or went, in the loop's time
    last_turn: int = -1
    pace: Pace = field(default_factory=Pace)
    wrong: Counter[PeerId] = field(default_factory=Counter)  # who sent numbers that are none

    @property
    def is_ordered(self) -> bool:
        """Whether the lead of the stage waits for a turn of ours."""
        return self.group is not None and bool(self.group.orders)

    def limit(self, room: Capacity) -> None:
        """From now on there is this room; conversations that have a place keep it."""
        # Caches that are kept may be as long as conversations were until now.
        self.post.stage.limit(0 if room.context < self.room.context else room.sessions)
        self.room = room

    def open(self, request: OpenSession, now_s: float) -> Held:
        """Makes room for a conversation; returns what of it is known here already.

        Raises Busy when every place is taken, ProtocolError when the conversation is longer than
        the plan allows, StaleEpoch when it is longer than there is room by now.
        """
        post, room, most = self.post, self.room, self.post.plan.capacity.context
        known = request.session in post.conversations
        if not known and len(post.conversations) >= room.sessions:
            raise Busy(
                f"all {room.sessions} places for a conversation are taken; "
                "wait for one to end, or start the devices with more --sessions or --memory"
            )
        if request.context > most:
            raise ProtocolError(f"the plan has room for {most} tokens a conversation")
        if request.context > room.context:
            raise StaleEpoch(f"by now there is room for {room.context} tokens a conversation")
        history = History.unpack(request.history) if request.sampling.needs_history else None
        held = post.stage.open(
            request.session,
            request.sampling,
            request.context,
            name=request.conversation,
            afresh=request.afresh,
            prefix=request.prefix,
            history=history,
            places=room.sessions,
        )
        post.conversations[request.session] = Conversation(request)
        self.solitude.opened(request.session)
        self.used_s = now_s
        return held

    def close(
        self, session: SessionId, owner: PeerId, prefix: bytes, now_s: float, *, paused: bool
    ) -> None:
        """Frees a conversation's place; one that is not here, or another's, stays as it is."""
        conversation = self.post.conversations.get(session)
        if conversation is not None and conversation.opened.owner == owner:
            del self.post.conversations[session]
            conversation.give_up(StaleEpoch("the conversation is over"))
            self.solitude.closed(session)
            self.post.stage.close(session, prefix, paused=paused)
            self.used_s = now_s

    def is_wrong(self, peer: PeerId, error: ProtocolError) -> bool:
        """Whether a device of the plan computes wrongly, by what it sent now and before: then the
        plan is of no use any more.
        """
        if not isinstance(error, NotFinite) or peer not in self.post.plan.devices:
            return False
        self.wrong[peer] += 1
        if self.wrong[peer] < MAX_NOT_FINITE:
            return False
        if self.group is not None:
            self.group.abandon(StaleEpoch(f"{peer.short} sent: {error}"))
        return True

    def stop(self) -> None:
        """This device stops: its worker waits for nobody any more."""
        if self.group is not None:
            self.group.abandon(StaleEpoch("this device stops"))

    def forget(self, peer: PeerId, now_s: float) -> None:
        """A device is gone: its conversations end, and what it shared does."""
        if self.group is not None and self.group.has(peer):
            self.group.abandon(StaleEpoch(f"{peer.short} is gone, and its share of a stage"))
        for session in list(self.post.conversations):
            self.close(session, peer, b"", now_s, paused=False)

    def receive(
        self, peer: PeerId, frame: TensorFrame, conversation: Conversation
    ) -> Waiting | None:
        """Takes a tile; the step once it is whole. Raises ProtocolError for what no peer of the
        plan would send, NotFinite among it; GenerationFailed for rows that are not in the log.
        """
        header, post = frame.header, self.post
        expected = post.expected(conversation.opened, header.kind)
        is_lead = self.group is None or self.group.is_lead
        if not is_lead or peer != post.upstream(conversation.opened, header.kind):
            raise ProtocolError(f"{peer.short} does not send to this stage in this plan")
        expected.check(header)
        if header.until and self.group is not None:
            raise ProtocolError("the layers that several devices share compute nothing again")
        conversation.assembly = assembly_for(header, conversation.assembly)
        if not conversation.assembly.add(frame):
            return None
        rows, conversation.assembly = conversation.assembly.rows, None
        # A sound is its client's: the stage refuses it, and nobody is to blame.
        if rows.is_floating_point() and header.kind is not Kind.SOURCE:
            check_finite(rows)
        if header.kind is Kind.AGAIN:
            return self._again(header, rows)
        return Waiting(header, rows, post.layers(header.until))

    def _again(self, header: FrameHeader, asked: Tensor) -> Waiting:
        """A step that begins with what is in the log here: layers of this stage go on from it, or,
        where it is what left the stage, none.
        """
        layer, count = asked[0].tolist()
        span = self.post.stage.span
        if not (span.first < layer <= span.last and layer < header.until):
            raise ProtocolError(f"layer {layer} until {header.until} does not go on from here")
        if not 0 < count <= MAX_STEP_ROWS:
            raise ProtocolError(f"a step has 1 to {MAX_STEP_ROWS} rows; {count} were asked for")
        rows = self.post.stage.given(header.session, layer, header.position, count)
        header = replace(
            header,
            kind=Kind.HIDDEN,
            dtype=DType.FLOAT32,
            rows=count,
            tile_rows=count,
            width=rows.shape[1],
        )
        return Waiting(header, rows, Span(layer, min(header.until, span.last)))

"""The desk for heads that are cut: what this device has to do with them, under each plan."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from mesh.errors import PlanError, ProtocolError, StaleEpoch
from mesh.ids import PeerId, PlanId
from mesh.tensor_frame import FrameHeader, Kind, TensorFrame
from planner.plan import Plan, Span
from runtime.heads.answering import Answering
from runtime.heads.asking import Asking
from runtime.heads.chooser import Chooser, HeadShare, SplitHead
from runtime.outbox import Outbox
from runtime.worker import Worker


@dataclass(frozen=True, slots=True)
class _Place:
    plan: Plan
    chooser: Chooser | None  # on the device that chooses tokens
    asking: Asking | None  # the same
    answering: Answering | None  # on another that has a share


class HeadDesk:
    """Of all plans in force whose head is cut. Everything runs in the event loop."""

    def __init__(self, worker: Worker, outbox: Outbox, refused: Counter[str]) -> None:
        """`refused` counts frames that are dropped, by cause."""
        self._worker = worker
        self._outbox = outbox
        self._refused = refused
        self._places: dict[PlanId, _Place] = {}

    def install(self, plan: Plan, share: HeadShare | None, hidden_size: int) -> None:
        """Puts a plan in force whose head is cut; `share` is what this device has of it.

        Raises PlanError for shares that do not add up, or a share that is not as planned.
        """
        spans = spans_of(plan)
        me = self._outbox.me
        planned = spans.get(me)
        if planned != (share.span if share is not None else None):
            raise PlanError(f"the plan gives this device the tokens {planned} of the vocabulary")
        chooser = asking = answering = None
        if plan.stages[-1].lead == me:
            others = {peer: span for peer, span in spans.items() if peer != me}
            asking = Asking(plan, others, self._worker, self._outbox)
            chooser = SplitHead(list(spans.values()), share, asking.ask)
        elif share is not None:
            answering = Answering(plan, share, hidden_size, self._worker, self._outbox)
        self._places[plan.plan_id] = _Place(plan, chooser, asking, answering)

    def chooser(self, plan: PlanId) -> Chooser | None:
        """What chooses tokens under a plan whose head is cut, on the device that does."""
        place = self._places.get(plan)
        return place.chooser if place is not None else None

    def end(self, plan: PlanId) -> None:
        """A plan is over; whoever waits for an answer under it hears so at once."""
        place = self._places.pop(plan, None)
        if place is not None and place.asking is not None:
            place.asking.abandon(StaleEpoch(f"plan {plan[:8]} is over"))
        if place is not None and place.answering is not None:
            place.answering.end()

    def close(self) -> None:
        """Nobody waits any longer: the worker could not end."""
        for plan in list(self._places):
            self.end(plan)

    def forget(self, peer: PeerId) -> None:
        """A device is gone, and with it the plans in which it has a share."""
        for place in self._places.values():
            if place.asking is not None and peer in place.asking.spans:
                place.asking.abandon(
                    StaleEpoch(f"{peer.short} is gone, and its share of the vocabulary")
                )

    def on_frame(self, peer: PeerId, frame: TensorFrame) -> None:
        """Takes a tile of a question or an answer. Raises ProtocolError for what no device of its
        plan would send.
        """
        header = frame.header
        place = self._places.get(header.plan)
        if place is None or place.plan.epoch != header.epoch:
            self._refused["stale epoch or plan"] += 1
        elif header.kind is Kind.HEAD_ASK:
            if place.answering is None:
                raise ProtocolError("a device without a share of the vocabulary was asked for it")
            place.answering.on_question(peer, frame)
        elif place.asking is None:
            raise ProtocolError("an answer about the vocabulary came to a device that never asks")
        elif not place.asking.on_answer(peer, frame):
            self._refused["late answer about the vocabulary"] += 1

    def on_lost(self, header: FrameHeader, reason: str) -> None:
        """A question or an answer could not be sent: that device is gone, as seen from here."""
        place = self._places.get(header.plan)
        if place is not None and place.asking is not None:
            place.asking.lose(header.session, StaleEpoch(reason))


def spans_of(plan: Plan) -> dict[PeerId, Span]:
    """Who has which tokens of the vocabulary, in the order of their ids. Raises PlanError for
    shares that do not add up, for an empty one, and for two of one device.
    """
    shares = sorted(
        ((share.vocab or Span(0, 0), share.device) for share in plan.head),
        key=lambda one: one[0].first,
    )
    spans = {device: span for span, device in shares}
    edges = [0, *(span.last for span in spans.values())]
    fits = all(
        span.first == before and len(span) > 0
        for before, span in zip(edges, spans.values(), strict=False)
    )
    if not fits or not spans or len(spans) < len(shares):
        told = ", ".join(f"{device.short}: {span}" for span, device in shares)
        raise PlanError(f"the shares of the vocabulary do not add up: {told or 'there are none'}")
    return spans

"""The leader watches how fast its plans really go, and says which of them to plan anew.

It asks the devices for their efforts while nothing else is to be done, and acts between requests:
a plan that somebody talks to is looked at when the conversation is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from apps.ask import hear_all
from apps.planning.ledger import Entry, Ledger, Use, uses
from apps.planning.messages import REPORT_EFFORTS, EffortsReport
from apps.planning.rollout import reports
from apps.planning.survey import survey
from mesh.codec import from_plain
from mesh.errors import ProtocolError
from mesh.ids import ModelId, PeerId, PlanId
from mesh.node import Node
from planner.drift import Factors, Pace, Seen, corrected, drift_text, observed, told, without
from planner.profile import Cluster
from runtime.efforts import Measured, PlanEfforts
from runtime.turns import MAX_STEP_ROWS

LOOK_S: Final = 5.0  # between two looks: what became slower an answer ago is known for the next
ASK_S: Final = 2.0  # for what a device has at hand

Efforts = dict[PlanId, dict[PeerId, PlanEfforts]]


class Drifting:
    """What is known of how the devices differ from what they measured, for one leadership."""

    def __init__(self, node: Node, ledger: Ledger) -> None:
        self._node = node
        self._ledger = ledger
        self._factors = Factors()
        self._seen: dict[PlanId, dict[PeerId, PlanEfforts]] = {}  # at the last look
        self._due: dict[ModelId, str] = {}  # plans to look at anew, and why

    def corrected(self, cluster: Cluster) -> Cluster:
        """What the devices take now, of what they measured once."""
        return corrected(cluster, self._factors)

    def forget(self, device: PeerId) -> None:
        """It is gone."""
        self._factors = without(self._factors, device)

    async def look(self) -> bool:
        """Asks the devices; whether there is a plan to be made anew (`Entry.drift`)."""
        efforts = await self._efforts()
        moved = {plan for plan, of in efforts.items() if of != self._seen.get(plan)}
        if not moved and not self._due:
            return False
        in_use = uses(await reports(self._node, self._devices()))
        for entry in self._free(in_use):
            plan = entry.plan.plan_id
            if plan in moved:
                self._seen[plan] = efforts[plan]
                await self._compare(entry, efforts[plan])
        found = [entry for entry in self._free(in_use) if entry.plan.model in self._due]
        for entry in found:
            entry.drift = self._due.pop(entry.plan.model)
        return bool(found)

    async def _compare(self, entry: Entry, efforts: Mapping[PeerId, PlanEfforts]) -> None:
        """What the efforts under a plan say of its devices; it matters for all plans."""
        findings = await survey(self._node, entry.wish, measure=False)
        paces = {peer: Pace(_tokens(one), _prompts(one)) for peer, one in efforts.items()}
        # Some layers are simulated for it: not in the loop, where the heart beats.
        found = await asyncio.to_thread(
            observed, entry.plan, findings.cluster, entry.wish.profile, paces
        )
        before, self._factors = self._factors, told(self._factors, found)
        if text := drift_text(findings.cluster, before, self._factors):
            self._due = {one.plan.model: text for one in self._ledger.entries}

    def _free(self, in_use: Mapping[PlanId, Use]) -> list[Entry]:
        """The entries whose plans are good, and that nobody talks to."""
        epoch = self._node.view.epoch
        return [
            entry
            for entry in self._ledger.entries
            if self._ledger.is_whole(entry, epoch)
            and not in_use.get(entry.plan.plan_id, Use()).conversations
        ]

    def _devices(self) -> list[PeerId]:
        """Those with a share of a plan; the others have done nothing for it."""
        return sorted({one for entry in self._ledger.entries for one in entry.plan.devices})

    async def _efforts(self) -> Efforts:
        """By plan, by device; of plans in force."""
        found: Efforts = {entry.plan.plan_id: {} for entry in self._ledger.entries}
        devices = self._devices()
        answers = await asyncio.gather(
            *(hear_all(self._node, [one], REPORT_EFFORTS, None, ASK_S) for one in devices)
        )
        for device, bodies in zip(devices, answers, strict=True):
            for one in _measured(bodies):
                if one.plan in found and (one.prompts or one.tokens):
                    found[one.plan][device] = one
        self._seen = {plan: of for plan, of in self._seen.items() if plan in found}
        return {plan: of for plan, of in found.items() if of}


def _measured(bodies: Sequence[Any]) -> tuple[PlanEfforts, ...]:
    """What a device answered; nothing of one with another version of this software."""
    found: tuple[PlanEfforts, ...] = ()
    with suppress(ProtocolError):
        for body in bodies:
            report: EffortsReport = from_plain(EffortsReport, body)
            found += report.measured
    return found


def _tokens(one: PlanEfforts) -> Seen | None:
    return _seen(one.tokens, 1) if one.tokens else None


def _prompts(one: PlanEfforts) -> Seen | None:
    if one.prompts is None or not 1 <= one.prompts.rows <= MAX_STEP_ROWS:
        return None
    return _seen(one.prompts, round(one.prompts.rows))


def _seen(one: Measured, rows: int) -> Seen:
    """Of a turn: of prompts it is told by the row."""
    return Seen(one.turns, rows, one.conversations, rows * one.compute_s, rows * one.wire_s)

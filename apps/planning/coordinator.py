"""The coordinator: the leader's loop. Profile, plan, install, watch.

Every device carries it, only the elected leader runs it, and it keeps nothing that another device
could not rebuild: a new leader asks the devices for the last plan in force and goes on from there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from apps.ask import unless
from apps.planning.messages import Outcome, WantReply, Wish
from apps.planning.refusals import Refusals
from apps.planning.rollout import DeviceRefused, bring_shares, reports, roll_out, tell
from apps.planning.survey import Findings, survey
from apps.planning.waiting import WaitingRoom
from apps.timeline import Timeline
from mesh.errors import (
    DoesNotFit,
    MeshError,
    NoLeader,
    PlanError,
    StaleEpoch,
)
from mesh.ids import PeerId, PlanId
from mesh.limits import BEAT_INTERVAL_S
from mesh.node import Node
from planner.choose import Choice, choose
from planner.plan import Plan
from planner.replan import why_replan

T = TypeVar("T")

MAX_INSTALL_TRIES = 20  # in a row, a beat apart: ten seconds, far more than any election takes
LOOK_AGAIN_S = 10.0  # at devices that could not be measured, or did not answer in time


class Coordinator:
    """Runs on every device; works only while its device leads."""

    def __init__(self, node: Node, timeline: Timeline) -> None:
        self._node = node
        self._timeline = timeline
        self._leading = False
        self._plan: Plan | None = None
        self._wish: Wish | None = None
        self._considered: frozenset[PeerId] = frozenset()  # who was here when we last planned
        self._gone: frozenset[PeerId] = frozenset()  # who has gone since then, back or not
        self._refusals = Refusals()
        self._installing = False
        self._look_again: asyncio.TimerHandle | None = None
        self._telling: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()  # a device of the plan went
        self._waiting = WaitingRoom()
        self._work = asyncio.Event()

    async def run(self) -> None:
        """Leads whenever this device is elected, until cancelled."""
        while True:
            await self._node.wait_for(lambda view: view.leads, timeout_s=None)
            self._leading = True
            leading = asyncio.ensure_future(self._lead())
            deposed = asyncio.ensure_future(
                self._node.wait_for(lambda view: not view.leads, timeout_s=None)
            )
            try:
                await asyncio.wait([leading, deposed], return_when=asyncio.FIRST_COMPLETED)
                if leading.done():
                    leading.result()
            finally:
                self._leading = False
                self._waiting.answer(WantReply(Outcome.RETRY, "this device no longer leads"))
                for task in (leading, deposed):
                    task.cancel()
                await asyncio.wait([leading, deposed])

    def on_view_changed(self) -> None:
        """Somebody came or went: look whether the plan still holds."""
        self._work.set()

    def on_gone(self, peer: PeerId) -> None:
        """A device died or left: what it held is lost, even if it is back in a moment."""
        if self._plan is not None and peer in self._plan.devices:
            self._lost.set()
        self._gone |= {peer}
        self._considered -= {peer}
        self._refusals.forget(peer)

    async def want(self, wish: Wish) -> WantReply:
        """Returns when a plan for the wish is in force, or says why there is none."""
        if not self._leading:
            return WantReply(Outcome.RETRY, "this device does not lead")
        if self._is_whole() and not self._installing and self._serves(wish):
            return WantReply(Outcome.OK, "", self._plan, self._wish)
        if self._wish is not None and self._wish.model.model != wish.model.model:
            running = await self._conversations(self._wish)
            if running:
                return WantReply(
                    Outcome.BUSY,
                    f"the mesh runs {self._wish.model.name} for {running} conversation(s); "
                    f"{wish.model.name} can be loaded when they end",
                )
        self._work.set()
        return await self._waiting.enter(wish)

    async def preview(self, wish: Wish) -> Choice:
        """The plan that would be chosen now, with every candidate. Raises DoesNotFit."""
        if not self._leading:
            raise NoLeader("this device does not lead")
        findings = await survey(self._node, wish, measure=True)
        return await self._choose(wish, findings)

    # --- the loop ---------------------------------------------------------------------------------

    async def _lead(self) -> None:
        await self._recall()
        failures = 0
        while True:
            await self._work.wait()
            self._work.clear()
            wish, reason = self._next_wish(), self._why()
            if wish is None:
                continue
            if reason is None and self._serves(wish):
                self._answer_served()
                continue
            try:
                await self._replan(wish, reason or f"{wish.model.name} is wanted")
                failures = 0
            except PlanError as error:
                self._considered = self._present()
                self._give_up(wish, str(error))
            except MeshError as error:
                # Somebody vanished, refused or moved on while the plan was being installed.
                failures += 1
                self._timeline.note("plan-failed", f"the plan was not installed: {error}")
                if failures >= MAX_INSTALL_TRIES:
                    failures = 0
                    self._give_up(wish, f"no plan could be installed: {error}")
                else:
                    # By the next beat everybody knows the epoch, and who is here.
                    await asyncio.sleep(BEAT_INTERVAL_S if failures > 1 else 0)
                    self._work.set()

    async def _recall(self) -> None:
        """Asks every device for the last plan it had in force; the newest one counts."""
        self._gone, self._refusals, self._installing = frozenset(), Refusals(), False
        known = await reports(self._node, self._present())
        self._plan, self._wish = max(
            ((report.plan, report.wish) for report in known if report.plan and report.wish),
            key=lambda pair: pair[0].epoch,
            default=(None, None),
        )
        self._considered = frozenset(self._plan.devices) if self._plan else frozenset()
        self._work.set()

    async def _replan(self, wish: Wish, reason: str) -> None:
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        self._timeline.note("planning", f"planning {wish.model.name}: {reason}")
        present, gone = self._present(), self._gone
        choice, unmeasured = await self._decide(wish)
        chosen_s = loop.time()
        if self._is_whole() and self._same_placement(choice.plan):
            self._timeline.note("plan-kept", choice.plan.reason)
        else:
            await self._bring(choice.plan, wish)
            self._plan = await self._install(choice.plan, wish)
            self._timeline.note(
                "installed",
                f"plan of epoch {self._plan.epoch} installed on {len(choice.plan.devices)} devices",
                choose_ms=(chosen_s - started_s) * 1e3,
                install_ms=(loop.time() - chosen_s) * 1e3,
                plan_ms=(loop.time() - started_s) * 1e3,
            )
        assert self._plan is not None
        self._gone -= gone  # whoever went while this was being done is looked at next
        unmeasured |= self._refusals.planned()
        self._wish, self._considered = wish, present - unmeasured - self._gone
        self._answer_served()
        others = present - frozenset(self._plan.devices)
        # Kept, or it would be collected; nobody waits for it.
        self._telling = asyncio.ensure_future(tell(self._node, others, self._plan, wish))
        if self._look_again is not None:
            self._look_again.cancel()
        self._look_again = loop.call_later(LOOK_AGAIN_S, self._work.set) if unmeasured else None

    async def _decide(self, wish: Wish) -> tuple[Choice, frozenset[PeerId]]:
        """The best plan, and the devices that were left out only because they are not measured.

        While a broken plan keeps sessions waiting, nobody is measured: a plan from what is known
        comes at once, and the newcomers are looked at right after it.
        """
        if self._plan is not None and not self._is_whole():
            known = await survey(self._node, wish, measure=False)
            with suppress(DoesNotFit):
                return await self._choose(wish, known), known.unmeasured
        findings = await self._measure(wish)
        return await self._choose(wish, findings), findings.unmeasured

    async def _measure(self, wish: Wish) -> Findings:
        return await self._unless_lost(survey(self._node, wish, measure=True))

    async def _bring(self, plan: Plan, wish: Wish) -> None:
        """Has the plan's weights on its devices' disks; what is in force runs on meanwhile."""
        try:
            await self._unless_lost(bring_shares(self._node, plan, wish))
        except DeviceRefused as error:
            self._refusals.count(error)
            raise

    async def _unless_lost(self, work: Coroutine[Any, Any, T]) -> T:
        """Given up when the plan that runs meanwhile loses a device. Raises StaleEpoch then."""
        self._lost.clear()
        lost = StaleEpoch("a device of the plan was lost while another one was prepared")
        return await unless(self._lost, work, lost)

    async def _install(self, plan: Plan, wish: Wish) -> Plan:
        """Under an epoch of the plan's own. Raises LinkError or RequestFailed."""
        epoch = self._node.advance_epoch("a new plan")
        plan = replace(plan, epoch=epoch, plan_id=PlanId.new())
        self._installing = True
        try:
            await roll_out(self._node, plan, wish)
        except DeviceRefused as error:
            self._refusals.count(error)
            raise
        finally:
            self._installing = False
        return plan

    # --- what the leader knows --------------------------------------------------------------------

    def _why(self) -> str | None:
        """Why there should be another plan than the one in force; None when it is good."""
        view = self._node.view
        names = {member.peer: member.name for member in view.members}
        broken = self._gone & frozenset(self._plan.devices if self._plan else ())
        return why_replan(self._plan, view.epoch, self._present() - broken, self._considered, names)

    def _is_whole(self) -> bool:
        """Whether every device of the plan still has what it was given, in this very epoch."""
        plan = self._plan
        return (
            plan is not None
            and plan.epoch == self._node.view.epoch
            and not self._gone & frozenset(plan.devices)
        )

    def _serves(self, wish: Wish) -> bool:
        return self._wish is not None and self._wish.covers(wish)

    def _same_placement(self, plan: Plan) -> bool:
        old = self._plan
        return old is not None and (old.model, old.stages, old.capacity) == (
            plan.model,
            plan.stages,
            plan.capacity,
        )

    def _next_wish(self) -> Wish | None:
        """What is asked for first, else what runs."""
        wanted = self._waiting.first
        return self._wish if wanted is None else wanted.with_room_of(self._wish)

    def _present(self) -> frozenset[PeerId]:
        return frozenset(member.peer for member in self._node.view.alive)

    async def _choose(self, wish: Wish, findings: Findings) -> Choice:
        epoch = self._node.view.epoch
        if epoch is None:
            raise NoLeader("the mesh has no leader")
        out = self._refusals.out
        able = tuple(one for one in findings.cluster.devices if one.device not in out)
        # A second of arithmetic with ten devices: not in the loop, where the heart beats.
        return await asyncio.to_thread(
            choose,
            replace(findings.cluster, devices=able),
            wish.profile,
            wish.capacity,
            epoch,
            PlanId.new(),
            self._plan if self._plan and self._plan.model == wish.model.model else None,
            absent={**findings.absent, **out},
        )

    async def _conversations(self, wish: Wish) -> int:
        """How many run this model, or wait for a plan to go on with it."""
        known = await reports(self._node, self._present())
        running = max((report.conversations for report in known), default=0)
        return running + self._waiting.count(wish.model.model)

    # --- answers ----------------------------------------------------------------------------------

    def _answer_served(self) -> None:
        self._waiting.answer(WantReply(Outcome.OK, "", self._plan, self._wish), self._serves)
        if self._waiting:
            self._work.set()

    def _give_up(self, wish: Wish, reason: str) -> None:
        """Tells those who wait for this model; the others' turn is next."""
        self._timeline.note("no-plan", reason)
        model = wish.model.model
        self._waiting.answer(
            WantReply(Outcome.IMPOSSIBLE, reason), lambda other: other.model.model == model
        )
        if self._waiting:
            self._work.set()

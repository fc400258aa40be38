"""The coordinator: the leader's loop. Profile, plan, install, watch; several models at once.

Every device carries it, only the elected leader runs it, and it keeps nothing that another device
could not rebuild: a new leader asks the devices for the plans in force and goes on from there.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Collection, Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from apps.ask import unless
from apps.planning.agenda import Task, next_task
from apps.planning.architect import Architect
from apps.planning.changeover import Changeover
from apps.planning.drifting import LOOK_S, Drifting
from apps.planning.leaving import Leaving
from apps.planning.ledger import Entry, Ledger
from apps.planning.messages import Blame, LeaveReply, Outcome, WantReply, Wish
from apps.planning.refusals import Refusals
from apps.planning.reserve import Reserve
from apps.planning.rollout import DeviceRefused, DeviceUnable, bring_shares, reports
from apps.planning.telling import Telling
from apps.planning.waiting import WaitingRoom
from apps.timeline import Timeline
from mesh.errors import MeshError, NoLeader, NoRoom, PlanError, StaleEpoch
from mesh.ids import ModelId, PeerId, PlanId
from mesh.limits import BEAT_INTERVAL_S
from mesh.node import Node
from planner.choose import Choice

T = TypeVar("T")

MAX_INSTALL_TRIES = 20  # in a row, a beat apart: ten seconds, far more than any election takes


class Coordinator:
    """Runs on every device; works only while its device leads."""

    def __init__(self, node: Node, timeline: Timeline) -> None:
        self._node = node
        self._timeline = timeline
        self._leading = False
        self._waiting = WaitingRoom()
        self._leaving = Leaving()
        self._work = asyncio.Event()
        self._lost = asyncio.Event()  # a device of a plan in force went
        self._reserve = Reserve(node, self._work.set)  # knows of the time before, too
        self._begin()

    def _begin(self) -> None:
        """A leadership begins, and knows nothing yet."""
        self._ledger = Ledger()
        self._refusals: dict[ModelId, Refusals] = defaultdict(Refusals)
        self._failures: Counter[ModelId] = Counter()
        self._drifting = Drifting(self._node, self._ledger)
        self._architect = Architect(
            self._node,
            self._ledger,
            self._waiting,
            self._drifting,
            self._reserve.shunned,
            lambda: self._leaving.out,
        )
        self._telling = Telling(self._node, self._on_lacks, self._work.set)
        self._changeover = Changeover(self._node, self._ledger, self._telling, self._timeline)

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
                self._telling.stop()
                self._leaving.stop()
                for task in (leading, deposed):
                    task.cancel()
                await asyncio.wait([leading, deposed])

    def on_view_changed(self) -> None:
        """Somebody came or went: look whether the plans still hold."""
        self._work.set()

    def on_gone(self, peer: PeerId) -> None:
        """A device died or left: what it held is lost, even if it is back in a moment."""
        self._reserve.departed(peer)
        if self._ledger.left(peer):
            self._lost.set()
        self._telling.forget(peer)
        self._drifting.forget(peer)
        self._leaving.forget(peer)
        for refusals in self._refusals.values():
            refusals.forget(peer)

    def on_blame(self, peer: PeerId, blame: Blame) -> None:
        """A device of a plan in force says that another computes wrongly: the next plan goes
        without it, until it has been away.
        """
        entry = self._ledger.find(blame.model)
        if entry is None or entry.plan.plan_id != blame.plan or peer == blame.device:
            return
        if not {peer, blame.device} <= set(entry.plan.devices):
            return
        self._refusals[blame.model].count(DeviceUnable(blame.device, blame.reason))
        self._ledger.doubt((blame.plan,))
        self._work.set()

    async def want(self, wish: Wish) -> WantReply:
        """Returns when a plan for the wish is in force, or says why there is none."""
        if not self._leading:
            return WantReply(Outcome.RETRY, "this device does not lead")
        entry = self._ledger.serving(wish, self._node.view.epoch)
        if entry is not None:
            return self._handed(entry)
        self._work.set()
        return await self._waiting.enter(wish)

    async def leave(self, peer: PeerId) -> LeaveReply:
        """A device is about to go: returns when no plan in force needs it, or says why one does."""
        if not self._leading:
            return LeaveReply(Outcome.RETRY, "this device does not lead")
        self._work.set()
        return await self._leaving.enter(peer)

    async def preview(self, wish: Wish) -> Choice:
        """The plan that would be chosen now, with every candidate. Raises DoesNotFit or NoRoom."""
        if not self._leading:
            raise NoLeader("this device does not lead")
        task = Task(wish, "somebody asks", 0.0, may_ask=True)
        drawing = await self._architect.draw(task, self._refusals[task.model])
        return drawing.arrangement.choice

    # --- the loop ---------------------------------------------------------------------------------

    async def _lead(self) -> None:
        self._begin()
        known = await reports(self._node, sorted(self._present()))
        self._ledger.recall(known, self._now_s)
        self._work.set()
        while True:
            await self._anything_to_do()
            self._work.clear()
            await self._work_off()
            self._tell()

    async def _anything_to_do(self) -> None:
        """Returns when there is. Meanwhile it watches how fast the plans go."""
        while not self._work.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._work.wait()
                    return
            with suppress(MeshError):  # the next look tells as much
                changed = StaleEpoch("there is something to do at once")
                if await unless(self._work, self._drifting.look(), changed):
                    return

    async def _work_off(self) -> None:
        """All that can be done now; what is in vain is looked at again when something changes."""
        passed: set[ModelId] = set()
        while (task := self._next(passed)) is not None:
            try:
                await self._replan(task)
            except PlanError as error:
                if task.idle_s and self._waiting.count(task.wish.model):
                    continue  # somebody came for it meanwhile, so that others may have to leave
                passed.add(task.model)
                self._give_up(task, error)
            except MeshError as error:
                # Somebody vanished, refused or moved on while the plan was being installed.
                self._failures[task.model] += 1
                self._timeline.note("plan-failed", f"the plan was not installed: {error}")
                if self._failures[task.model] >= MAX_INSTALL_TRIES:
                    passed.add(task.model)
                    self._give_up(task, PlanError(f"no plan could be installed: {error}"))
                else:
                    # By the next beat everybody knows the epoch, and who is here.
                    await asyncio.sleep(BEAT_INTERVAL_S if self._failures[task.model] > 1 else 0)

    def _next(self, passed: Collection[ModelId]) -> Task | None:
        self._answer_served()
        self._leaving.settle(self._ledger)
        self._ledger.shunned = frozenset(self._reserve.shunned())
        return next_task(
            self._ledger,
            self._waiting.wishes,
            self._node.view,
            self._now_s,
            self._failures,
            passed,
        )

    async def _replan(self, task: Task) -> None:
        started_s = self._now_s
        self._timeline.note("planning", f"planning {task.wish.model.name}: {task.reason}")
        present, as_of = self._present(), self._ledger.departures
        refusals = self._refusals[task.model]
        drawing = await self._unless_lost(self._architect.draw(task, refusals))
        chosen_s = self._now_s
        plan = drawing.arrangement.choice.plan
        entry = self._ledger.find(task.model)
        epoch = self._node.view.epoch
        if entry is not None and self._ledger.is_kept(entry, task.wish, plan, epoch):
            self._ledger.resize(
                replace(entry.plan, capacity=plan.capacity, predicted=plan.predicted)
            )
            self._timeline.note("plan-kept", plan.reason)
        else:
            before = entry.plan if entry is not None else None
            try:
                await self._unless_lost(bring_shares(self._node, plan, task.wish, before))
                entry = await self._changeover.install(task, drawing.arrangement, as_of)
            except DeviceRefused as error:
                refusals.count(error)
                raise
            self._timeline.note(
                "installed",
                f"plan of epoch {entry.plan.epoch} for {plan.model_name} installed on "
                f"{len(plan.devices)} devices",
                model=plan.model_name,
                choose_ms=(chosen_s - started_s) * 1e3,
                install_ms=(self._now_s - chosen_s) * 1e3,
                plan_ms=(self._now_s - started_s) * 1e3,
            )
        del self._failures[task.model]
        entry.drift = ""
        unmeasured = drawing.unmeasured | refusals.planned()
        shunned = self._ledger.shunned - frozenset(entry.plan.devices)
        entry.wish, entry.considered = task.wish, present - unmeasured - shunned
        entry.as_of = as_of
        if unmeasured:
            self._reserve.look_later()

    async def _unless_lost(self, work: Coroutine[Any, Any, T]) -> T:
        """Given up when a plan in force loses a device meanwhile. Raises StaleEpoch then."""
        self._lost.clear()
        lost = StaleEpoch("a device of a plan in force was lost while another was prepared")
        return await unless(self._lost, work, lost)

    # --- the devices ------------------------------------------------------------------------------

    def _tell(self) -> None:
        epoch = self._node.view.epoch
        if epoch is not None and self._ledger.version:
            in_force, version = self._ledger.in_force(self._now_s), self._ledger.version
            self._telling.tell(sorted(self._present()), epoch, in_force, version)

    def _on_lacks(self, plans: Collection[PlanId]) -> None:
        self._ledger.doubt(plans)
        self._work.set()

    # --- what the leader knows --------------------------------------------------------------------

    @property
    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def _present(self) -> frozenset[PeerId]:
        return frozenset(member.peer for member in self._node.view.alive)

    # --- answers ----------------------------------------------------------------------------------

    def _handed(self, entry: Entry) -> WantReply:
        entry.handed_s = self._now_s
        return WantReply(Outcome.OK, "", entry.plan, entry.wish)

    def _answer_served(self) -> None:
        for wish in self._waiting.wishes:
            entry = self._ledger.serving(wish, self._node.view.epoch)
            if entry is not None:
                self._waiting.answer(self._handed(entry), entry.wish.covers)

    def _give_up(self, task: Task, error: PlanError) -> None:
        """Tells those who wait for this model; the others' turn is next."""
        del self._failures[task.model]
        self._timeline.note("no-plan", str(error))
        entry, model = self._ledger.find(task.model), task.wish.model
        if entry is not None:
            self._leaving.refuse(self._ledger.parts_of(entry), str(error))
        is_wanted = self._waiting.count(model) > 0
        if entry is not None and self._ledger.is_whole(entry, self._node.view.epoch):
            entry.considered, entry.as_of = self._present(), self._ledger.departures
            entry.drift = ""
        elif entry is not None and isinstance(error, NoRoom) and not is_wanted:
            self._changeover.evict(task.model, "since it has no place beside the others any more")
        elif entry is not None:
            self._ledger.lapse(entry, self._present())
        outcome = Outcome.BUSY if isinstance(error, NoRoom) else Outcome.IMPOSSIBLE
        self._waiting.answer(
            WantReply(outcome, str(error)), lambda wish: wish.model.is_held_like(model)
        )

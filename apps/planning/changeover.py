"""The changeover: from an arrangement to plans in force, and the ledger's account of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from math import inf

from apps.planning.agenda import Task
from apps.planning.ledger import Entry, Ledger
from apps.planning.rollout import StillInUse, commit, prepare
from apps.planning.telling import Telling
from apps.timeline import Timeline
from mesh.fault_points import reach
from mesh.ids import ModelId, PlanId
from mesh.node import Node
from planner.plan import Plan
from planner.room import Arrangement
from planner.words import conversations_text, time_text


class Changeover:
    """Two phases over the devices of a plan; the other models hear what becomes of them."""

    def __init__(self, node: Node, ledger: Ledger, telling: Telling, timeline: Timeline) -> None:
        self._node = node
        self._ledger = ledger
        self._telling = telling
        self._timeline = timeline

    async def install(self, task: Task, arrangement: Arrangement, as_of: int) -> Entry:
        """Under an epoch of the plan's own; `as_of` departures had been seen when it was decided.

        Raises DeviceRefused, StillInUse, RequestFailed or LinkError. Then the ledger knows which
        plans nobody can be sure of.
        """
        before, old = self._node.view.epoch, self._ledger.find(task.model)
        epoch = self._node.advance_epoch("a new plan")
        self._ledger.took(epoch, before)
        plan = replace(arrangement.choice.plan, epoch=epoch, plan_id=PlanId.new())
        entry = Entry(
            plan=plan,
            wish=task.wish,
            considered=frozenset(plan.devices),
            as_of=as_of,
            used_s=self._now_s - task.idle_s,
            handed_s=old.handed_s if old else -inf,
            is_sure=False,
        )
        # Until all is done nobody knows which devices have what of these.
        self._ledger.doubt([one.plan_id for one in (*arrangement.aside, *_plans(old))])
        leave = [one.plan_id for one in arrangement.leave]
        self._ledger.dismiss(leave)
        try:
            await prepare(self._node, plan, task.wish, arrangement.stay, leave)
        except StillInUse:
            self._ledger.recover(leave)
            raise
        reach("plan.prepared")
        self._make_way(arrangement, plan)
        self._ledger.put(entry)
        in_force = self._ledger.in_force(self._now_s)
        lacks = await commit(self._node, plan.devices, epoch, in_force)
        reach("plan.committed")
        entry.is_sure = True
        self._ledger.doubt(lacks)
        self._telling.heard(plan.devices, self._ledger.version)
        return entry

    def evict(self, model: ModelId, why: str) -> None:
        """A model leaves; the devices hear of it with the next plan, or are told."""
        entry = self._ledger.find(model)
        if entry is None:
            return
        self._ledger.remove(model)
        name, idle = entry.plan.model_name, time_text(entry.idle_s(self._now_s))
        self._timeline.note(
            "evicted", f"{name} leaves {why}; it was last used {idle} ago", model=name
        )

    def _make_way(self, arrangement: Arrangement, plan: Plan) -> None:
        """What the others give for a plan, once its devices have prepared it."""
        for leaving in arrangement.leave:
            self.evict(leaving.model, f"to make room for {plan.model_name}")
        for staying in arrangement.stay:
            if self._ledger.resize(staying):
                room = conversations_text(staying.capacity)
                self._timeline.note(
                    "room", f"{staying.model_name} keeps room for {room} beside {plan.model_name}"
                )

    @property
    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()


def _plans(entry: Entry | None) -> tuple[Plan, ...]:
    return (entry.plan,) if entry is not None else ()

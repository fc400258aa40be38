"""The architect: from a model that is wanted to the best arrangement of all models in force.

It asks the devices what they measured and, only where others have to make room, what they run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from apps.planning.agenda import Task
from apps.planning.drifting import Drifting
from apps.planning.ledger import Ledger, Use, uses
from apps.planning.messages import Wish
from apps.planning.refusals import Refusals
from apps.planning.rollout import reports
from apps.planning.survey import Findings, survey
from apps.planning.waiting import WaitingRoom
from mesh.errors import DoesNotFit, NoLeader, NoRoom
from mesh.ids import ModelId, PeerId, PlanId
from mesh.node import Node
from planner.allowed import EVERYTHING, wires_to
from planner.choose import Choice, choose
from planner.plan import Plan
from planner.profile import Cluster
from planner.room import Arrangement, Tenant, firm, make_room
from planner.words import conversations_text, list_text
from runtime.compute.precision import resolved


@dataclass(frozen=True, slots=True)
class Drawing:
    """An arrangement, and the devices that are not part of it only because nobody measured them."""

    arrangement: Arrangement
    unmeasured: frozenset[PeerId]


class Architect:
    """Decides, and changes nothing."""

    def __init__(
        self,
        node: Node,
        ledger: Ledger,
        waiting: WaitingRoom,
        drifting: Drifting,
        shunned: Callable[[], Mapping[PeerId, str]],
        leaving: Callable[[], Mapping[PeerId, str]],
    ) -> None:
        """`shunned` tells who is here but better not planned with, and why, `leaving` who is never
        to be.
        """
        self._node = node
        self._shunned = shunned
        self._leaving = leaving
        self._ledger = ledger
        self._waiting = waiting
        self._drifting = drifting

    async def draw(self, task: Task, refusals: Refusals) -> Drawing:
        """Raises DoesNotFit, or NoRoom where those in use keep the model out.

        While sessions wait for it, or a device to go, nobody is measured: a plan from what is known
        comes at once, and the newcomers are looked at right after it.
        """
        keep = await self._kept(task.wish)
        if task.is_urgent:
            known = await survey(self._node, task.wish, measure=False)
            with suppress(DoesNotFit, NoRoom):
                return Drawing(await self._calmly(task, known, refusals, keep), known.unmeasured)
        findings = await survey(self._node, task.wish, measure=True)
        return Drawing(await self._calmly(task, findings, refusals, keep), findings.unmeasured)

    async def _calmly(
        self, task: Task, findings: Findings, refusals: Refusals, keep: Plan | None
    ) -> Arrangement:
        """Without the devices that come and go, or are stuck, if it can be done without them."""
        shunned, out = self._shunned(), {**refusals.out, **self._leaving()}
        if shunned:
            with suppress(DoesNotFit, NoRoom):
                return await self._arranged(task, findings, {**shunned, **out}, keep)
        return await self._arranged(task, findings, out, keep)

    async def _kept(self, wish: Wish) -> Plan | None:
        """The model's plan so far. Raises NoRoom where it is in use in another precision."""
        entry = self._ledger.find(wish.model.model)
        if entry is None or entry.wish.model.is_held_like(wish.model):
            return entry.plan if entry is not None else None
        for tenant in await self._tenants(None):
            if tenant.plan is entry.plan and tenant.conversations:
                raise NoRoom(
                    f"the mesh runs {wish.model.name} as {resolved(entry.wish.model.precision)} "
                    f"for {tenant.conversations} conversation(s); it can be loaded as "
                    f"{resolved(wish.model.precision)} when they end"
                )
        return None

    async def _arranged(
        self, task: Task, findings: Findings, out: Mapping[PeerId, str], keep: Plan | None
    ) -> Arrangement:
        epoch, wish = self._node.view.epoch, task.wish
        if epoch is None:
            raise NoLeader("the mesh has no leader")
        able = tuple(one for one in findings.cluster.devices if one.device not in out)
        cluster = self._drifting.corrected(replace(findings.cluster, devices=able))
        absent = {**findings.absent, **out}

        def arranged(tenants: list[Tenant], idle_s: float) -> Arrangement:
            allowed = replace(EVERYTHING, grouped=_grouped(tenants), wires=wires_to(wish.wire))

            def choice(free: Cluster) -> Choice:
                return choose(
                    free,
                    wish.profile,
                    wish.capacity,
                    epoch,
                    PlanId.new(),
                    keep,
                    absent=absent,
                    allowed=allowed,
                )

            return make_room(cluster, wish.profile, wish.capacity, tenants, choice, idle_s)

        # A second of arithmetic with ten devices: not in the loop, where the heart beats.
        others = [firm(tenant) for tenant in self._ledger_tenants(task.model, {})]
        with suppress(NoRoom):
            found = await asyncio.to_thread(arranged, others, task.idle_s)
            if not others or not task.may_ask or _is_long(found, wish):
                return _in_words(found, others)
        if not task.may_ask:
            raise NoRoom(f"{wish.model.name} has no room beside the others")
        others = await self._tenants(task.model)
        entry = self._ledger.find(task.model)  # the devices may have told of use unknown until now
        idle_s = min(task.idle_s, entry.idle_s(self._now_s)) if entry else task.idle_s
        return _in_words(await asyncio.to_thread(arranged, others, idle_s), others)

    async def _tenants(self, besides: ModelId | None) -> list[Tenant]:
        """The others as they are used now: the devices are asked."""
        present = [member.peer for member in self._node.view.alive]
        told = uses(await reports(self._node, present))
        for entry in self._ledger.entries:
            use, waiting = told.get(entry.plan.plan_id), self._waiting.count(entry.wish.model)
            if waiting:  # sessions that go on as soon as there is a plan
                told[entry.plan.plan_id] = Use((use.conversations if use else 0) + waiting, 0.0)
        self._ledger.hear(told, self._now_s)
        return self._ledger_tenants(besides, told)

    def _ledger_tenants(self, besides: ModelId | None, told: Mapping[PlanId, Use]) -> list[Tenant]:
        return self._ledger.tenants(besides, self._node.view.epoch, self._now_s, told)

    @property
    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()


def _grouped(tenants: list[Tenant]) -> frozenset[PeerId]:
    """The devices that share a stage of another model: two that lead a turn of one model each, and
    wait for each other in it, would wait for ever.
    """
    return frozenset(
        share.device
        for tenant in tenants
        for stage in tenant.plan.stages
        if len(stage.shares) > 1
        for share in stage.shares
    )


def _is_long(found: Arrangement, wish: Wish) -> bool:
    """Whether a conversation may be as long as wanted."""
    wanted = min(wish.capacity.context, wish.profile.context)
    return found.choice.plan.capacity.context >= wanted


def _in_words(found: Arrangement, tenants: list[Tenant]) -> Arrangement:
    """With what the others give in the plan's reason."""
    before = {tenant.plan.plan_id: tenant.plan.capacity for tenant in tenants}
    words = [
        f"{plan.model_name} keeps room for {conversations_text(plan.capacity)}"
        for plan in found.stay
        if plan.capacity != before[plan.plan_id]
    ]
    if found.leave:
        leave = "leaves" if len(found.leave) == 1 else "leave"
        words.append(f"{list_text([plan.model_name for plan in found.leave])} {leave}")
    if not words:
        return found
    choice = found.choice
    plan = replace(choice.plan, reason=f"{choice.plan.reason} To make room, {list_text(words)}.")
    return replace(found, choice=replace(choice, plan=plan))

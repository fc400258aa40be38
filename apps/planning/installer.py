"""The installer: a device's side of plans. Loads on prepare, switches on commit.

Several plans are in force at once, at most one a model. Preparing or replacing one leaves the
others' conversations alone.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace

from apps.models.library import Library
from apps.planning.loader import Loader, Ready
from apps.planning.messages import Commit, InForce, Known, Prepare, Report, Room, Wish
from apps.planning.standing import Standing
from apps.timeline import Timeline
from mesh.errors import Busy, PlanReplaced, StaleEpoch
from mesh.ids import Epoch, ModelId, PeerId, PlanId
from planner.plan import Plan
from planner.room import with_room
from runtime.cut import cut_of
from runtime.holdings import Holdings
from runtime.pipeline import Pipeline
from runtime.post import Computing, Post
from runtime.steps import Steps

COMMIT_WAIT_S = 5.0  # an owner's wait for a plan that the leader has already called in force


class Installer:
    """Two phases, one plan an epoch, never backwards for a model."""

    def __init__(
        self,
        me: PeerId,
        library: Library,
        holdings: Holdings,
        pipeline: Pipeline,
        steps: Steps,
        timeline: Timeline,
        meet: Callable[[Collection[PeerId]], None] = lambda devices: None,
    ) -> None:
        """`meet` hears of the devices of each plan that comes in force here."""
        self.refused: Counter[str] = Counter()  # prepares and commits, by cause
        self._me = me
        self._holdings = holdings
        self._pipeline = pipeline
        self._steps = steps
        self._timeline = timeline
        self._meet = meet
        self._standing: dict[ModelId, Standing] = {}
        self._loader = Loader(me, library, holdings, self._standing, self._make_room)
        self._ready: Ready | None = None
        self._preparing: asyncio.Task[Ready | None] | None = None
        self._loading: ModelId | None = None  # what is being prepared, or waits for its commit
        self._newest: Epoch | None = None  # in which a prepare or a commit was heard
        self._switched = asyncio.Event()  # a new one after each switch

    def report(self) -> Report:
        """The plans in force as far as this device knows, the one used last first."""
        known = [
            Known(
                one.plan,
                one.wish,
                self._idle_s(one),
                self._pipeline.conversations_of(one.plan.plan_id),
            )
            for one in self._standing.values()
        ]
        return Report(tuple(sorted(known, key=lambda one: one.idle_s)))

    async def prepare(self, request: Prepare, accepted: Epoch | None) -> None:
        """Loads this device's layers of the plan. Raises StaleEpoch, Busy, PlanError or ModelError.

        What is in force of other models, but not as the leader knows it, ends here.
        """
        plan = request.plan
        await self._heard(plan.epoch, accepted)
        self._check_unused(request)
        self._ready, self._loading = None, plan.model
        self._end_all_but({plan.model}, {room.plan for room in request.stay})
        for room in request.stay:
            self._limit(room)
        self._tidy()
        started_s = asyncio.get_running_loop().time()
        before_bytes = self._holdings.size_bytes
        # A task of its own, so that the next plan can end it between two layers.
        preparing = self._preparing = asyncio.create_task(self._loader.load(plan, request.wish))
        try:
            ready = await asyncio.shield(preparing)
        except asyncio.CancelledError:
            if preparing.cancelled():
                raise StaleEpoch("the plan was given up for a newer one") from None
            preparing.cancel()  # whoever asked no longer waits
            raise
        if self._preparing is not preparing:
            raise StaleEpoch("the plan was given up for a newer one")
        self._ready = ready
        load_s = asyncio.get_running_loop().time() - started_s
        loaded_bytes = max(0, self._holdings.size_bytes - before_bytes)
        if loaded_bytes:
            self._timeline.note(
                "loaded",
                f"loaded {loaded_bytes / 1e6:.0f} MB of {plan.model_name} in {load_s:.2f} s",
                bytes=loaded_bytes,
                load_s=load_s,
            )

    async def commit(self, request: Commit, accepted: Epoch | None) -> tuple[PlanId, ...]:
        """Puts exactly these plans in force; returns those in which this device has a share that
        it does not hold ready. Raises StaleEpoch.
        """
        await self._heard(request.epoch, accepted)
        lacks = []
        self._end_all_but({one.plan.model for one in request.in_force}, ())
        for one in request.in_force:
            plan, ready = one.plan, self._ready
            standing = self._standing.get(plan.model)
            if standing is not None and standing.plan.plan_id == plan.plan_id:
                self._limit(Room(plan.plan_id, plan.capacity))
            elif plan.layers_of(self._me) is None:
                self._switch(one, None)
            elif ready is not None and ready.plan.plan_id == plan.plan_id:
                self._switch(one, ready)
            else:
                lacks.append(plan.plan_id)
                self._end_all_but(self._standing.keys() - {plan.model}, ())
        self._ready, self._loading = None, None
        self._tidy()
        return tuple(lacks)

    async def wait_in_force(self, plan: Plan, wish: Wish) -> None:
        """Returns when a plan that the leader calls in force is so on this device too.

        A device without a share in it need not have been reached: it takes the leader's word. For
        one with a share the commit is on its way; raises StaleEpoch when it does not come.
        """
        if plan.layers_of(self._me) is None and self._is_new(plan):
            self._switch(InForce(plan, wish, 0.0), None)
            self._tidy()
        try:
            async with asyncio.timeout(COMMIT_WAIT_S):
                while self._is_new(plan):
                    await self._switched.wait()
        except TimeoutError:
            raise StaleEpoch(f"plan {plan.plan_id[:8]} did not reach this device") from None
        if self._standing[plan.model].plan.plan_id != plan.plan_id:
            raise StaleEpoch(f"plan {plan.plan_id[:8]} was replaced")

    @property
    def has_vocabulary(self) -> bool:
        """Whether a plan in force needs this device for rows of the vocabulary: whose conversations
        these serve it does not know.
        """
        heads = (one.plan.head for one in self._standing.values())
        return any(share.device == self._me for head in heads for share in head)

    async def without_share(self) -> None:
        """Returns when this device has no share of a plan in force."""
        while any(one.plan.layers_of(self._me) is not None for one in self._standing.values()):
            await self._switched.wait()

    # --- switching; nothing here waits ------------------------------------------------------------

    def _switch(self, one: InForce, ready: Ready | None) -> None:
        """From a model's old plan to the new one, in one go; then tells whoever waits for it."""
        plan, idle_s = one.plan, one.idle_s
        old, before = self._standing.get(plan.model), None
        if old is not None:
            idle_s = min(idle_s, self._idle_s(old))
            before = self._pipeline.end(old.plan.plan_id)
        index = plan.stage_of(self._me)
        if ready is not None and plan.head:
            self._pipeline.heads.install(plan, ready.head, ready.traffic.hidden_size)
        if ready is not None and index is not None:
            self._pipeline.install(Post(plan, index, ready.stage, ready.traffic), before)
        else:
            self._pipeline.moving.part(before, None)
        used_s = asyncio.get_running_loop().time() - idle_s
        self._standing[plan.model] = Standing(plan, one.wish, used_s)
        self._steps.interrupt(
            PlanReplaced(f"plan {plan.plan_id[:8]} is in force"),
            lambda leased: leased.model == plan.model and leased.plan_id != plan.plan_id,
        )
        self._timeline.note(
            "plan",
            f"{plan.model_name}: plan of epoch {plan.epoch} in force: {plan.reason}",
            model=plan.model_name,
            plan=plan.plan_id,
            epoch=plan.epoch.counter,
            leader=str(plan.epoch.leader),
            devices=[str(device) for device in plan.devices],
            stages=[[str(s.lead), s.layers.first, s.layers.last] for s in plan.stages],
        )
        self._meet(plan.devices)
        self._tell_switched()

    def _tell_switched(self) -> None:
        """Whoever waits for another plan to be in force, or for one to be over, looks again."""
        self._switched.set()
        self._switched = asyncio.Event()

    def _end_all_but(self, models: Collection[ModelId], plans: Collection[PlanId]) -> None:
        """Ends every plan in force here that is neither among these plans nor of these models."""
        for model, one in list(self._standing.items()):
            if model not in models and one.plan.plan_id not in plans:
                self._end(one.plan, "it is no longer in force")
                del self._standing[model]
                self._tell_switched()

    def _end(self, plan: Plan, why: str) -> Computing | None:
        """Returns what `Pipeline.end` does."""
        words = f"the plan of {plan.model_name} is over: {why}"
        before = self._pipeline.end(plan.plan_id, words)
        self._steps.interrupt(
            StaleEpoch(words),
            lambda leased: leased.plan_id == plan.plan_id,
        )
        return before

    def _limit(self, room: Room) -> None:
        """Gives a plan in force more or less room; its conversations go on."""
        for model, one in self._standing.items():
            if one.plan.plan_id == room.plan and one.plan.capacity != room.capacity:
                plan = with_room(one.plan, one.wish.profile, room.capacity)
                self._standing[model] = replace(one, plan=plan)
                self._pipeline.limit(room.plan, room.capacity)

    def _tidy(self) -> None:
        """Lets go of the weights that no plan has use for: of a model that left, of layers that
        moved, of a plan that was prepared and given up. Caches whose layers moved may stay a while
        in what memory is left.
        """
        for model in list(self._holdings.models):
            standing = self._standing.get(model)
            span = standing.plan.layers_of(self._me) if standing else None
            if model == self._loading:
                continue
            if standing is None or span is None:
                self._holdings.drop(model)
            else:
                self._holdings.release(model, span, cut_of(standing.plan, self._me))
        # For a moment, so caches count as they are, and not as large as they may become.
        self._pipeline.moving.limit(self._holdings.memory_bytes - self._holdings.size_bytes)

    def _make_room(self, model: ModelId) -> None:
        """Ends a model's old plan here before its commit: its sessions wait for the new one, and
        their caches with them.
        """
        old = self._standing.get(model)
        if old is not None:
            before = self._end(old.plan, "this device makes room for the next one")
            self._pipeline.moving.part(before, None)

    # --- what is known ----------------------------------------------------------------------------

    def _is_new(self, plan: Plan) -> bool:
        """Whether the plan is newer than what is in force of its model here."""
        standing = self._standing.get(plan.model)
        return standing is None or standing.plan.epoch < plan.epoch

    def _idle_s(self, one: Standing) -> float:
        if self._pipeline.conversations_of(one.plan.plan_id):
            return 0.0
        used_s = max(one.used_s, self._pipeline.used_s(one.plan.plan_id) or one.used_s)
        return max(0.0, asyncio.get_running_loop().time() - used_s)

    def _check_unused(self, request: Prepare) -> None:
        """Raises Busy where what should make room has come into use since that was decided."""
        count = self._pipeline.conversations_of
        if any(count(leaving) for leaving in request.leave):
            raise Busy("a model that was to leave is in use again")
        before = {one.plan.plan_id: one.plan.capacity for one in self._standing.values()}
        for room in request.stay:
            had, now = before.get(room.plan, room.capacity), room.capacity
            if now.sessions < min(had.sessions, count(room.plan)) or (
                now.context < had.context and count(room.plan)
            ):
                raise Busy("a model that was to keep less room is in use again")

    async def _heard(self, epoch: Epoch, accepted: Epoch | None) -> None:
        """A prepare or commit came: ends a load of a plan that its leader has given up, or a dead
        leader's. Raises StaleEpoch for one of another epoch than ours, or overtaken by a newer one.
        """
        if accepted is None or epoch != accepted:
            self.refused["plan of another epoch"] += 1
            raise StaleEpoch(f"the plan is of epoch {epoch}; this device is in {accepted}")
        self._newest = epoch if self._newest is None else max(epoch, self._newest)
        preparing, self._preparing = self._preparing, None
        if preparing is not None and not preparing.done():
            preparing.cancel()
            await asyncio.wait([preparing])
        if epoch < self._newest:
            self.refused["plan of another epoch"] += 1
            raise StaleEpoch(f"epoch {epoch} is over: {self._newest} has begun")

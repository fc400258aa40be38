"""The installer: a device's side of a plan. Loads on prepare, switches on commit."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from apps.models.library import Library
from apps.planning.messages import Commit, Prepare, Report, Wish
from apps.timeline import Timeline
from mesh.errors import PlanError, StaleEpoch
from mesh.ids import Epoch, PeerId
from planner.plan import Plan
from runtime.holdings import Holdings
from runtime.pipeline import Pipeline
from runtime.post import Post
from runtime.stage import Stage
from runtime.steps import Steps

COMMIT_WAIT_S = 5.0  # an owner's wait for a plan that the leader has already called in force


@dataclass(frozen=True, slots=True)
class _Ready:
    """A prepared plan; `stage` is None on a device without a share."""

    plan: Plan
    stage: Stage | None
    hidden_size: int


class Installer:
    """Two phases, one plan an epoch, never backwards."""

    def __init__(
        self,
        me: PeerId,
        library: Library,
        holdings: Holdings,
        pipeline: Pipeline,
        steps: Steps,
        timeline: Timeline,
    ) -> None:
        self.plan: Plan | None = None  # in force, or the last one that was
        self.wish: Wish | None = None
        self._me = me
        self._library = library
        self._holdings = holdings
        self._pipeline = pipeline
        self._steps = steps
        self._timeline = timeline
        self._ready: _Ready | None = None
        self._preparing: asyncio.Task[_Ready] | None = None
        self._switched = asyncio.Condition()

    @property
    def _is_idle(self) -> bool:
        """Whether no other plan is being prepared here, or waits for its commit."""
        return self._ready is None and (self._preparing is None or self._preparing.done())

    def report(self) -> Report:
        return Report(self.plan, self.wish, self._pipeline.conversations)

    async def prepare(self, request: Prepare, accepted: Epoch | None) -> None:
        """Loads this device's layers of the plan. Raises StaleEpoch, PlanError or ModelError."""
        self._check_epoch(request.plan.epoch, accepted)
        await self._give_up_preparing()
        started_s = asyncio.get_running_loop().time()
        held_bytes = self._holdings.size_bytes
        # A task of its own, so that the next plan can end it between two layers.
        preparing = self._preparing = asyncio.create_task(self._load(request))
        try:
            self._ready = await asyncio.shield(preparing)
        except asyncio.CancelledError:
            if preparing.cancelled():
                raise StaleEpoch("the plan was given up for a newer one") from None
            preparing.cancel()  # whoever asked no longer waits
            raise
        load_s = asyncio.get_running_loop().time() - started_s
        loaded_bytes = max(0, self._holdings.size_bytes - held_bytes)
        if loaded_bytes:
            self._timeline.note(
                "loaded",
                f"loaded {loaded_bytes / 1e6:.0f} MB in {load_s:.2f} s",
                bytes=loaded_bytes,
                load_s=load_s,
            )

    async def commit(self, request: Commit, accepted: Epoch | None) -> None:
        """Puts a prepared plan in force. Raises StaleEpoch, or PlanError if it was not prepared."""
        plan = request.plan
        self._check_epoch(plan.epoch, accepted)
        if self.plan is not None and self.plan.plan_id == plan.plan_id:
            return  # told again: a device without a share, after a newcomer was looked at
        span = plan.layers_of(self._me)
        await self._give_up_preparing()
        ready, self._ready = self._ready, None
        if span is None:
            await self._switch(plan, request.wish, None)
        elif ready is None or ready.plan.plan_id != plan.plan_id or ready.stage is None:
            raise PlanError(f"plan {plan.plan_id[:8]} was not prepared here")
        else:
            index = next(i for i, stage in enumerate(plan.stages) if stage.layers == span)
            post = Post(plan, index, ready.stage, ready.hidden_size)
            await self._switch(plan, request.wish, post)

    async def _switch(self, plan: Plan, wish: Wish, post: Post | None) -> None:
        """From the old plan to the new one, in one go; then tells whoever waits for it."""
        if post is not None:
            self._holdings.release(post.stage.span)
        elif self._is_idle:
            self._holdings.clear()
        self._pipeline.install(post)
        self.plan, self.wish = plan, wish
        self._steps.interrupt(StaleEpoch(f"plan {plan.plan_id[:8]} is in force"))
        self._timeline.note(
            "plan",
            f"plan of epoch {plan.epoch} in force: {plan.reason}",
            devices=[str(device) for device in plan.devices],
            stages=[[str(s.device), s.layers.first, s.layers.last] for s in plan.stages],
        )
        async with self._switched:
            self._switched.notify_all()

    async def wait_in_force(self, plan: Plan, wish: Wish) -> None:
        """Returns when a plan that the leader calls in force is so on this device too.

        A device without a share in it need not have been reached: it takes the leader's word. For
        one with a share the commit is on its way; raises StaleEpoch when it does not come.
        """
        if plan.layers_of(self._me) is None and (self.plan is None or self.plan.epoch < plan.epoch):
            await self._switch(plan, wish, None)
        await self._until_in_force(plan)

    async def _until_in_force(self, plan: Plan) -> None:
        try:
            async with asyncio.timeout(COMMIT_WAIT_S), self._switched:
                await self._switched.wait_for(
                    lambda: self.plan is not None and self.plan.epoch >= plan.epoch
                )
        except TimeoutError:
            raise StaleEpoch(f"plan {plan.plan_id[:8]} did not reach this device") from None
        if self.plan is None or self.plan.plan_id != plan.plan_id:
            raise StaleEpoch(f"plan {plan.plan_id[:8]} was replaced")

    async def _load(self, request: Prepare) -> _Ready:
        plan = request.plan
        span = plan.layers_of(self._me)
        if span is None:
            return _Ready(plan, None, 0)
        checkpoint = await self._library.share(request.wish.model, span)
        hidden_size = checkpoint.spec.hidden_size
        needed = dict(plan.predicted.memory_bytes).get(self._me, 0)
        if needed > self._holdings.memory_bytes:
            raise PlanError(
                f"the plan needs {needed / 1e6:.0f} MB here and "
                f"{self._holdings.memory_bytes / 1e6:.0f} MB may be used"
            )
        profile = checkpoint.profile()
        weights = sum(layer.weight_bytes for layer in profile.layers[span.first : span.last])
        weights += profile.head_bytes if span.last == len(profile.layers) else 0
        stage = await self._holdings.load(checkpoint, span, needed - weights, self._make_room)
        return _Ready(plan, stage, hidden_size)

    def _make_room(self) -> None:
        """Ends the old plan here, before its commit: its sessions wait for the new one."""
        self._ready = None
        self._pipeline.install(None)
        self._steps.interrupt(StaleEpoch("this device makes room for the next plan"))

    async def _give_up_preparing(self) -> None:
        """Ends a load that is under way: of a plan its leader has given up, or a dead leader's."""
        preparing, self._preparing = self._preparing, None
        if preparing is not None and not preparing.done():
            preparing.cancel()
            await asyncio.wait([preparing])

    def _check_epoch(self, epoch: Epoch, accepted: Epoch | None) -> None:
        if accepted is None or epoch != accepted:
            raise StaleEpoch(f"the plan is of epoch {epoch}; this device is in {accepted}")
        if self.plan is not None and epoch < self.plan.epoch:
            raise StaleEpoch(f"epoch {epoch} is older than the plan in force ({self.plan.epoch})")

"""The pipeline on this device: frames in, steps through the worker, frames out.

One pipeline serves every conversation under the plans in force, at most one plan a model. A step
reads downwards: receive its tiles, compute it, in turns with those of others, send what comes out
to the next stage or, from the last one, to the owner. Conversations of one model share a turn; the
models take turns.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

import torch

from mesh.errors import StaleEpoch
from mesh.ids import PeerId, PlanId, SessionId
from mesh.tensor_frame import FrameHeader, TensorFrame
from planner.plan import Capacity
from runtime.complaints import Blame, Complaints, Report
from runtime.heads.desk import HeadDesk
from runtime.intake import Intake
from runtime.logs import Logs
from runtime.meter import Meter
from runtime.moving import Moving
from runtime.outbox import Outbox
from runtime.post import Computing, Post
from runtime.refill import Held
from runtime.session_messages import OpenSession
from runtime.stage import Stage
from runtime.turns import Waiting, next_plan, next_turn, slice_of
from runtime.walks.group import Group
from runtime.walks.sharing import Solitude, group_of
from runtime.work import Work
from runtime.worker import Worker


class Pipeline:
    """This device's stages at work. Everything but the compute runs in the event loop."""

    def __init__(
        self,
        worker: Worker,
        outbox: Outbox,
        report: Report,
        log_bytes: int,
        blame: Blame = lambda plan, device, reason: None,
    ) -> None:
        """`report` tells a session's owner that a step failed here, `blame` that a device of a plan
        computes wrongly; they must not raise. What stages give each other is kept in up to
        `log_bytes`.
        """
        self.refused: Counter[str] = Counter()  # frames dropped, by cause
        self.heads = HeadDesk(worker, outbox, self.refused)
        self.logs = Logs(log_bytes)
        self.meter = Meter(worker.chores, lambda: self._now_s)
        self._worker = worker
        self._outbox = outbox
        self._complaints = Complaints(report, blame)
        self._work: dict[PlanId, Work] = {}
        self.moving = Moving(worker, outbox, self._work, self.refused)
        self._intake = Intake(
            outbox.me,
            self._work,
            self.heads,
            self.moving,
            self.meter,
            self._complaints,
            self.refused,
        )
        self._waiting: list[Waiting] = []  # whole steps, the oldest first
        self._more = asyncio.Event()
        self._turns = 0

    @property
    def conversations(self) -> int:
        """How many conversations have their place here, of all models."""
        return sum(len(work.post.conversations) for work in self._work.values())

    def conversations_of(self, plan: PlanId) -> int:
        """How many of them go through one plan."""
        work = self._work.get(plan)
        return len(work.post.conversations) if work else 0

    def conversations_besides(self, owner: PeerId) -> int:
        """How many of them are others' than this owner's."""
        posts = [work.post for work in self._work.values()]
        opened = [one.opened for post in posts for one in post.conversations.values()]
        return sum(one.owner != owner for one in opened)

    def used_s(self, plan: PlanId) -> float | None:
        """When a conversation of the plan last came or went here, in the loop's time."""
        work = self._work.get(plan)
        return work.used_s if work else None

    async def run(self) -> None:
        """Computes until cancelled."""
        try:
            while True:
                await self._more.wait()
                await self._turn()
                if not self._waiting and not self._is_ordered:
                    self._more.clear()
        finally:  # or the worker would wait for others for a while yet
            self.heads.close()
            for work in self._work.values():
                work.stop()

    def install(self, post: Post, before: Computing | None = None) -> None:
        """Puts a plan in force beside those that are; where its head is cut, after `heads`. It
        goes on from the stage of the model's last plan, as `end` returned it.
        """
        chooser = self.heads.chooser(post.plan.plan_id)
        if chooser is not None and isinstance(post.stage, Stage):
            post.stage.choose_with(chooser)
        group = group_of(post, self._outbox.me, self._outbox.post, self._worker.chores)
        solitude = Solitude(post.plan, post.index)
        self.moving.part(before, post.stage.span if group is None else None)
        if group is None:  # a share of a stage is too little to go on from
            post.stage.follow(before, self.logs)
            post.stage.adopt(self.moving.former)
            post.stage.limit(post.plan.capacity.sessions)
        self._work[post.plan.plan_id] = Work(post, post.plan.capacity, group, solitude)
        self.meter.begin(post.plan.plan_id)

    def end(self, plan: PlanId, why: str = "") -> Computing | None:
        """A plan is over here, and its conversations with it. Returns the stage that this device
        had for itself, from which the next plan's can go on.

        Owners learn of a new plan from the leader; where there is none yet, `why` tells them that
        nobody answers here any more.
        """
        self.heads.end(plan)
        self.meter.end(plan)
        work = self._work.pop(plan, None)
        if work is not None and work.group is not None:
            work.group.abandon(StaleEpoch(why or "the plan is over"))
        for conversation in work.post.conversations.values() if work else ():
            conversation.give_up(StaleEpoch(why or "the plan is over"))
            if why:
                self._complaints.fail(conversation.opened, why, lost=True)
        return work.post.stage if work is not None and work.group is None else None

    def limit(self, plan: PlanId, room: Capacity) -> None:
        """From now on a plan has this room; conversations that have a place keep it."""
        work = self._work.get(plan)
        if work is not None:
            work.limit(room)

    # --- conversations ----------------------------------------------------------------------------

    def open(self, request: OpenSession) -> Held:
        """Makes room for a conversation; returns what of it is known here already.

        Raises StaleEpoch for another plan than the one in force, and what `Work.open` raises.
        """
        work = self._work.get(request.plan)
        if work is None or request.epoch != work.post.plan.epoch:
            raise StaleEpoch(f"plan {request.plan[:8]} of epoch {request.epoch} is not in force")
        return work.open(request, self._now_s)

    def close(
        self, session: SessionId, owner: PeerId, prefix: bytes = b"", *, paused: bool = False
    ) -> None:
        """Frees a conversation's place; one that is not here, or another's, stays as it is."""
        for work in self._work.values():
            work.close(session, owner, prefix, self._now_s, paused=paused)

    def forget(self, peer: PeerId) -> None:
        """A device is gone, as seen from here, and its conversations with it. What others' had on
        their way between the two of us may be lost: their owners, who may see it still, are told.
        """
        self.heads.forget(peer)
        self.moving.forget(peer, StaleEpoch(f"{peer.short} is gone"))
        for work in self._work.values():
            work.forget(peer, self._now_s)
            if peer in work.post.plan.devices:
                for conversation in work.post.conversations.values():
                    words = f"{peer.short} is gone"
                    self._complaints.fail(conversation.opened, words, lost=True)

    @property
    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()

    # --- frames in --------------------------------------------------------------------------------

    def on_frame(self, peer: PeerId, frame: TensorFrame) -> None:
        """Takes one tile. Raises ProtocolError for what no peer of its plan would send."""
        step = self._intake.take(peer, frame)
        if step is None:
            if self._is_ordered:
                self._more.set()
            return
        if step.layers is not None and not step.layers:
            self._finish(self._work[step.header.plan].post, step, step.rows)  # out of the log, on
            return
        self._waiting.append(step)
        self._more.set()

    def on_lost(self, header: FrameHeader, reason: str) -> None:
        """What this stage sent on did not arrive: the next device is gone, as seen from here."""
        self._intake.lose(header, reason)

    @property
    def _is_ordered(self) -> bool:
        """Whether the lead of a stage waits for a turn of ours."""
        return any(work.is_ordered for work in self._work.values())

    # --- compute and send -------------------------------------------------------------------------

    async def _turn(self) -> None:
        """One turn of the worker: one that another device orders, or else for as many conversations
        of one model as wait.
        """
        for work in self._work.values():
            if work.group is not None and work.group.orders:
                await self._follow(work, work.group)
                return
        self._waiting = [step for step in self._waiting if self._intake.is_wanted(step)]
        if not self._waiting:
            return
        last_turns = {plan: work.last_turn for plan, work in self._work.items()}
        plan = next_plan(self._waiting, last_turns)
        work, self._turns = self._work[plan], self._turns + 1
        work.last_turn = self._turns
        waiting = [step for step in self._waiting if step.header.plan == plan]
        turn = next_turn(waiting, self.conversations == 1, work.pace.slice_rows)
        for part, is_shared in work.solitude.parts(turn):
            group = work.group if is_shared else None
            try:
                await self._compute(work, part, group)
            except Exception as error:
                if len(part) == 1:
                    self._give_up(work.post, part[0][0], error)
                    continue
                for one in part:  # which of them it was shows when each is alone
                    try:
                        await self._compute(work, [one], group)
                    except Exception as error_of_one:
                        self._give_up(work.post, one[0], error_of_one)

    async def _follow(self, work: Work, group: Group) -> None:
        """A turn that the lead of a stage has ordered; it has the answers."""
        order = group.orders.pop(0)
        measured = self.meter.turn(work.post.plan.plan_id, order.slices, work.used_s)
        with group.following(order) as walk, measured:
            await self._worker.run(work.post.stage.turn, order.slices, walk)

    async def _compute(
        self, work: Work, turn: Sequence[tuple[Waiting, int]], group: Group | None
    ) -> None:
        slices = [slice_of(step, rows) for step, rows in turn]
        started_s = self._now_s
        with self.meter.turn(work.post.plan.plan_id, slices, work.used_s):
            if group is None:
                outs = await self._worker.run(work.post.stage.turn, slices)
            else:
                with group.leading(slices) as walk:
                    outs = await self._worker.run(work.post.stage.turn, slices, walk)
        work.pace.note(sum(rows for _, rows in turn), self._now_s - started_s)
        for (step, rows), out in zip(turn, outs, strict=True):
            step.done += rows
            if not step.left:
                self._waiting.remove(step)
                self._finish(work.post, step, out)
            elif out is not None:
                step.outs.append(out)

    def _finish(self, post: Post, step: Waiting, out: torch.Tensor | None) -> None:
        """All rows are computed: on to the next stage, or the answer to the owner."""
        conversation = post.conversations.get(step.header.session)
        if conversation is None or post.plan.plan_id not in self._work:
            self.refused["closed conversation"] += 1
        elif out is not None or post.ends(step.header.until):
            rows = [*step.outs, out] if out is not None else []
            header, whole = post.outgoing(step.header, rows)
            target = post.downstream(conversation.opened, step.header.until)
            self._outbox.post(target, header, whole)

    def _give_up(self, post: Post, step: Waiting, error: Exception) -> None:
        """The step failed, the stage lives on."""
        self._waiting.remove(step)
        self._complaints.give_up(post, step, error)

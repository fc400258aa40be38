"""The loader: what a prepare brings into memory, beside what is in force already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from apps.models.library import Library
from apps.planning.messages import Wish
from apps.planning.standing import Standing
from mesh.errors import PlanError
from mesh.ids import ModelId, PeerId
from planner.checks import check_head, check_shares
from planner.memory import device_bytes
from planner.plan import Capacity, Plan
from planner.profile import ModelProfile
from runtime.cut import Cut, cut_of
from runtime.heads.chooser import HeadShare
from runtime.holdings import Holdings
from runtime.post import Computing
from runtime.stage import Stage
from runtime.traffic import Traffic

NO_CACHES: Final = Capacity(0, 0)


@dataclass(frozen=True, slots=True)
class Ready:
    """A prepared plan and this device's stage of it."""

    plan: Plan
    stage: Computing
    traffic: Traffic
    head: HeadShare | None  # where the head is cut, this device's rows of it


class Loader:
    """Loads this device's share of a plan, if its memory has room."""

    def __init__(
        self,
        me: PeerId,
        library: Library,
        holdings: Holdings,
        standing: Mapping[ModelId, Standing],
        make_room: Callable[[ModelId], None],
    ) -> None:
        """`standing` is the installer's own, of every plan in force; `make_room` ends a model's old
        plan where old and new weights do not fit beside each other.
        """
        self._me = me
        self._library = library
        self._holdings = holdings
        self._standing = standing
        self._make_room = make_room

    async def load(self, plan: Plan, wish: Wish) -> Ready | None:
        """The share, ready for the commit; None for a device without one.

        Raises PlanError where the plan takes more than this device has beside the others, or does
        not add up, and ModelError.
        """
        span = plan.layers_of(self._me)
        if span is None:
            return None
        for one in plan.stages:
            check_shares(one, wish.profile)
        check_head(plan.head, wish.profile)
        cut = cut_of(plan, self._me)
        checkpoint = await self._library.share(wish.model, span, cut)
        work, caches = self._work_bytes(plan, checkpoint.profile()), self._cache_bytes(plan.model)
        self._check_room(plan, checkpoint.profile(self._holdings.device), work, caches)
        stage = await self._holdings.load(
            checkpoint, span, work + caches, lambda: self._make_room(plan.model), cut
        )
        return Ready(plan, stage, checkpoint.traffic, self._head(stage, cut))

    def _work_bytes(self, plan: Plan, profile: ModelProfile) -> int:
        """What the plan takes here beside weights. It counts those as processors hold them; what
        they weigh here counts instead.
        """
        predicted = dict(plan.predicted.memory_bytes).get(self._me, 0)
        return predicted - device_bytes(profile, plan, self._me, NO_CACHES)

    def _cache_bytes(self, model: ModelId) -> int:
        """What all other plans in force take here beside weights."""
        return sum(
            one.held_bytes(self._me, one.plan.capacity) - one.held_bytes(self._me, NO_CACHES)
            for other, one in self._standing.items()
            if other != model
        )

    def _check_room(self, plan: Plan, profile: ModelProfile, work: int, caches: int) -> None:
        """Raises PlanError; `profile` weighs as this device holds it."""
        held = self._holdings.models.items()
        beside = caches + sum(one.size_bytes for model, one in held if model != plan.model)
        needed = work + device_bytes(profile, plan, self._me, NO_CACHES)
        if needed + beside > self._holdings.memory_bytes:
            raise PlanError(
                f"the plan needs {needed / 1e6:.0f} MB here, the other models "
                f"{beside / 1e6:.0f} MB, and {self._holdings.memory_bytes / 1e6:.0f} MB may be used"
            )

    def _head(self, stage: Computing, cut: Cut) -> HeadShare | None:
        """This device's rows of a head that is cut."""
        if not isinstance(stage, Stage) or stage.head is None or not cut.vocab:
            return None
        return HeadShare(stage.head, cut.vocab, self._holdings.device)

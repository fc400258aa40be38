"""The ledger: the plans in force as the leader sees them, at most one a model, and which of them no
longer hold. No clock and no network: times and views are handed in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from math import inf

from apps.planning.messages import InForce, Report, Wish
from mesh.ids import Epoch, ModelId, PeerId, PlanId
from mesh.membership import View
from planner.plan import Plan
from planner.replan import why_replan
from planner.room import MAX_MODELS, Tenant

OPEN_GRACE_S = 5.0  # from a plan that is handed out to the conversation that was to begin under it


@dataclass(slots=True)
class Entry:
    """One model in force."""

    plan: Plan
    wish: Wish
    considered: frozenset[PeerId]  # who was here when it was planned
    as_of: int  # departures seen by then; whoever went later has lost what it held
    used_s: float  # when the model was last used, in the loop's time
    handed_s: float = -inf  # when its plan was last given to the owner of a session
    is_sure: bool = True  # whether its devices are known to hold it ready
    is_leaving: bool = False  # it was to make room, and that was not done to the end
    is_lapsed: bool = False  # no devices can hold it now; planned anew when one comes
    drift: str = ""  # why its prediction no longer holds, until it is planned anew

    def idle_s(self, now_s: float) -> float:
        return max(0.0, now_s - max(self.used_s, self.handed_s))


@dataclass(frozen=True, slots=True)
class Use:
    """What the devices say of one plan's conversations."""

    conversations: int = 0
    idle_s: float = inf


class Ledger:
    """A leader's knowledge, from its election on."""

    def __init__(self) -> None:
        self.departures = 0
        self.shunned: frozenset[PeerId] = frozenset()  # here, but not planned with if avoidable
        self.leaving: frozenset[PeerId] = frozenset()  # here, until plans without them are in force
        self.version = 0  # of what the devices should be told
        self._entries: dict[ModelId, Entry] = {}
        self._departed: dict[PeerId, int] = {}
        # The leader's own epochs, without one of anybody else's in between: from the first to the
        # last of them no device can have followed another leader unnoticed.
        self._term: tuple[Epoch, Epoch] | None = None

    @property
    def entries(self) -> Collection[Entry]:
        return self._entries.values()

    def find(self, model: ModelId) -> Entry | None:
        return self._entries.get(model)

    # --- what happens -----------------------------------------------------------------------------

    def recall(self, reports: Iterable[Report], now_s: float) -> None:
        """Of each model the newest plan that a device knows. All are of another leader's epochs."""
        for known in (known for report in reports for known in report.known):
            used_s = now_s - known.idle_s
            entry = self._entries.get(known.plan.model)
            if entry is None or entry.plan.epoch < known.plan.epoch:
                entry = Entry(
                    known.plan, known.wish, frozenset(known.plan.devices), self.departures, used_s
                )
                self._entries[known.plan.model] = entry
            entry.used_s = max(entry.used_s, used_s)
        newest = sorted(self.entries, key=lambda entry: -entry.used_s)[:MAX_MODELS]
        self._entries = {entry.plan.model: entry for entry in newest}

    def took(self, epoch: Epoch, before: Epoch | None) -> None:
        """The leader took an epoch for a plan; `before` it was in another, perhaps its own."""
        first = self._term[0] if self._term is not None and self._term[1] == before else epoch
        self._term = (first, epoch)

    def left(self, peer: PeerId) -> bool:
        """A device is gone, back or not; whether a plan in force had a share on it."""
        self.departures += 1
        self._departed[peer] = self.departures
        return any(peer in entry.plan.devices for entry in self.entries if not entry.is_lapsed)

    def put(self, entry: Entry) -> None:
        """A plan came in force."""
        self._entries[entry.plan.model] = entry
        self.version += 1

    def resize(self, plan: Plan) -> bool:
        """A plan in force has the room of `plan` from now on; whether that is another than now."""
        entry = self._entries.get(plan.model)
        if entry is None or entry.plan.capacity == plan.capacity:
            return False
        entry.plan = replace(entry.plan, capacity=plan.capacity, predicted=plan.predicted)
        self.version += 1
        return True

    def hear(self, told: Mapping[PlanId, Use], now_s: float) -> None:
        """What the devices say of their use."""
        for entry in self.entries:
            use = told.get(entry.plan.plan_id, Use())
            entry.used_s = max(entry.used_s, now_s - use.idle_s)

    def doubt(self, plans: Collection[PlanId]) -> None:
        """Not all devices of these plans hold them ready."""
        for entry in self.entries:
            if entry.plan.plan_id in plans:
                entry.is_sure = False

    def dismiss(self, plans: Collection[PlanId]) -> None:
        """These are about to leave; should that fail, they are planned anew after all else."""
        for entry in self.entries:
            if entry.plan.plan_id in plans:
                entry.is_sure, entry.is_leaving = False, True

    def recover(self, plans: Collection[PlanId]) -> None:
        """These do not leave after all. Where a device has ended one, it says so the next time."""
        for entry in self.entries:
            if entry.plan.plan_id in plans:
                entry.is_sure, entry.is_leaving = True, False

    def lapse(self, entry: Entry, present: frozenset[PeerId]) -> None:
        """The devices that are here cannot hold it."""
        entry.is_lapsed, entry.considered, entry.as_of = True, present, self.departures

    def remove(self, model: ModelId) -> None:
        """A model leaves."""
        if self._entries.pop(model, None) is not None:
            self.version += 1

    # --- what it means ----------------------------------------------------------------------------

    def is_whole(self, entry: Entry, epoch: Epoch | None) -> bool:
        """Whether every device of the plan still has what it was given; `epoch` is the mesh's."""
        since = self._since(epoch)
        return (
            entry.is_sure
            and not entry.is_lapsed
            and since is not None
            and entry.plan.epoch >= since
            and not self._gone(entry, entry.plan.devices)
        )

    def serving(self, wish: Wish, epoch: Epoch | None) -> Entry | None:
        """The entry whose plan serves the wish right now."""
        entry = self._entries.get(wish.model.model)
        if entry is not None and self.is_whole(entry, epoch) and entry.wish.covers(wish):
            return entry
        return None

    def why(self, entry: Entry, view: View) -> str | None:
        """Why there should be another plan for the model; None when this one is good."""
        names = {member.peer: member.name for member in view.members}
        present = frozenset(member.peer for member in view.alive)
        if not entry.is_lapsed:  # they join once they are calm
            present -= self.shunned - frozenset(entry.plan.devices)
        considered = entry.considered - self._gone(entry, entry.considered)
        if entry.is_lapsed:
            joined = sorted(names[peer] for peer in present - considered)
            return f"{', '.join(joined)} joined" if joined else None
        gone = self._gone(entry, entry.plan.devices)
        why = why_replan(entry.plan, self._since(view.epoch), present - gone, considered, names)
        if why is None and not entry.is_sure:
            return "not all of its devices hold it ready"
        if why is None and (leaving := self.parts_of(entry)):
            verb = "is" if len(leaving) == 1 else "are"
            return f"{', '.join(sorted(names[one] for one in leaving))} {verb} about to leave"
        return why or entry.drift or None

    def parts_of(self, entry: Entry) -> frozenset[PeerId]:
        """The devices of its plan that are about to leave."""
        return frozenset() if entry.is_lapsed else self.leaving & set(entry.plan.devices)

    def is_kept(self, entry: Entry, wish: Wish, plan: Plan, epoch: Epoch | None) -> bool:
        """Whether the plan in force is the chosen one; more room alone installs nothing."""
        old = entry.plan
        return (
            self.is_whole(entry, epoch)
            and entry.wish.model.is_held_like(wish.model)
            and (old.stages, old.head) == (plan.stages, plan.head)
            and old.capacity.context <= plan.capacity.context
        )

    def tenants(
        self, besides: ModelId | None, epoch: Epoch | None, now_s: float, uses: Mapping[PlanId, Use]
    ) -> list[Tenant]:
        """The other models in force, with the conversations that the devices tell of."""
        found = []
        for entry in self.entries:
            if entry.plan.model == besides or entry.is_lapsed:
                continue
            use = uses.get(entry.plan.plan_id, Use())
            conversations = use.conversations
            handed_ago_s = now_s - entry.handed_s
            if handed_ago_s < OPEN_GRACE_S and use.idle_s >= handed_ago_s:
                conversations = max(1, conversations)  # about to begin
            found.append(
                Tenant(
                    entry.plan,
                    entry.wish.profile,
                    conversations,
                    entry.idle_s(now_s),
                    is_broken=not (entry.is_leaving or self.is_whole(entry, epoch)),
                )
            )
        return found

    def in_force(self, now_s: float) -> tuple[InForce, ...]:
        """What the devices are told; broken plans are among it until they are planned anew."""
        return tuple(
            InForce(entry.plan, entry.wish, entry.idle_s(now_s))
            for entry in self.entries
            if not entry.is_lapsed
        )

    def _since(self, epoch: Epoch | None) -> Epoch | None:
        """The first epoch of the term; None once the mesh is in one that the leader did not take
        for a plan.
        """
        return self._term[0] if self._term is not None and self._term[1] == epoch else None

    def _gone(self, entry: Entry, devices: Iterable[PeerId]) -> frozenset[PeerId]:
        return frozenset(one for one in devices if self._departed.get(one, 0) > entry.as_of)


def uses(reports: Iterable[Report]) -> dict[PlanId, Use]:
    """Per plan: the most conversations that a device tells of, and the shortest idleness."""
    found: dict[PlanId, Use] = {}
    for known in (known for report in reports for known in report.known):
        use = found.get(known.plan.plan_id, Use())
        found[known.plan.plan_id] = Use(
            max(use.conversations, known.conversations), min(use.idle_s, known.idle_s)
        )
    return found

"""Room for a model beside those in force: who keeps less of it, who leaves, or who is in the way.

Concessions in the order of what they cost: places for conversations that nobody uses; the length of
conversations, where there are none; the weights of plans that are broken anyway; then models that
nobody uses, the least recently used first. A model that runs a conversation never gives more than
its empty places. Nobody leaves for a model that would not fit even alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from mesh.errors import DoesNotFit, NoRoom
from mesh.ids import PeerId
from planner.candidate import MIN_CONTEXT
from planner.choose import Choice
from planner.memory import placed_bytes
from planner.plan import Capacity, Plan
from planner.profile import Cluster, ModelProfile
from planner.words import list_text

MAX_MODELS = 8  # in force at once: what is known of them all goes into one message

Choose = Callable[[Cluster], Choice]  # for the model that wants room; raises DoesNotFit


@dataclass(frozen=True, slots=True)
class Tenant:
    """Another model in force, and what may be asked of it."""

    plan: Plan
    model: ModelProfile
    conversations: int  # under way, or about to begin
    idle_s: float  # since it was last used
    is_broken: bool = False  # it serves nobody now, and is planned anew after this


@dataclass(frozen=True, slots=True)
class Arrangement:
    """The choice, and what it takes of the others."""

    choice: Choice
    stay: tuple[Plan, ...]  # the others, with the room that they keep
    leave: tuple[Plan, ...] = ()  # in the order in which they were last used
    aside: tuple[Plan, ...] = ()  # broken ones, whose weights make room until they are planned anew


def firm(tenant: Tenant) -> Tenant:
    """The same, of which nothing may be asked."""
    return replace(tenant, conversations=tenant.plan.capacity.sessions, is_broken=False)


def with_room(plan: Plan, model: ModelProfile, room: Capacity) -> Plan:
    """The same plan with another room; its stages do not change."""
    before = placed_bytes(model, plan.stages, plan.head, plan.capacity)
    after = placed_bytes(model, plan.stages, plan.head, room)
    memory = tuple(
        (one, size - before.get(one, 0) + after.get(one, 0))
        for one, size in plan.predicted.memory_bytes
    )
    return replace(plan, capacity=room, predicted=replace(plan.predicted, memory_bytes=memory))


def beside(cluster: Cluster, tenants: Iterable[Tenant]) -> Cluster:
    """The cluster with the memory that the tenants leave. Scratch is taken by one at a time."""
    taken: Counter[PeerId] = Counter()
    for tenant in tenants:
        plan = tenant.plan
        taken.update(placed_bytes(tenant.model, plan.stages, plan.head, plan.capacity))
    devices = tuple(
        replace(one, memory_bytes=max(0, one.memory_bytes - taken[one.device]))
        for one in cluster.devices
    )
    return replace(cluster, devices=devices)


def make_room(
    cluster: Cluster,
    model: ModelProfile,
    wanted: Capacity,
    tenants: Sequence[Tenant],
    choose: Choose,
    idle_s: float = 0.0,
) -> Arrangement:
    """The best plan for `model`, last used `idle_s` ago, with the least taken of the tenants.

    Others give places until one conversation of the wanted length fits, and give length or leave
    only where not even a short one does. Raises DoesNotFit where the model fits nowhere, NoRoom
    where those that are in use, or were used since, keep it out.
    """
    context = min(wanted.context, model.context)
    found = _within(cluster, tenants, choose, context)
    if found is not None:
        return found
    choose(cluster)
    oldest_first = sorted(tenants, key=lambda one: -one.idle_s)
    broken = [one for one in oldest_first if one.is_broken]
    idle = [one for one in oldest_first if not (one.is_broken or one.conversations)]
    givers = [*broken, *(one for one in idle if one.idle_s >= idle_s)]
    for count in range(1, len(givers) + 1):
        found = _within(cluster, _without(tenants, givers[:count]), choose, context)
        if found is not None:
            return _spared(cluster, tenants, givers[:count], choose, context, found)
    raise NoRoom(_in_the_way(model, _without(tenants, givers)))


def _spared(
    cluster: Cluster,
    tenants: Sequence[Tenant],
    givers: list[Tenant],
    choose: Choose,
    context: int,
    found: Arrangement,
) -> Arrangement:
    """Whoever need not go, because those after it made the room, stays."""
    for giver in givers[-2::-1]:
        fewer = [one for one in givers if one is not giver]
        without = _within(cluster, _without(tenants, fewer), choose, context)
        if without is not None:
            givers, found = fewer, without
    return replace(
        found,
        leave=tuple(one.plan for one in givers if not one.is_broken),
        aside=tuple(one.plan for one in givers if one.is_broken),
    )


def _within(
    cluster: Cluster, tenants: Sequence[Tenant], choose: Choose, context: int
) -> Arrangement | None:
    """With all tenants staying, and the least room taken from them: of their empty places until a
    conversation of `context` fits, of the length of theirs only where none fits at all.
    """
    if len(tenants) >= MAX_MODELS:
        return None
    best: Arrangement | None = None
    stay: list[Tenant] = []
    for stay in _less_and_less(list(tenants), _fewer_places):
        found = _beside(cluster, stay, choose)
        if found and (best is None or _length(found) > _length(best)):
            best = found
        if found and _length(found) >= context:
            break
    if best is not None:
        return best
    shorter = (_beside(cluster, less, choose) for less in _less_and_less(stay, _half_as_long))
    return next((found for found in shorter if found), None)


def _beside(cluster: Cluster, stay: Sequence[Tenant], choose: Choose) -> Arrangement | None:
    try:
        return Arrangement(choose(beside(cluster, stay)), tuple(one.plan for one in stay))
    except DoesNotFit:
        return None


def _length(found: Arrangement) -> int:
    return found.choice.plan.capacity.context


def _less_and_less(
    tenants: list[Tenant], give: Callable[[Tenant], Capacity]
) -> Iterator[list[Tenant]]:
    """The tenants as they are, then with what is left when each has given once, and so on."""
    while True:
        yield tenants
        less = [_in_room(tenant, give(tenant)) for tenant in tenants]
        if less == tenants:
            return
        tenants = less


def _fewer_places(tenant: Tenant) -> Capacity:
    """Half of the places, but those in use, and one."""
    room = tenant.plan.capacity
    kept = max(room.sessions // 2, tenant.conversations, 1)
    return Capacity(min(kept, room.sessions), room.context)


def _half_as_long(tenant: Tenant) -> Capacity:
    """Half of the length, where nobody talks, down to that of a short conversation."""
    room = tenant.plan.capacity
    if tenant.conversations:
        return room
    return Capacity(room.sessions, max(room.context // 2, min(MIN_CONTEXT, room.context)))


def _in_room(tenant: Tenant, room: Capacity) -> Tenant:
    if room == tenant.plan.capacity:
        return tenant
    return replace(tenant, plan=with_room(tenant.plan, tenant.model, room))


def _without(tenants: Sequence[Tenant], givers: Sequence[Tenant]) -> list[Tenant]:
    return [one for one in tenants if not any(one is giver for giver in givers)]


def _in_the_way(model: ModelProfile, tenants: Sequence[Tenant]) -> str:
    if len(tenants) >= MAX_MODELS:
        return f"{MAX_MODELS} models are in use; {model.name} can be loaded when one of them is not"
    used = [
        f"{one.plan.model_name} for {one.conversations} conversation"
        f"{'s' if one.conversations > 1 else ''}"
        if one.conversations
        else f"{one.plan.model_name}, which was used last"
        for one in tenants
    ]
    return (
        f"the mesh runs {list_text(used)}, and {model.name} does not fit beside "
        f"{'it' if len(tenants) == 1 else 'them'}; it can be loaded when they end"
    )

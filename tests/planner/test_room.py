"""Room for one model more: what the others give, who leaves, and when the answer is no."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import DoesNotFit, NoRoom
from mesh.ids import ModelId, PeerId, PlanId
from planner.choose import Choice, choose
from planner.memory import held_bytes
from planner.plan import Capacity, Plan
from planner.profile import Cluster, ModelProfile
from planner.room import (
    MAX_MODELS,
    Arrangement,
    Tenant,
    beside,
    firm,
    make_room,
    with_room,
)
from tests.planner.homes import EPOCH, MB, device, lan, model, peer

SCRATCH = 10 * MB
LONG = Capacity(1, 8192)


def named(number: int, of: ModelProfile) -> ModelProfile:
    return replace(of, model=ModelId(f"{number:064x}"), name=f"model{number}")


def small(number: int, weights_mb: int = 40, kv_bytes: int = 0) -> ModelProfile:
    """Two layers and no head: `weights_mb` in all."""
    profile = model(layers=2, weight_bytes=weights_mb * MB // 2, head_bytes=0, kv_bytes=kv_bytes)
    return named(number, profile)


def choosing(of: ModelProfile, wanted: Capacity) -> Callable[[Cluster], Choice]:
    return lambda cluster: choose(cluster, of, wanted, EPOCH, PlanId("b" * 32))


def tenant(
    cluster: Cluster,
    of: ModelProfile,
    wanted: Capacity = LONG,
    *,
    conversations: int = 0,
    idle_s: float = 10.0,
    besides: tuple[Tenant, ...] = (),
    is_broken: bool = False,
) -> Tenant:
    """A model that was planned beside `besides`."""
    chosen = choosing(of, wanted)(beside(cluster, besides)).plan
    named_plan = replace(chosen, plan_id=PlanId(of.model[-32:]))
    return Tenant(named_plan, of, conversations, idle_s, is_broken)


def room(
    cluster: Cluster,
    of: ModelProfile,
    *tenants: Tenant,
    wanted: Capacity = LONG,
    idle_s: float = 0.0,
) -> Arrangement:
    return make_room(cluster, of, wanted, tenants, choosing(of, wanted), idle_s)


def home(memory_mb: int = 110, devices: int = 1) -> Cluster:
    return lan(*(device(n, memory_mb * MB, scratch_bytes=SCRATCH) for n in range(devices)))


def test_two_models_share_a_device_and_its_scratch() -> None:
    """50 MB each and one scratch of 10 MB are 110 MB."""
    first = tenant(home(), small(1, 50))
    found = room(home(), small(2, 50), first)
    assert found.choice.plan.devices == (peer(0),)
    assert found.stay == (first.plan,)
    assert not found.leave


def test_a_second_model_goes_where_there_is_room() -> None:
    first = tenant(home(devices=2), small(1, 90))
    found = room(home(devices=2), small(2, 90), first)
    assert found.choice.plan.devices != first.plan.devices
    assert found.stay == (first.plan,)


def test_empty_places_go_before_anybody_leaves() -> None:
    """A chat model that took all the memory for conversations nobody leads makes way."""
    of = small(1, 20, kv_bytes=1000)  # a conversation of 8192 tokens takes 16.4 MB
    first = tenant(home(), of, Capacity(4, 8192), conversations=1)
    assert first.plan.capacity == Capacity(4, 8192)
    found = room(home(), small(2, 40), first)
    assert not found.leave
    assert found.stay[0].capacity == Capacity(2, 8192), "no more than needed"
    assert found.stay[0].plan_id == first.plan.plan_id


def test_places_in_use_are_never_taken() -> None:
    of = small(1, 20, kv_bytes=1000)
    first = tenant(home(), of, Capacity(4, 8192), conversations=4)
    with pytest.raises(NoRoom, match="model1 for 4 conversations"):
        room(home(), small(2, 40), first)


def test_places_are_given_until_a_conversation_may_be_long() -> None:
    first = tenant(home(), small(1, 20, kv_bytes=1000), Capacity(4, 8192))
    second = small(2, 10, kv_bytes=1000)
    found = room(home(), second, first, wanted=Capacity(2, 8192))
    assert found.choice.plan.capacity.context == 8192
    assert found.stay[0].capacity.sessions == 2


def test_a_shorter_conversation_costs_nobody_his_model() -> None:
    """Models come before room: the idle one stays although the new one gets less than it wants."""
    first = tenant(home(), small(1, 60))
    found = room(home(), small(2, 30, kv_bytes=1000), first)
    assert found.stay == (first.plan,)
    assert found.choice.plan.capacity == Capacity(1, 4096)


def test_a_model_nobody_talks_to_stays_for_shorter_conversations() -> None:
    """Its one place takes all the memory, as that of a chat model on a laptop does."""
    first = tenant(home(), small(1, 60, kv_bytes=2400))  # 39 MB for a conversation of 8192 tokens
    found = room(home(), small(2, 10), first)
    assert found.stay[0].capacity == Capacity(1, 4096)
    with pytest.raises(NoRoom, match="model1 for 1 conversation"):
        room(home(), small(2, 10), replace(first, conversations=1))


def test_a_chat_model_and_a_small_one_run_on_one_laptop() -> None:
    """8 GB, of which 4.2 may be used; 3 B weights with four bits each, and what `up` asks for."""
    laptop = lan(device(0, 4200 * MB, scratch_bytes=128 * MB))
    chat = named(1, model(28, 65 * MB, 190 * MB, kv_bytes=8192, context=131_072))
    little = named(2, model(18, 10 * MB, 90 * MB, kv_bytes=2048, window=512, context=32_768))
    first = tenant(laptop, chat, Capacity(4, 8192))
    found = room(laptop, little, first, wanted=Capacity(4, 8192))
    assert [one.model for one in found.stay] == [chat.model]
    assert found.stay[0].capacity.context >= 4096
    assert found.choice.plan.capacity.context == 8192


def test_the_least_recently_used_leaves() -> None:
    old = tenant(home(), small(1, 50), idle_s=100.0)
    new = tenant(home(), small(2, 50), besides=(old,), idle_s=5.0)
    found = room(home(), small(3, 50), new, old)
    assert found.leave == (old.plan,)
    assert found.stay == (new.plan,)


def test_a_model_in_conversation_stays_though_used_before_the_others() -> None:
    talking = tenant(home(), small(1, 50), idle_s=100.0, conversations=1)
    idle = tenant(home(), small(2, 50), besides=(talking,), idle_s=5.0)
    assert room(home(), small(3, 50), talking, idle).leave == (idle.plan,)


def test_whoever_makes_no_difference_stays() -> None:
    """The oldest lies on a device too small for the new one; only the second oldest leaves."""
    cluster = lan(
        device(0, 30 * MB, scratch_bytes=SCRATCH), device(1, 110 * MB, scratch_bytes=SCRATCH)
    )
    oldest = tenant(cluster, small(1, 100), idle_s=100.0)  # on device 1
    tiny = tenant(cluster, small(2, 20), idle_s=200.0, besides=(oldest,))
    assert (oldest.plan.devices, tiny.plan.devices) == ((peer(1),), (peer(0),))
    found = room(cluster, small(3, 100), oldest, tiny)
    assert found.leave == (oldest.plan,)
    assert found.stay == (tiny.plan,)


def test_nobody_leaves_for_what_fits_nowhere() -> None:
    first = tenant(home(), small(1, 50))
    with pytest.raises(DoesNotFit, match="model2 does not fit: .* short by 200 MB"):
        room(home(), small(2, 300), first)


def test_all_in_use_is_said_by_name() -> None:
    one = tenant(home(), small(1, 50), conversations=1)
    two = tenant(home(), small(2, 50), besides=(one,), conversations=2)
    with pytest.raises(NoRoom) as caught:
        room(home(), small(3, 50), one, two)
    assert str(caught.value) == (
        "the mesh runs model1 for 1 conversation and model2 for 2 conversations, and model3 does "
        "not fit beside them; it can be loaded when they end"
    )


def test_a_broken_plan_is_set_aside_not_evicted() -> None:
    """It lost a device and is planned anew next; meanwhile its weights make room."""
    broken = tenant(home(), small(1, 50), is_broken=True, conversations=3)
    found = room(home(), small(2, 90), broken)
    assert (found.aside, found.leave) == ((broken.plan,), ())


def test_a_model_nobody_waits_for_takes_no_place_from_one_used_since() -> None:
    since = tenant(home(), small(1, 50), idle_s=5.0)
    with pytest.raises(NoRoom, match="model1, which was used last"):
        room(home(), small(2, 90), since, idle_s=60.0)
    before = replace(since, idle_s=90.0)
    assert room(home(), small(2, 90), before, idle_s=60.0).leave == (before.plan,)


def test_the_number_of_models_has_a_limit() -> None:
    cluster = home(10_000)
    tenants = [
        tenant(cluster, small(n, 1), idle_s=float(n), conversations=int(n > 2))
        for n in range(1, MAX_MODELS + 1)
    ]
    assert [one.model for one in room(cluster, small(99, 1), *tenants).leave] == [
        tenants[1].plan.model
    ]
    with pytest.raises(NoRoom, match="8 models are in use"):
        room(cluster, small(99, 1), *map(firm, tenants))


def test_less_room_is_less_memory_to_the_byte() -> None:
    of = small(1, 20, kv_bytes=1000)
    whole = choosing(of, Capacity(4, 8192))(home()).plan
    half = with_room(whole, of, Capacity(2, 8192))
    again = choosing(of, Capacity(2, 8192))(home()).plan
    assert half.predicted.memory_bytes == again.predicted.memory_bytes
    assert with_room(half, of, Capacity(4, 8192)) == whole


# --- whatever the home ----------------------------------------------------------------------------

SIZES = st.sampled_from([10, 30, 60, 90])


@st.composite
def homes(draw: st.DrawFn) -> tuple[Cluster, list[Tenant], ModelProfile, Capacity]:
    """Up to three devices, and models that came one after the other."""
    memory = draw(st.lists(st.sampled_from([40, 80, 160]), min_size=1, max_size=3))
    devices = [device(n, size * MB, scratch_bytes=SCRATCH) for n, size in enumerate(memory)]
    cluster, tenants = lan(*devices), []
    for number in range(draw(st.integers(0, 4))):
        sessions = draw(st.integers(1, 4))
        of = small(number, draw(SIZES), kv_bytes=draw(st.sampled_from([0, 500])))
        try:
            one = tenant(cluster, of, Capacity(sessions, 8192), besides=tuple(tenants))
        except DoesNotFit:
            continue
        in_use = draw(st.integers(0, one.plan.capacity.sessions))
        idle_s = draw(st.floats(1.0, 100.0))
        tenants.append(replace(one, conversations=in_use, idle_s=0.0 if in_use else idle_s))
    wanted = Capacity(draw(st.integers(1, 4)), 8192)
    return cluster, tenants, small(9, draw(SIZES), kv_bytes=500), wanted


def least(one: Tenant) -> Capacity:
    """The room of which nothing more may be asked."""
    length = one.plan.capacity.context if one.conversations else 2048
    return Capacity(max(1, one.conversations), length)


def taken(plans: list[tuple[Plan, ModelProfile]]) -> Counter[PeerId]:
    """Bytes that stay taken on each device, and the scratch of one."""
    found: Counter[PeerId] = Counter()
    for one, of in plans:
        for stage in one.stages:
            found[stage.lead] += held_bytes(of, stage.layers, one.capacity)
    return Counter({who: size + SCRATCH for who, size in found.items()})


@given(homes())
def test_whatever_the_home(
    case: tuple[Cluster, list[Tenant], ModelProfile, Capacity],
) -> None:
    cluster, tenants, of, wanted = case
    fits_alone = True
    try:
        choosing(of, wanted)(cluster)
    except DoesNotFit:
        fits_alone = False
    try:
        found = room(cluster, of, *tenants, wanted=wanted)
    except DoesNotFit:
        assert not fits_alone
        return
    except NoRoom:
        assert fits_alone
        assert any(one.conversations for one in tenants), "only those in use may keep it out"
        return
    assert fits_alone
    by_plan = {one.plan.plan_id: one for one in tenants}
    stay = [(one, by_plan[one.plan_id].model) for one in found.stay]
    used = taken([(found.choice.plan, of), *stay])
    assert all(used[one.device] <= one.memory_bytes for one in cluster.devices)
    assert {one.plan_id for one in (*found.stay, *found.leave)} == by_plan.keys()
    for one in found.leave:
        assert not by_plan[one.plan_id].conversations
    for one in found.stay:
        before = by_plan[one.plan_id]
        assert max(1, before.conversations) <= one.capacity.sessions
        assert one.capacity.sessions <= before.plan.capacity.sessions
        assert one.capacity.context == before.plan.capacity.context or not before.conversations
        assert one.stages == before.plan.stages
    for one in found.leave:  # not one of them could have stayed
        kept = [*(replace(by_plan[o.plan_id], plan=o) for o in found.stay), by_plan[one.plan_id]]
        smallest = [replace(k, plan=with_room(k.plan, k.model, least(k))) for k in kept]
        with pytest.raises(DoesNotFit):
            choosing(of, wanted)(beside(cluster, smallest))

"""From what was seen to what is said: each cause alone, and whatever is seen together."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.doctor.diagnosis import diagnose
from apps.doctor.finding import Level
from apps.doctor.seen import Adapter, Call, Member, Outcome, OwnDevice, Seen, Source
from mesh.ids import Address, PeerId
from mesh.net.overhear import Announced, Heard

ME, ATTIC, SHED = PeerId("a" * 64), PeerId("b" * 64), PeerId("c" * 64)
HERE = Address("192.168.1.10", 8478)
THERE = Address("192.168.1.20", 8478)
FAR = Address("10.9.0.4", 8478)
LOOPBACK = Adapter("lo", ("127.0.0.1/8",), False, "loopback reaches only this machine")
WIFI = Adapter("wlan0", ("192.168.1.10/24",), True)
CABLE = Adapter("eth0", ("10.0.0.5/24",), False)
DOCKER = Adapter("docker0", ("172.17.0.1/16",), False, "a bridge between containers")
IDLE_WIFI = Adapter("wlan0", (), False, "no IPv4 address: its cable is out, or its Wi-Fi is not")
SIX = replace(IDLE_WIFI, has_ipv6=True)
SAID = Announced("192.168.1.20", ATTIC, "attic", "mesh", "1", (THERE,))
MEMBER = Member(ATTIC, "attic", True, THERE)
REACHED = Call(THERE, Source.HEARD, Outcome.MEMBER, ATTIC, "attic")
DEVICE = OwnDevice(ME, "mesh", True, True, "/home/me", 1, 2026, (HERE,), (MEMBER,))
WELL = Seen(DEVICE, (LOOPBACK, WIFI), (Heard("wlan0", True, "", (SAID,)),), (REACHED,))


def device(**fields: object) -> Seen:
    return replace(WELL, device=replace(DEVICE, **fields))


def unmet(**fields: object) -> Seen:
    """Nobody is known yet."""
    nobody = {"calls": (), "heard": (Heard("wlan0", True, "", ()),)}
    return replace(device(members=()), **(nobody | fields))


def called(outcome: Outcome, **fields: object) -> Seen:
    """One address was called, and nothing was announced."""
    call = replace(Call(THERE, Source.ASKED, outcome, text="as the dialer says"), **fields)
    return unmet(calls=(call,), asked=True)


def heard(**fields: object) -> Seen:
    """Somebody announces something, and nobody was called."""
    return unmet(heard=(Heard("wlan0", True, "", (replace(SAID, **fields),)),))


def heard_and_called(outcome: Outcome) -> Seen:
    call = Call(THERE, Source.HEARD, outcome, ATTIC, "attic")
    return replace(heard(), calls=(call,))


CAUSES = [
    (device(tag=None), "no-mesh", "potluck invite"),
    (device(runs=False, answers=False, listens=(), members=()), "no-daemon", "potluck up"),
    (device(answers=False, members=()), "daemon-mute", "start it again"),
    (device(troubles=("mesh-state.json is torn",)), "state", ""),
    (device(taken_port=8478), "port-taken", "--port 0"),
    (device(taken_api_port=8477), "api-port-taken", "--api-port 0"),
    (device(listens=(Address("127.0.0.1", 8478),)), "loopback-only", "potluck up"),
    (device(listens=(Address("192.168.1.99", 8478),)), "address-gone", "start it again"),
    (unmet(adapters=(LOOPBACK,)), "no-interface", "Wi-Fi"),
    (unmet(adapters=(LOOPBACK, DOCKER)), "no-interface", "--interface docker0"),
    (unmet(adapters=(LOOPBACK, SIX)), "ipv6-only", "ip addr add"),
    (unmet(heard=(Heard("wlan0", False, "", ()),)), "multicast-blocked", "5353/udp"),
    (unmet(heard=(Heard("wlan0", False, "forbidden", ()),)), "multicast-forbidden", "5353/udp"),
    (heard(tag="other"), "other-mesh", "potluck invite"),
    (
        replace(heard(tag="old"), device=replace(DEVICE, members=(), old_tags=("old",))),
        "old-secret",
        "keep a member up",
    ),
    (heard(protocol="2"), "other-version", "same version"),
    (heard(peer=ME), "same-identity", "/home/me/device.key"),
    (called(Outcome.OWN_KEY), "same-identity", "/home/me/device.key"),
    (heard_and_called(Outcome.SILENT), "firewall", "there, let it through: sudo ufw"),
    (heard_and_called(Outcome.REFUSED), "refused", "there, let it through: sudo ufw"),
    (called(Outcome.REFUSED), "refused", "there: potluck up"),
    (called(Outcome.SILENT), "unreached", "AP isolation"),
    (called(Outcome.NO_WAY), "unreached", "AP isolation"),
    (called(Outcome.SILENT, address=FAR), "no-way", "--interface NAME"),
    (called(Outcome.NO_WAY, address=FAR), "no-way", "--interface NAME"),
    (called(Outcome.STRANGER), "other-mesh", "potluck invite"),
    (called(Outcome.OTHER_VERSION), "other-version", "same version"),
    (called(Outcome.MUTE), "mute", "there: potluck doctor"),
    (called(Outcome.SAYS_NO), "says-no", "there: potluck doctor"),
    (called(Outcome.NO_NAME), "no-name", "give its address"),
    (called(Outcome.MEMBER, peer=ATTIC), "multicast-lost", "--peer 192.168.1.20:8478"),
    (device(members=(replace(MEMBER, reaches_us=False),)), "one-way", "let it through"),
    (device(members=(replace(MEMBER, is_reached=False),)), "one-way", "there, let it through"),
    (unmet(), "alone", "potluck doctor HOST"),
]


@pytest.mark.parametrize(("seen", "key", "do"), CAUSES, ids=[case[1] for case in CAUSES])
def test_each_cause_is_named_with_what_to_type(seen: Seen, key: str, do: str) -> None:
    found = [one for one in diagnose(seen) if one.key == key]
    assert found, [one.key for one in diagnose(seen)]
    assert found[0].level is Level.PROBLEM
    assert do in found[0].do


def test_where_all_is_well_nothing_else_is_said() -> None:
    (only,) = diagnose(WELL)
    assert (only.key, only.level) == ("meets", Level.WELL)
    assert only.text == "this device meets attic"


def test_docker_chosen_and_the_wifi_not() -> None:
    seen = replace(
        device(listens=(Address("172.17.0.1", 8478),), members=()),
        adapters=(LOOPBACK, DOCKER, WIFI),
        heard=(),
        calls=(),
    )
    (wrong,) = [one for one in diagnose(seen) if one.key == "wrong-interface"]
    assert "docker0 (a bridge between containers), and not wlan0" in wrong.text
    assert wrong.do.endswith("--interface wlan0")


def test_several_networks_and_those_left_out_are_notes() -> None:
    seen = replace(
        device(listens=(HERE, Address("10.0.0.5", 8478))),
        adapters=(LOOPBACK, WIFI, CABLE, DOCKER),
    )
    notes = {one.key: one for one in diagnose(seen) if one.level is Level.NOTE}
    assert "wlan0, eth0" in notes["several-interfaces"].text
    assert "docker0" in notes["left-out"].text
    assert "lo (" not in notes["left-out"].text


def test_what_keeps_others_out_is_a_note_where_some_are_met() -> None:
    other = replace(SAID, peer=SHED, source="192.168.1.30", tag="other")
    seen = replace(WELL, heard=(Heard("wlan0", True, "", (SAID, other)),))
    (stranger,) = [one for one in diagnose(seen) if one.key == "other-mesh"]
    assert stranger.level is Level.NOTE
    no_mdns = replace(WELL, heard=(Heard("wlan0", True, "", ()),))
    assert [one.level for one in diagnose(no_mdns)] == [Level.WELL, Level.NOTE]


def test_a_device_of_earlier_days_that_is_off_is_no_problem() -> None:
    away = Call(FAR, Source.REMEMBERED, Outcome.SILENT, SHED, "shed")
    findings = diagnose(replace(WELL, calls=(REACHED, away)))
    assert [one.level for one in findings] == [Level.WELL, Level.NOTE]
    assert "shed was a member" in findings[1].text


def test_one_of_several_addresses_that_works_is_enough() -> None:
    other = Call(FAR, Source.HEARD, Outcome.SILENT, ATTIC, "attic")
    assert [one.key for one in diagnose(replace(WELL, calls=(REACHED, other)))] == ["meets"]


def test_the_clock_is_named_only_as_what_does_not_matter() -> None:
    findings = diagnose(device(year=1970))
    assert [one.key for one in findings] == ["meets", "clock"]
    assert "keeps no device from another" in findings[1].text


def test_the_own_address_is_this_device_itself() -> None:
    (only,) = diagnose(called(Outcome.OWN_KEY, address=HERE))
    assert (only.key, only.level) == ("itself", Level.NOTE)


hosts = st.sampled_from(["192.168.1.10", "192.168.1.20", "10.9.0.4", "127.0.0.1", "fe80::1"])
addresses = st.builds(Address, hosts, st.integers(1, 65535))
peers = st.sampled_from([ME, ATTIC, SHED])
names = st.sampled_from(["", "attic", "[red]\x1b[2J"])
announcements = st.builds(
    Announced, hosts, peers, names, st.sampled_from(["mesh", "other", ""]),
    st.sampled_from(["1", "2", ""]), st.lists(addresses, max_size=2).map(tuple),
)  # fmt: skip
members = st.builds(
    Member, peers, names, st.booleans(), st.none() | addresses, st.booleans(), st.booleans()
)
devices = st.builds(
    OwnDevice, st.none() | peers, st.none() | st.just("mesh"), st.booleans(), st.booleans(),
    st.just("/home/me"), st.just(1), st.sampled_from([1970, 2026]),
    st.lists(addresses, max_size=2).map(tuple), st.lists(members, max_size=2).map(tuple),
    st.none() | st.just(8478), st.none() | st.just(8477),
)  # fmt: skip
sights = st.builds(
    Seen,
    devices,
    st.lists(st.sampled_from([LOOPBACK, WIFI, CABLE, DOCKER, SIX]), unique=True).map(tuple),
    st.lists(
        st.builds(Heard, st.just("wlan0"), st.booleans(), st.sampled_from(["", "forbidden"]),
                  st.lists(announcements, max_size=3).map(tuple)), max_size=2,
    ).map(tuple),
    st.lists(
        st.builds(Call, addresses, st.sampled_from(Source), st.sampled_from(Outcome),
                  st.none() | peers, names, st.just("as the dialer says")), max_size=3,
    ).map(tuple),
    st.booleans(),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(sights)
def test_whatever_is_seen_something_is_said_and_each_problem_has_a_way_out(seen: Seen) -> None:
    findings = diagnose(seen)
    assert findings
    assert len(set(findings)) == len(findings)
    for one in findings:
        assert one.text
        assert one.do or one.level is not Level.PROBLEM
    levels = [one.level for one in findings]
    assert levels == sorted(levels, key=[Level.PROBLEM, Level.WELL, Level.NOTE].index)

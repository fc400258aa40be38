"""mDNS on 127.0.0.1. Other meshes may be near: tests run side by side share port 5353."""

import asyncio
import contextlib
import os
import secrets
import sys
from pathlib import Path
from typing import Any

import pytest
from zeroconf import IPVersion
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from mesh.ids import Address, PeerId
from mesh.limits import MAX_CANDIDATES, MAX_HINTS_PER_CANDIDATE, PROTOCOL_VERSION
from mesh.net import discovery
from mesh.net.discovery import PAIRING_SERVICE_TYPE, PAIRING_TAG, SERVICE_TYPE, Discovery
from mesh.net.interfaces import SYSFS, Interface

LOOPBACK = [Interface("lo", ("127.0.0.1",))]
DEADLINE_S = 20.0


def some_peer() -> PeerId:
    return PeerId(secrets.token_hex(32))


class Heard:
    """What a Discovery reports, with an event for whoever waits."""

    def __init__(
        self,
        tag: str,
        port: int,
        *,
        protocol: int = PROTOCOL_VERSION,
        sysfs: Path = SYSFS,
        **options: Any,
    ) -> None:
        self.own = some_peer()
        self.hints: list[tuple[Address, PeerId]] = []
        self.behind: list[tuple[Address, PeerId]] = []
        self.others: list[str] = []
        self.troubles: list[str] = []
        self._changed = asyncio.Event()
        self.discovery = Discovery(
            own=self.own,
            name=f"device {port}",
            tag=tag,
            port=port,
            interfaces=LOOPBACK,
            on_hint=lambda address, peer: self._note(self.hints, (address, peer)),
            on_other=lambda text: self._note(self.others, text),
            on_trouble=lambda text: self._note(self.troubles, text),
            protocol=protocol,
            poll_s=0.02,
            sysfs=sysfs,
            on_behind=lambda address, peer: self._note(self.behind, (address, peer)),
            **options,
        )

    def _note(self, where: list, what: object) -> None:
        where.append(what)
        self._changed.set()

    async def until(self, happened) -> None:
        while not happened():
            self._changed.clear()
            await self._changed.wait()


@contextlib.asynccontextmanager
async def running(*devices: Heard):
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        started = [tasks.create_task(device.discovery.run()) for device in devices]
        yield
        for task in started:
            task.cancel()


def a_tag() -> str:
    return secrets.token_hex(8)


async def test_two_devices_of_a_mesh_find_each_other():
    tag = a_tag()
    one, two = Heard(tag, 1001), Heard(tag, 1002)
    async with running(one, two):
        await one.until(lambda: one.hints)
        await two.until(lambda: two.hints)
    assert set(one.hints) == {(Address("127.0.0.1", 1002), two.own)}
    assert set(two.hints) == {(Address("127.0.0.1", 1001), one.own)}


async def test_another_process_is_found():
    tag, peer = a_tag(), some_peer()
    program = (
        "import asyncio; from mesh.net.discovery import *; from mesh.ids import PeerId;"
        f"asyncio.run(Discovery(own=PeerId({str(peer)!r}), name='far', tag={tag!r}, port=1003,"
        "interfaces=[Interface('lo', ('127.0.0.1',))], on_hint=print).run())"
    )
    here = Heard(tag, 1004)
    other = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
    try:
        async with running(here):
            await here.until(lambda: (Address("127.0.0.1", 1003), peer) in here.hints)
    finally:
        other.kill()
        await other.wait()


async def test_another_mesh_and_another_version_are_said_once_and_are_no_hints():
    tag = a_tag()
    here, other_mesh, newer = Heard(tag, 1005), Heard(a_tag(), 1006), Heard(tag, 1007, protocol=9)
    async with running(here, other_mesh, newer):
        await here.until(
            lambda: (
                any("1006" in text and "another mesh" in text for text in here.others)
                and any("1007" in text and "protocol 9" in text for text in here.others)
            )
        )
        await newer.until(
            lambda: any(f"speaks protocol {PROTOCOL_VERSION}" in text for text in newer.others)
        )
    assert len(here.others) == len(set(here.others))
    assert not here.hints
    assert not newer.hints


async def test_a_forbidden_socket_is_one_warning_and_tried_again(monkeypatch, tmp_path):
    tries = asyncio.Semaphore(0)

    def forbidden(**_: object) -> None:
        tries.release()
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(discovery, "AsyncZeroconf", forbidden)
    carrier = fake_loopback(tmp_path)
    here = Heard(a_tag(), 1008, sysfs=tmp_path)
    async with running(here):
        await here.until(lambda: here.troubles)
        for _ in range(2):
            await tries.acquire()
            await replug(carrier, here)
        await tries.acquire()
    assert len(here.troubles) == 1
    assert "--peer HOST:PORT" in here.troubles[0]


def fake_loopback(folder: Path) -> Path:
    (folder / "lo").mkdir()
    carrier = folder / "lo" / "carrier"
    carrier.write_text("1")
    return carrier


async def replug(carrier: Path, device: Heard) -> None:
    """Cable out, until the device has seen it, and in again."""
    looks: list[str] = []
    seen = asyncio.Event()
    state = device.discovery._state

    def looking():
        found = state()
        looks.append(carrier.read_text())
        seen.set()
        return found

    device.discovery._state = looking
    for value in ("0", "1"):
        carrier.write_text(value)  # noqa: ASYNC240 (a few bytes in a temporary folder)
        looks.clear()
        while value not in looks:
            seen.clear()
            await seen.wait()
    device.discovery._state = state


async def test_a_cable_back_in_announces_again(tmp_path):
    tag = a_tag()
    carrier = fake_loopback(tmp_path)
    here, there = Heard(tag, 1009, sysfs=tmp_path), Heard(tag, 1010)
    async with running(here, there):
        await there.until(lambda: there.hints)
        await here.until(lambda: here.hints)
        there.hints.clear()
        here.hints.clear()
        await replug(carrier, here)
        await there.until(lambda: (Address("127.0.0.1", 1009), here.own) in there.hints)
        await here.until(lambda: (Address("127.0.0.1", 1010), there.own) in here.hints)


async def test_announcements_that_lie_are_no_hints():
    tag, good = a_tag(), some_peer()
    here = Heard(tag, 1011)
    right = {"v": str(PROTOCOL_VERSION), "mesh": tag, "id": str(good), "name": "good"}
    lies = [
        ({**right, "id": "nonsense"}, ["127.0.0.1"]),
        ({**right, "id": str(here.own)}, ["127.0.0.1"]),
        ({"v": str(PROTOCOL_VERSION), "mesh": tag}, ["127.0.0.1"]),
        ({**right, "id": str(some_peer())}, ["0.0.0.0", "224.0.0.251"]),  # noqa: S104
        ({**right, "v": "\x1b[2J" * 10, "id": str(some_peer())}, ["127.0.0.1"]),
        (right, [f"127.0.1.{n}" for n in range(1, 10)]),
    ]
    async with running(here):
        async with AsyncZeroconf(interfaces=["127.0.0.1"], ip_version=IPVersion.V4Only) as liar:
            for number, (properties, addresses) in enumerate(lies):
                info = AsyncServiceInfo(
                    SERVICE_TYPE,
                    f"liar-{number}-{os.getpid()}-{tag}.{SERVICE_TYPE}",
                    port=2000,
                    parsed_addresses=addresses,
                    server=f"liar-{number}-{tag}.local.",
                    properties=properties,
                )
                await liar.async_register_service(info, cooperating_responders=True)
            await here.until(lambda: here.hints)
        assert {peer for _, peer in here.hints} == {good}
        assert all(text.isprintable() for text in here.others)
        assert len(here.hints) <= 2 * MAX_HINTS_PER_CANDIDATE


def test_a_flood_of_names_is_dropped_at_the_cap():
    here = Discovery(
        own=some_peer(), name="x", tag="t", port=1, interfaces=LOOPBACK, on_hint=lambda *_: None
    )
    for number in range(3 * MAX_CANDIDATES):
        here._on_service(None, SERVICE_TYPE, f"{number}.x", discovery.ServiceStateChange.Added)
        here._say_other(f"mesh {number}")
    assert here._names.qsize() == MAX_CANDIDATES
    assert len(here._others) == MAX_CANDIDATES


@pytest.mark.parametrize("name", ["", "Ünïcode " * 30])
def test_any_name_of_a_device_fits_its_announcement(name):
    here = Discovery(
        own=some_peer(), name=name, tag="t", port=1, interfaces=LOOPBACK, on_hint=lambda *_: None
    )
    assert len(here._own_service(["127.0.0.1"]).text) < 600


async def test_a_door_is_found_by_who_knows_no_mesh_and_by_nobody_else_and_tells_no_tag():
    tag = a_tag()
    door = Heard(PAIRING_TAG, 1020, service_type=PAIRING_SERVICE_TYPE)
    newcomer = Heard(PAIRING_TAG, 1021, service_type=PAIRING_SERVICE_TYPE, announce=False)
    member = Heard(tag, 1022)
    other = Heard(tag, 1023)
    async with running(door, newcomer, member, other):
        await newcomer.until(lambda: (Address("127.0.0.1", 1020), door.own) in newcomer.hints)
        await member.until(lambda: member.hints)
    assert not any(peer == newcomer.own for _, peer in door.hints), "a newcomer announces nothing"
    assert member.hints[0][1] == other.own
    assert not any("1020" in text for text in member.others), "a door is no other mesh"
    said = door.discovery._own_service(["127.0.0.1"]).decoded_properties
    assert said == {
        "v": str(PROTOCOL_VERSION),
        "mesh": PAIRING_TAG,
        "id": door.own,
        "name": "device 1020",
    }


async def test_a_device_with_an_older_secret_is_heard_and_is_no_hint():
    old, new = a_tag(), a_tag()
    behind, here = Heard(old, 1024), Heard(new, 1025, old_tags=[old])
    async with running(behind, here):
        await here.until(lambda: here.behind)
    assert (Address("127.0.0.1", 1024), behind.own) in here.behind
    assert not here.hints

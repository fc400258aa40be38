"""`potluck doctor` on devices in namespaces, each of them with another reason not to be met."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from apps.bench.lan import Lan, why_not
from mesh.config import StateFolder, write_private
from mesh.identity import Identity
from mesh.ids import Address
from mesh.limits import DEFAULT_PORT, PROTOCOL_VERSION
from mesh.state_store import FileStore, KnownPeer, StoredState
from mesh.trust import MeshSecret

pytestmark = [
    pytest.mark.lan,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("doctor_lan"),
]

SECRET = MeshSecret.new()
HEALTHY, OTHER_MESH, NEWER, DROPS, REJECTS, COPY = range(6)  # who is there
PLAIN, DEAF, GAGGED, APART = range(6, 10)  # who asks
DEVICES = 10
DEADLINE_S = 60.0
Reports = dict[str, dict[str, Any]]
VERSIONS = f"speaks protocol {PROTOCOL_VERSION + 1}, this device {PROTOCOL_VERSION}"


def folder_of(root: Path, device: int, secret: MeshSecret, identity: Identity) -> Path:
    folder = StateFolder.open(root / str(device))
    secret.save(folder)
    write_private(folder.key, identity._key)
    return folder.path


async def nft(lan: Lan, namespace: str, *rules: str) -> None:
    for rule in rules:
        command = ("ip", "netns", "exec", namespace, "nft", rule)
        process = await asyncio.create_subprocess_exec(*command)
        assert await process.wait() == 0, rule


async def drop(lan: Lan, device: int, hook: str, what: str, verdict: str = "drop") -> None:
    chain = f"{{ type filter hook {hook} priority 0; policy accept; }}"
    await nft(
        lan,
        lan.namespace(device),
        "add table inet wall",
        f"add chain inet wall c {chain}",
        f"add rule inet wall c {what} {verdict}",
    )


async def drop_multicast_on_the_way(lan: Lan, device: int) -> None:
    """As an access point does that keeps its devices apart."""
    chain = "{ type filter hook forward priority 0; policy accept; }"
    rules = [f'{side} "p{device}" udp dport 5353 drop' for side in ("iifname", "oifname")]
    await nft(
        lan,
        f"{lan.prefix}-sw",
        "add table bridge quiet",
        f"add chain bridge quiet f {chain}",
        *(f"add rule bridge quiet f ether type ip {rule}" for rule in rules),
    )


async def start_peer(
    lan: Lan, device: int, home: Path, name: str, protocol: int
) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        *(*lan.launcher(device), sys.executable, "-m", "tests.apps.doctor.peer", str(home)),
        *(lan.address(device), "--name", name, "--protocol", str(protocol)),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"up\n"
    return process


async def doctor(lan: Lan, device: int, home: Path, *asked: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *(*lan.launcher(device), sys.executable, "-m", "apps.cli", "doctor", *asked),
        *("--home", str(home), "--json"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, errors = await process.communicate()
    assert said, errors.decode()
    body: dict[str, Any] = json.loads(said)
    assert process.returncode == (0 if body["ok"] else 1)
    return body


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reports(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Reports]:
    """All devices at once, and all questions at once: each takes a few seconds of listening."""
    if reason := why_not():
        pytest.skip(reason)
    root = tmp_path_factory.mktemp("devices")
    own = Identity.generate()
    people = {
        HEALTHY: ("healthy", SECRET, Identity.generate(), PROTOCOL_VERSION),
        OTHER_MESH: ("next door", MeshSecret.new(), Identity.generate(), PROTOCOL_VERSION),
        NEWER: ("newer", SECRET, Identity.generate(), PROTOCOL_VERSION + 1),
        DROPS: ("drops", SECRET, Identity.generate(), PROTOCOL_VERSION),
        REJECTS: ("rejects", SECRET, Identity.generate(), PROTOCOL_VERSION),
        COPY: ("copy", SECRET, own, PROTOCOL_VERSION),
    }
    async with asyncio.timeout(DEADLINE_S), AsyncExitStack() as stack:
        lan = stack.enter_context(Lan(DEVICES))
        await drop(lan, DROPS, "input", f"tcp dport {DEFAULT_PORT}")
        await drop(lan, REJECTS, "input", f"tcp dport {DEFAULT_PORT}", "reject")
        await drop(lan, DEAF, "input", "udp dport 5353")
        await drop(lan, GAGGED, "output", "udp dport 5353")
        await drop_multicast_on_the_way(lan, APART)
        homes = {
            device: folder_of(root, device, secret, identity)
            for device, (_, secret, identity, _) in people.items()
        }
        askers = {device: Identity.generate() for device in (DEAF, GAGGED, APART)} | {PLAIN: own}
        homes |= {
            device: folder_of(root, device, SECRET, identity) for device, identity in askers.items()
        }
        healthy = KnownPeer(
            people[HEALTHY][2].peer, "healthy", Address(lan.address(HEALTHY), DEFAULT_PORT)
        )
        FileStore(homes[APART]).save(StoredState(peers=(healthy,)))
        started = [
            start_peer(lan, device, homes[device], name, protocol)
            for device, (name, _, _, protocol) in people.items()
        ]
        for process in await asyncio.gather(*started):
            stack.push_async_callback(process.wait)
            stack.callback(process.kill)
        asked = {
            "plain": doctor(lan, PLAIN, homes[PLAIN]),
            "deaf": doctor(lan, DEAF, homes[DEAF]),
            "gagged": doctor(lan, GAGGED, homes[GAGGED]),
            "apart": doctor(lan, APART, homes[APART]),
            "nobody": doctor(lan, DEAF, homes[DEAF], "10.77.0.200"),
            "far": doctor(lan, DEAF, homes[DEAF], "10.99.0.1"),
            "healthy": doctor(lan, DEAF, homes[DEAF], lan.address(HEALTHY)),
            "next door": doctor(lan, DEAF, homes[DEAF], lan.address(OTHER_MESH)),
            "newer": doctor(lan, DEAF, homes[DEAF], f"{lan.address(NEWER)}:{DEFAULT_PORT}"),
        }
        bodies = await asyncio.gather(*asked.values())
        yield dict(zip(asked, bodies, strict=True))


def found(report: dict[str, Any], key: str, about: str = "") -> dict[str, Any]:
    """The finding of that cause; fails with all that was found."""
    right = [one for one in report["findings"] if one["key"] == key and about in one["text"]]
    assert right, (key, report["findings"])
    return right[0]


async def test_a_device_that_hears_everybody_says_what_is_wrong_with_each(
    reports: Reports,
) -> None:
    plain = reports["plain"]
    assert "healthy" in found(plain, "meets")["text"]
    found(plain, "other-mesh", "next door (10.77.0.2)")
    found(plain, "other-version", f"newer (10.77.0.3) {VERSIONS}")
    assert "ufw allow 8478/tcp" in found(plain, "firewall", "drops is on")["do"]
    found(plain, "refused", "rejects is on, and its port 8478 is refused")
    assert "device.key" in found(plain, "same-identity", "10.77.0.6 has the very key")["do"]
    found(plain, "no-daemon")


async def test_multicast_that_its_own_firewall_drops(reports: Reports) -> None:
    assert "5353/udp" in found(reports["deaf"], "multicast-blocked", "on eth0")["do"]
    assert "5353/udp" in found(reports["gagged"], "multicast-forbidden", "on eth0")["do"]


async def test_multicast_that_the_network_drops(reports: Reports) -> None:
    said = found(reports["apart"], "multicast-lost", "healthy answers and is not heard")
    assert said["do"].endswith("potluck up --peer 10.77.0.1:8478")


async def test_an_address_that_is_asked_for(reports: Reports) -> None:
    found(reports["nobody"], "unreached", "10.77.0.200:8478 does not answer")
    found(reports["far"], "no-way", "10.99.0.1:8478 is in none of this device's networks")
    found(reports["healthy"], "meets")
    found(reports["next door"], "other-mesh", "10.77.0.2:8478 is of another mesh")
    found(reports["newer"], "other-version", VERSIONS)

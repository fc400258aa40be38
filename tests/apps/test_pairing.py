"""Three real daemons on loopback, as their people would do it: invite, join, rotate."""

from __future__ import annotations

import asyncio
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from apps.local_mesh import Device
from apps.measure import generate
from mesh.config import StateFolder
from mesh.errors import LinkError, PairingFailed, PotluckError
from mesh.identity import Identity
from mesh.ids import Address
from mesh.keyring import Keyring
from mesh.limits import MAX_CONTROL_BYTES
from mesh.net.control import CONTROL_ROUTE
from mesh.net.dialer import Dialer
from mesh.net.pairing_door import call_at_door
from mesh.trust import MeshSecret, MeshTrust
from tests.apps.conftest import LAYERS
from tests.runtime.tiny_model import write_tiny_gemma

# One at a time: a newcomer refuses to choose between two devices that show a code.
pytestmark = pytest.mark.xdist_group("pairing")

PROMPT = "the cat"
OPTIONS = ("--port", "0", "--api-port", "0")
TOKENS = 60
PATIENCE_S = 20.0


async def potluck(device: Device, *words: str) -> subprocess.CompletedProcess[str]:
    where = ("--home", str(device.home))
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "apps.cli", *words, *where],
        capture_output=True,
        text=True,
        timeout=60,
    )


async def done(device: Device, *words: str) -> str:
    process = await potluck(device, *words)
    assert process.returncode == 0, process.stderr
    return process.stdout


async def see_each_other(*devices: Device) -> None:
    ids = {device.device_id for device in devices}
    async with asyncio.timeout(PATIENCE_S):
        while True:
            views = [await mesh_of(device) for device in devices]
            here = [
                {one["id"] for one in view["members"] if one["health"] == "alive"} for view in views
            ]
            if all(ids <= seen for seen in here) and len({v["leader"] for v in views}) == 1:
                return
            await asyncio.sleep(0.05)


async def mesh_of(device: Device) -> dict:
    async with device.client() as client:
        return (await client.get("/potluck/status"))["mesh"]


async def test_six_digits_let_a_device_in_and_a_rotation_shuts_one_out(tmp_path: Path) -> None:
    """Tests 19 and 20, end to end."""
    path = tmp_path / "tiny.gguf"
    write_tiny_gemma(path, layers=LAYERS, seed=3)
    model = str(path)
    kitchen, den, phone = (
        Device(name, tmp_path / name, OPTIONS) for name in ("kitchen", "den", "phone")
    )
    try:
        await kitchen.start()

        # The second by six digits and mDNS; a wrong code first.
        shown = await done(kitchen, "invite")
        code = re.search(r"potluck join (\d{6})\n", shown)
        assert code is not None, shown
        wrong = f"{(int(code[1]) + 1) % 1_000_000:06}"
        refused = await potluck(den, "join", wrong, "--interface", "lo")
        assert refused.returncode == 1
        assert "codes differ" in refused.stderr
        assert "2 more tries" in refused.stderr
        assert Keyring.load(StateFolder.open(den.home)) is None
        await den.join(code[1])
        secret = StateFolder.open(den.home).secret
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600

        # The third by the door's address, with a code of its own.
        async with kitchen.client() as client:
            body = await client.post("/potluck/invite")
        words = ("--peer", body["addresses"][0], "--interface", "lo")
        assert "potluck up" in await done(phone, "join", body["code"], *words)
        await asyncio.gather(den.start(), phone.start())
        await see_each_other(kitchen, den, phone)
        undisturbed = (await generate(kitchen, model, PROMPT, TOKENS)).token_ids

        # The phone is lost. A conversation goes on while it is shut out.
        ids = {device.name: device.device_id for device in (kitchen, den)}
        heard = len(phone.events)
        running = asyncio.ensure_future(generate(kitchen, model, PROMPT, TOKENS))
        said = await done(den, "rotate", "--without", "phone")
        assert "could have invited" in said
        assert "Shut out:\n  phone" in said
        assert (await running).token_ids == undisturbed
        await see_each_other(kitchen, den)
        async with asyncio.timeout(PATIENCE_S):
            while not await shut_out(kitchen, phone):
                await asyncio.sleep(0.1)
        assert {(await mesh_of(one))["generation"] for one in (kitchen, den)} == {2}
        assert {one.name: one.device_id for one in (kitchen, den)} == ids

        # It finds nobody again, nor does a new device with the secret that was on its disk.
        await phone.wait_event(
            lambda event: event["event"] == "Refused" and "another mesh" in event["text"],
            after=heard,
            timeout_s=PATIENCE_S,
        )
        stolen = Keyring.load(StateFolder.open(phone.home))
        assert stolen is not None
        thief = Dialer(MeshTrust(Identity.generate(), stolen.secret))
        for member in (await mesh_of(kitchen))["members"]:
            if member["name"] != "phone":
                with pytest.raises(LinkError, match="mesh"):
                    await thief.dial(
                        Address.parse(member["address"]), CONTROL_ROUTE, max_bytes=MAX_CONTROL_BYTES
                    )
        await thief.close()
        assert len((await mesh_of(den))["members"]) == 3
    finally:
        await asyncio.gather(*(one.stop() for one in (kitchen, den, phone)))


async def shut_out(device: Device, lost: Device) -> bool:
    members = (await mesh_of(device))["members"]
    return all(one["health"] != "alive" for one in members if one["id"] == lost.device_id)


async def test_what_a_person_gets_wrong_is_said(tmp_path: Path) -> None:
    kitchen = Device("kitchen", tmp_path / "kitchen", OPTIONS)
    try:
        await kitchen.start()
        async with kitchen.client() as client:
            with pytest.raises(PotluckError, match="no device of this mesh"):
                await client.post("/potluck/rotate", {"without": ["cellar"]})
            for without in ("cellar", [1]):
                with pytest.raises(PotluckError, match="must be a list"):
                    await client.post("/potluck/rotate", {"without": without})
            for generation in (2, 3):
                body = await client.post("/potluck/rotate")
                assert body["generation"] == generation
            long = (await client.post("/potluck/invite", {"long": True}))["code"]
            first = await client.post("/potluck/invite")
            await client.post("/potluck/invite")  # one window at a time: this one counts
        keyring = Keyring.load(StateFolder.open(kitchen.home))
        assert keyring is not None
        assert keyring.secret.join_code == long
        assert len(keyring.old) == 2
        me = Identity.generate()
        with pytest.raises((PairingFailed, LinkError)):
            await call_at_door(me, Address.parse(first["addresses"][0]), first["code"], "den")
    finally:
        await kitchen.stop()


async def test_a_short_code_without_anybody_who_shows_one(tmp_path: Path) -> None:
    den = Device("den", tmp_path / "den")
    nobody = await potluck(den, "join", "123456", "--interface", "lo")
    assert nobody.returncode == 1
    assert "potluck invite" in nobody.stderr
    refused = await potluck(den, "join", "123456", "--peer", "127.0.0.1:9", "--interface", "lo")
    assert refused.returncode == 1
    assert "127.0.0.1:9" in refused.stderr
    Keyring(MeshSecret.new()).save(StateFolder.open(den.home))
    elsewhere = await potluck(den, "join", "123456")
    assert elsewhere.returncode == 2
    assert "potluck leave" in elsewhere.stderr

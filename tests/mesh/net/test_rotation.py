"""A new secret over real links: who gets it and when, who does not, and what goes on meanwhile."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from mesh import config
from mesh.errors import BadId, ConfigError, LinkClosed, LinkError, RotationRefused
from mesh.identity import Identity
from mesh.keyring import Keyring
from mesh.limits import MAX_CONTROL_BYTES
from mesh.net.control import CONTROL_ROUTE
from mesh.net.credentials import Credentials
from mesh.net.dialer import Dialer
from mesh.net.rekey import REKEY_ROUTE, ask_peer
from mesh.rotation import AskPromise, NewSecret, Promise, offer_of
from mesh.trust import MeshSecret, MeshTrust
from tests.mesh.home import header
from tests.mesh.net.members import Member, all_linked, members, until

MAX = MAX_CONTROL_BYTES
EFFECTIVE_S = 2.0  # from the command to the last link below the old secret


def one_mesh(there: list[Member], generation: int) -> bool:
    secrets = {member.secret for member in there}
    return (
        len(secrets) == 1
        and {member.generation for member in there} == {generation}
        and all_linked(there)
    )


async def test_a_lost_device_is_out_within_two_seconds_and_the_rest_go_on(tmp_path: Path) -> None:
    """Test 19: left out by `rotate`, with its old leaf and with a fresh key below the old CA;
    effective <= 2 s; the remaining keep their PeerIds and their sessions.
    """
    async with members(tmp_path, "kitchen", "den", "attic", "phone") as there:
        kitchen, den, attic, phone = there
        peers, old = [one.peer for one in there], kitchen.secret
        strangers = [
            Dialer(MeshTrust(identity, old))
            for identity in (phone.credentials.identity, Identity.generate())
        ]
        held = [await one.dial(kitchen.address, CONTROL_ROUTE, max_bytes=MAX) for one in strangers]
        began_s = time.monotonic()
        done = await kitchen.rotator.rotate([kitchen.rotator.find("phone")])
        for websocket in held:
            await websocket.receive()  # the greeting
            with pytest.raises(LinkClosed):
                await websocket.receive()
        await until(lambda: not any(one.links_below(old) for one in (kitchen, den, attic)))
        closed_s = time.monotonic() - began_s
        print(f"rotation effective after {closed_s * 1000:.0f} ms")
        assert closed_s <= EFFECTIVE_S
        assert set(done.have_it) == {kitchen.peer, den.peer, attic.peer}
        assert done.behind == ()
        assert done.shut_out == (phone.peer,)
        await until(lambda: one_mesh([kitchen, den, attic], 2))
        await until(lambda: not kitchen.node.view.is_here(phone.peer))
        assert [one.peer for one in there] == peers
        assert phone.generation == 1
        for one in (kitchen, den, attic):
            for dialer in strangers:
                for route in (CONTROL_ROUTE, REKEY_ROUTE):
                    with pytest.raises(LinkError, match="mesh"):
                        await dialer.dial(one.address, route, max_bytes=MAX)
        for dialer in strangers:
            await dialer.close()


async def test_tensor_frames_survive_a_rotation_each_once_and_in_order(tmp_path: Path) -> None:
    """Test 19: sessions of the remaining members: what they send arrives, through new links."""
    async with members(tmp_path, "kitchen", "den") as (kitchen, den):
        await kitchen.links.connect(den.peer, den.address)
        await den.links.connect(kitchen.peer, kitchen.address)
        sent = 0

        async def send() -> None:
            nonlocal sent
            while not (den.generation == 2 and one_mesh([kitchen, den], 2) and sent > 200):
                await kitchen.links.send(den.peer, header(8, sent), memoryview(bytes(8)))
                sent += 1
                await asyncio.sleep(0.001)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send())
            await until(lambda: len(den.frames) > 20)
            await kitchen.rotator.rotate()
        await until(lambda: len(den.frames) == sent)
        assert den.frames == list(range(sent))


async def test_a_member_that_was_off_gets_the_new_secret_when_it_is_back(tmp_path: Path) -> None:
    async with members(tmp_path, "kitchen", "den", "attic") as there:
        kitchen, den, attic = there
        await attic.crash()
        await until(lambda: not kitchen.node.view.is_here(attic.peer))
        done = await kitchen.rotator.rotate()
        assert done.behind == (attic.peer,)
        await kitchen.rotator.rotate()  # it is two behind now
        assert kitchen.generation == 3
        await attic.start()
        assert attic.generation == 1
        await until(lambda: one_mesh(there, 3))
        saved = Keyring.load(attic.folder)
        assert saved is not None
        assert saved.secret == kitchen.secret


async def test_a_crash_after_one_member_has_it_is_finished_by_that_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with members(tmp_path, "kitchen", "den", "attic") as there:
        kitchen, den, attic = there
        ask_all = kitchen.rotator._ask_all

        async def only_den(dialer, peers, question):
            if isinstance(question, NewSecret):
                await ask_all(dialer, [den.peer], question)
                raise ConfigError("the plug is pulled")
            return await ask_all(dialer, peers, question)

        monkeypatch.setattr(kitchen.rotator, "_ask_all", only_den)
        with pytest.raises(ConfigError, match="plug"):
            await kitchen.rotator.rotate()
        assert [one.generation for one in there] == [1, 2, 1]
        await kitchen.crash()
        await until(lambda: one_mesh([den, attic], 2))
        await kitchen.start()
        await until(lambda: one_mesh(there, 2))


async def test_a_crash_before_anybody_has_it_leaves_everything_as_it_was(tmp_path: Path) -> None:
    async with members(tmp_path, "kitchen", "den", "attic") as there:
        kitchen, den, attic = there
        kitchen.desk.promise(kitchen.peer)
        for one in (den, attic):
            answer = await ask_peer(kitchen.dialer, one.address, one.peer, AskPromise())
            assert isinstance(answer, Promise)
        await kitchen.crash()
        with pytest.raises(RotationRefused, match="is giving the mesh a new secret"):
            await den.rotator.rotate()
        assert [one.generation for one in there] == [1, 1, 1]
        for one in (den, attic):
            one.desk._until_s = 0.0  # the promise has run out
        await until(lambda: not den.node.view.is_here(kitchen.peer))
        await den.rotator.rotate()
        await kitchen.start()
        await until(lambda: one_mesh(there, 2))


async def test_one_that_slept_in_the_middle_of_its_rotation_makes_no_second_mesh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with members(tmp_path, "kitchen", "den", "attic") as there:
        kitchen, den, attic = there
        hand_out = kitchen.rotator._hand_out

        async def sleepy(keyring, to, *, force):
            for one in (den, attic):
                one.desk._until_s = 0.0  # it slept until the promises had run out
            return await hand_out(keyring, to, force=force)

        monkeypatch.setattr(kitchen.rotator, "_hand_out", sleepy)
        with pytest.raises(RotationRefused, match="promise has run out"):
            await kitchen.rotator.rotate()
        assert [one.generation for one in there] == [1, 1, 1]
        monkeypatch.undo()
        await kitchen.rotator.rotate()
        await until(lambda: one_mesh(there, 2))


async def test_two_who_rotate_at_once_end_in_one_mesh(tmp_path: Path) -> None:
    async with members(tmp_path, "kitchen", "den", "attic") as there:
        results = await asyncio.gather(
            *(one.rotator.rotate() for one in there), return_exceptions=True
        )
        done = [one for one in results if not isinstance(one, BaseException)]
        assert all(isinstance(one, RotationRefused) for one in results if one not in done)
        assert len(done) <= 1
        await until(lambda: one_mesh(there, 1 + len(done)))


async def test_a_minority_refuses_unless_it_is_forced(tmp_path: Path) -> None:
    async with members(tmp_path, "kitchen", "den", "attic") as there:
        kitchen, den, attic = there
        for one in (den, attic):
            await one.crash()
        await until(lambda: len(kitchen.node.view.alive) == 1)
        with pytest.raises(RotationRefused, match="only 1 of this mesh's 3 devices"):
            await kitchen.rotator.rotate()
        assert kitchen.generation == 1
        done = await kitchen.rotator.rotate(force=True)
        assert set(done.behind) == {den.peer, attic.peer}
        await den.start()
        await attic.start()
        await until(lambda: one_mesh(there, 2))


async def test_a_full_disk_keeps_a_member_behind_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Test 24, for the secret in use: the old file is intact, and the device comes after."""
    async with members(tmp_path, "kitchen", "den", "attic") as there:
        kitchen, den, attic = there
        write = config.write_private

        def full(path: Path, data: bytes) -> None:
            if path == attic.folder.secret:
                raise ConfigError("no space left")
            write(path, data)

        monkeypatch.setattr("mesh.keyring.write_private", full)
        done = await kitchen.rotator.rotate()
        assert done.behind == (attic.peer,)
        kept = Keyring.load(attic.folder)
        assert kept is not None
        assert kept.generation == attic.generation == 1
        monkeypatch.undo()
        await until(lambda: one_mesh(there, 2))


async def test_a_stranger_below_the_old_secret_cannot_re_key_a_device(tmp_path: Path) -> None:
    """Only a PeerId that the device knows as a member may, whatever certificate is shown."""
    async with members(tmp_path, "kitchen", "den") as (kitchen, den):
        stranger = Dialer(MeshTrust(Identity.generate(), den.secret))
        offer = offer_of(Keyring(MeshSecret.new(), 9, frozenset((den.peer,))), in_force=True)
        with pytest.raises(LinkClosed, match="does not know the caller"):
            await ask_peer(stranger, den.address, den.peer, offer)
        await stranger.close()
        assert den.generation == 1
        assert kitchen.linked(den)


async def test_nonsense_on_the_re_key_link_closes_it_and_changes_nothing(tmp_path: Path) -> None:
    async with members(tmp_path, "kitchen", "den") as (kitchen, den):
        for said in (b"", b"\xc1", b"\x92\xa5Taken\x91\x02"):
            websocket = await kitchen.dialer.dial(
                den.address, REKEY_ROUTE, max_bytes=MAX_CONTROL_BYTES
            )
            await websocket.send(said)
            with pytest.raises(LinkClosed):
                await websocket.receive()
        assert den.generation == 1
        await kitchen.rotator.rotate()
        await until(lambda: one_mesh([kitchen, den], 2))


async def test_devices_are_named_by_name_or_id(tmp_path: Path) -> None:
    async with members(tmp_path, "kitchen", "den") as (kitchen, den):
        assert kitchen.rotator.find("den") == den.peer
        assert kitchen.rotator.find(den.peer.short) == den.peer
        for text, said in (
            ("cellar", "no device"),
            ("kitchen", "potluck leave"),
            ("", "no device"),
        ):
            with pytest.raises(BadId, match=said):
                kitchen.rotator.find(text)


async def test_a_secret_that_was_forgotten_is_not_written_again(tmp_path: Path) -> None:
    async with members(tmp_path, "kitchen", "den") as (kitchen, den):
        credentials: Credentials = kitchen.credentials
        credentials.erase()
        credentials.forget(den.peer)
        credentials.invited(den.peer)
        assert Keyring.load(kitchen.folder) is None

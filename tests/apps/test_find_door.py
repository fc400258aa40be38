"""Which door a newcomer knocks at: the only one, or none before a person has said which."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from apps import pairing
from mesh.config import StateFolder
from mesh.errors import DialRefused, PairingFailed
from mesh.identity import Identity
from mesh.ids import Address, PeerId
from mesh.keyring import Keyring
from mesh.limits import MAX_DOORS, MAX_HINTS_PER_CANDIDATE
from mesh.net.pairing_talk import Handover
from mesh.state_store import FileStore
from mesh.trust import MeshSecret

ME, KITCHEN, DEN = (PeerId(char * 64) for char in "123")
SECRET = MeshSecret.new()


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Address, PeerId]]:
    """What mDNS tells."""
    told: list[tuple[Address, PeerId]] = []

    @contextlib.asynccontextmanager
    async def listening(own, tag, kind, names, on_hint: Callable, on_text) -> AsyncIterator[None]:
        for address, peer in told:
            on_hint(address, peer)
        yield

    monkeypatch.setattr(pairing, "listening", listening)
    monkeypatch.setattr(pairing, "LOOK_S", 0.1)
    monkeypatch.setattr(pairing, "DOORS_SETTLE_S", 0.01)
    return told


def at(number: int) -> Address:
    return Address("10.0.0.1", 9000 + number)


async def test_the_only_device_with_a_code_is_taken_with_all_its_addresses(announced) -> None:
    announced += [(at(1), KITCHEN), (at(2), KITCHEN), (at(1), KITCHEN)]
    assert await pairing._find_door(ME, ()) == [at(1), at(2)]


async def test_of_several_a_person_has_to_name_one(announced) -> None:
    announced += [(at(1), KITCHEN), (at(2), DEN)]
    with pytest.raises(PairingFailed, match=f"{KITCHEN.short} at .*{DEN.short} at .*--peer"):
        await pairing._find_door(ME, ())


async def test_nobody_who_shows_a_code_is_said_with_what_to_type(announced) -> None:
    with pytest.raises(PairingFailed, match="potluck invite.*--peer"):
        await pairing._find_door(ME, ())


async def test_a_flood_of_doors_is_bounded(announced) -> None:
    announced += [(at(n), PeerId(f"{n:064x}")) for n in range(3 * MAX_DOORS)]
    with pytest.raises(PairingFailed) as failed:
        await pairing._find_door(ME, ())
    assert str(failed.value).count(" at ") == MAX_DOORS
    announced[:] = [(at(n), KITCHEN) for n in range(3 * MAX_HINTS_PER_CANDIDATE)]
    assert len(await pairing._find_door(ME, ())) == MAX_HINTS_PER_CANDIDATE


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> dict[Address, Handover | PairingFailed]:
    """What each address answers; the others refuse."""
    answers: dict[Address, Handover | PairingFailed] = {}

    async def call(identity: Identity, address: Address, code: str, name: str):
        answer = answers.get(address)
        if answer is None:
            raise DialRefused(f"nobody lets devices in at {address}")
        if isinstance(answer, PairingFailed):
            raise answer
        return KITCHEN, answer

    monkeypatch.setattr(pairing, "call_at_door", call)
    return answers


async def test_what_the_member_gives_is_kept_with_where_it_was(door, tmp_path) -> None:
    folder = StateFolder.open(tmp_path)
    door[at(2)] = Handover(SECRET.raw, 7, "kit\x1bchen", 8478)
    found = await pairing.join_by_short_code(folder, "123456", "den", [at(1), at(2)], ())
    assert found.members == [f"kitchen at {at(2)}"]
    assert Keyring.load(folder) == Keyring(SECRET, 7, frozenset((KITCHEN,)))
    (known,) = FileStore(folder.path).load().peers
    assert (known.peer, known.name, known.address) == (
        *(KITCHEN, "kitchen"),
        Address("10.0.0.1", 8478),
    )


async def test_a_wrong_code_is_tried_at_one_door_only(door, tmp_path) -> None:
    door[at(1)] = PairingFailed("the codes differ")
    door[at(2)] = Handover(SECRET.raw, 1, "kitchen", 8478)
    folder = StateFolder.open(tmp_path)
    with pytest.raises(PairingFailed, match="differ"):
        await pairing.join_by_short_code(folder, "123456", "den", [at(1), at(2)], ())
    assert Keyring.load(folder) is None


@pytest.mark.parametrize(("raw", "number"), [(b"short", 1), (bytes(16), 0), (bytes(16), 1 << 40)])
async def test_a_gift_that_is_no_secret_is_not_kept(door, tmp_path, raw, number) -> None:
    door[at(1)] = Handover(raw, number, "kitchen", 0)
    folder = StateFolder.open(tmp_path)
    with pytest.raises(PairingFailed, match="no mesh secret"):
        await pairing.join_by_short_code(folder, "123456", "den", [at(1)], ())
    assert Keyring.load(folder) is None

"""Reliability tests 10 and 24: at every write, a disk that is full, read-only or broken leaves the
old file or the new one, an error in words, and a device that goes on.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from mesh.config import StateFolder, read_private, write_private
from mesh.core import Core
from mesh.effects import Tell
from mesh.election import Ballot
from mesh.errors import ConfigError, ModelError, PotluckError
from mesh.identity import Identity
from mesh.ids import Address, Epoch, ModelId, PeerId
from mesh.messages import Vote, VoteRequest
from mesh.state_store import FILE_NAME, MIRROR_NAME, FileStore, KnownPeer, StoredState
from mesh.trust import MeshSecret
from planner.profile import Curve
from runtime.checkpoints import Model
from runtime.measured import Measured, store, stored
from runtime.stored.layout import FileSize
from runtime.stored.manifest import Manifest, decode_manifest
from runtime.stored.partial import About, PartialModel
from tests.faulty_disk import FAULTS, FaultyDisk, faults

ME, OTHER = PeerId("a" * 64), PeerId("b" * 64)
OLD = StoredState(7, Ballot(Epoch(3, ME), Epoch(4, OTHER)))
NEW = StoredState(8, Ballot(Epoch(9, OTHER), None))


def test_the_mesh_state_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    """Reliability test 24: epoch, votes and incarnation."""
    counted = itertools.count()

    def store() -> FileStore:
        made = FileStore(tmp_path / str(next(counted)))
        made.save(OLD)
        return made

    first = store()
    for disk in faults(lambda: first.save(NEW)):
        victim = store()
        folder = victim._paths[0].parent
        saved = False
        with disk.mounted():
            try:
                victim.save(NEW)
                saved = True
            except ConfigError as error:
                assert "free some space" in str(error)  # noqa: PT017 (either outcome is right)
        found = FileStore(folder).load()
        assert found == NEW or (found == OLD and not saved)
        victim.save(NEW)  # the disk is mended
        assert FileStore(folder).load() == NEW


def test_a_full_disk_still_has_room_for_the_next_epoch(tmp_path: Path) -> None:
    """Reliability test 24: a device whose disk is full follows the next leader all the same."""
    said: list[str] = []
    store = FileStore(tmp_path, said.append)
    store.save(OLD)
    with no_room():
        store.save(NEW)
        assert FileStore(tmp_path).load() == NEW
        crowd = tuple(
            KnownPeer(PeerId(f"{n:064x}"), "shed", Address("10.0.0.2", n + 1)) for n in range(60)
        )
        for _ in range(3):
            with pytest.raises(ConfigError, match="free some space"):
                store.save(StoredState(9, NEW.ballot, crowd))
        assert len(said) == 1
        assert store.trouble == said[0]
    assert FileStore(tmp_path).load() == NEW
    store.save(NEW)
    assert not store.trouble
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("seed", range(10))
def test_a_power_cut_while_a_full_disk_is_written_in_place(tmp_path: Path, seed: int) -> None:
    """Reliability tests 10 and 24: the copy that is torn is not the only one."""
    store = FileStore(tmp_path)
    store.save(OLD)
    with no_room():
        store.save(NEW)
    path = tmp_path / FILE_NAME
    path.write_bytes(torn(path.read_bytes().rstrip(), seed))
    assert FileStore(tmp_path).load() == NEW


@contextmanager
def no_room() -> Iterator[None]:
    """No file can be made; those that are there can be written."""
    real = os.open

    def full(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, flags, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", full)
        yield


@pytest.mark.parametrize("what", ["key", "secret"])
def test_a_key_and_a_secret_are_replaced_whole_or_not_at_all(tmp_path: Path, what: str) -> None:
    """Reliability test 24; and nothing of a secret is left lying about."""
    counted = itertools.count()

    def folder() -> Path:
        made = tmp_path / str(next(counted))
        made.mkdir()
        write_private(made / what, b"old")
        return made

    first = folder()
    for disk in faults(lambda: write_private(first / what, b"new")):
        place = folder()
        saved = False
        with disk.mounted():
            try:
                write_private(place / what, b"new")
                saved = True
            except ConfigError as error:
                assert str(place / what) in str(error)  # noqa: PT017 (either outcome is right)
        found = read_private(place / what)
        assert found == b"new" or (found == b"old" and not saved)
        write_private(place / what, b"new")
        assert read_private(place / what) == b"new"


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_first_start_on_a_disk_that_refuses_is_one_error_in_words(
    tmp_path: Path, fault: int
) -> None:
    """Reliability test 24: no key and no secret that the next start would not know."""
    folder = StateFolder.open(tmp_path)
    with FaultyDisk(0, fault, once=False).mounted():
        with pytest.raises(ConfigError, match=r"device\.key cannot be written"):
            Identity.load(folder)
        with pytest.raises(ConfigError, match=r"mesh\.secret cannot be written"):
            MeshSecret.new().save(folder)
    assert MeshSecret.load(folder) is None
    assert not folder.key.exists()


def a_model() -> tuple[Manifest, list[bytes]]:
    pieces = [random.Random(n).randbytes(50) for n in range(4)]
    digests = b"".join(hashlib.sha256(piece).digest() for piece in pieces)
    files = (FileSize("model.gguf", 200),)
    starts = np.arange(0, 201, 50, dtype=np.int64)
    made = Manifest(b"", ModelId("0" * 64), files, starts, digests, ((0, 1),))
    return decode_manifest(made.encode()), pieces


def test_a_partial_model_never_claims_what_the_disk_has_not(tmp_path: Path) -> None:
    """Reliability test 24: at each write of its making, of its pieces, of its record."""
    manifest, pieces = a_model()
    counted = itertools.count()

    def fill(folder: Path) -> None:
        made = PartialModel.create(folder, manifest, About("house"))
        for index, piece in enumerate(pieces):
            made.add(index, piece)
            made.save()

    for disk in faults(lambda: fill(tmp_path / str(next(counted)))):
        folder = tmp_path / str(next(counted))
        with disk.mounted():
            refused = _refused(partial(fill, folder), ModelError)
        again = None
        if (folder / "manifest").exists():
            again = PartialModel.open(folder)
            for index in range(len(pieces)):
                assert not again.has(index) or again.read(index) == pieces[index]
        if not refused:
            assert again is not None
            assert again.is_whole
        fill(folder)  # the disk is mended: it goes on
        assert PartialModel.open(folder).is_whole


def _refused(action: Callable[[], object], kind: type[PotluckError]) -> bool:
    """Whether it raised an error of ours, with words in it; any other error goes on."""
    try:
        action()
    except kind as error:
        return bool(str(error))
    return False


class Worn:
    """A disk that takes nothing more from a moment on."""

    def __init__(self, folder: Path) -> None:
        self.store = FileStore(folder)
        self.works = True

    def load(self) -> StoredState:
        return self.store.load()

    def save(self, state: StoredState) -> None:
        if not self.works:
            raise ConfigError("the mesh state could not be written: No space left on device")
        self.store.save(state)


def test_a_device_whose_disk_is_full_votes_for_nobody_and_goes_on(tmp_path: Path) -> None:
    """Reliability test 24: what it cannot remember it does not promise."""
    disk = Worn(tmp_path)
    core = Core(ME, "attic", disk, lambda: 0.5, 0.5)
    core.start(0.0, Address("10.0.0.1", 8478))
    disk.works = False
    epoch = core.view.epoch
    for number in range(40):
        now_s = 0.5 + number * 0.25
        core.take_vote_request(OTHER, VoteRequest(50 + number, binding=True), now_s)
        core.tick(now_s, 0.0)
        core.wake(now_s)
    votes = [
        effect.message
        for effect in core.take_effects()
        if isinstance(effect, Tell) and isinstance(effect.message, Vote)
    ]
    assert votes
    assert not any(vote.granted and vote.binding for vote in votes)
    assert core.view.epoch == epoch
    assert not core.view.leads
    disk.works = True
    for number in range(40):
        core.wake(20.0 + number * 0.25)
        core.tick(20.0 + number * 0.25, 0.0)
    assert core.view.leads, "with room on the disk again it would lead, all alone"


def torn(data: bytes, seed: int) -> bytes:
    """As a power cut leaves a file: cut short, or with a part of zeros."""
    rng = random.Random(seed)
    at = rng.randrange(len(data))
    return data[:at] if seed % 2 else data[:at] + bytes(len(data) - at)


@pytest.mark.parametrize("seed", range(20))
def test_a_restart_with_a_torn_file_never_goes_back(tmp_path: Path, seed: int) -> None:
    """Reliability test 10: one of the two copies is torn, whichever; the other one counts."""
    store = FileStore(tmp_path)
    store.save(OLD)
    store.save(NEW)
    path = tmp_path / (FILE_NAME, MIRROR_NAME)[seed // 2 % 2]
    path.write_bytes(torn(path.read_bytes(), seed))
    core = Core(ME, "attic", FileStore(tmp_path), lambda: 0.5, 0.5)
    core.start(0.0, Address("10.0.0.1", 8478))
    assert core.hello().incarnation == NEW.incarnation + 1
    floor = NEW.ballot.floor
    for number in range(80):
        core.tick(number * 0.25, 0.0)
        core.wake(number * 0.25)
    assert core.view.leads
    assert core.view.epoch is not None
    assert core.view.epoch.counter > floor


def test_a_restart_with_both_files_torn_starts_no_second_life(tmp_path: Path) -> None:
    """Reliability test 10: it says so, and takes part in nothing."""
    FileStore(tmp_path).save(NEW)
    for name in (FILE_NAME, MIRROR_NAME):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ConfigError, match="already left"):
        Core(ME, "attic", FileStore(tmp_path), lambda: 0.5, 0.5)


@pytest.mark.parametrize("seed", range(10))
def test_an_old_disk_put_back_is_brought_up_to_date_by_the_others(
    tmp_path: Path, seed: int
) -> None:
    """Reliability test 10: its own epoch is never acted below; higher ones it takes from others."""
    rng = random.Random(seed)
    store = FileStore(tmp_path)
    ballot = Ballot(Epoch(rng.randint(1, 9), OTHER), Epoch(rng.randint(1, 12), ME))
    peers = (KnownPeer(OTHER, "shed", Address("10.0.0.2", 8478)),)
    store.save(StoredState(3, ballot, peers))
    core = Core(ME, "attic", FileStore(tmp_path), lambda: 0.5, 0.5)
    core.start(0.0, Address("10.0.0.1", 8478))
    asked = VoteRequest(rng.randint(1, 14), binding=True)
    core.take_vote_request(OTHER, asked, 2.0)
    (vote,) = [
        effect.message
        for effect in core.take_effects()
        if isinstance(effect, Tell) and isinstance(effect.message, Vote)
    ]
    if asked.counter <= ballot.floor:
        assert not vote.granted
    if vote.granted:
        voted = FileStore(tmp_path).load().ballot.voted
        assert voted == Epoch(asked.counter, OTHER), "granted before it was on the disk"


def test_a_measurement_that_cannot_be_kept_is_made_again(tmp_path: Path) -> None:
    """Reliability test 24: no error at all, and never half a file."""
    checkpoint = cast(Model, SimpleNamespace(model_id=ModelId("1" * 64), precision="int8"))
    curve = Curve(((1, 0.5), (8, 2.0)))
    counted = itertools.count()

    def keep(head_s: float, folder: Path) -> None:
        store(Measured(curve, head_s), checkpoint, folder, 1)

    for disk in faults(lambda: keep(1.0, tmp_path / str(next(counted)))):
        folder = tmp_path / str(next(counted))
        keep(1.0, folder)
        with disk.mounted():
            keep(2.0, folder)
        found = stored(checkpoint, folder, 1)
        assert found is not None
        assert found.head_s in (1.0, 2.0)

import stat
from pathlib import Path

import pytest

from mesh.election import Ballot
from mesh.errors import ConfigError
from mesh.ids import Address, Epoch, PeerId
from mesh.state_store import FILE_NAME, MIRROR_NAME, FileStore, KnownPeer, MemoryStore, StoredState

PEER = PeerId("b" * 64)
STATE = StoredState(
    7, Ballot(Epoch(3, PEER), Epoch(4, PEER)), (KnownPeer(PEER, "shed", Address("10.0.0.7", 8478)),)
)
NEXT = StoredState(8, STATE.ballot, STATE.peers)


def test_a_first_start_remembers_nothing(tmp_path: Path) -> None:
    assert FileStore(tmp_path).load() == StoredState()


def test_what_was_saved_is_there_after_a_restart_and_only_for_us(tmp_path: Path) -> None:
    FileStore(tmp_path / "state").save(STATE)
    assert FileStore(tmp_path / "state").load() == STATE
    for name in (FILE_NAME, MIRROR_NAME):
        assert stat.S_IMODE((tmp_path / "state" / name).stat().st_mode) == 0o600
    assert not list((tmp_path / "state").glob("*.tmp"))


@pytest.mark.parametrize("name", [FILE_NAME, MIRROR_NAME])
@pytest.mark.parametrize("garbage", [b"", b"{", b"\xff\x00", b"[]", b'{"save": 9, "state": [1]}'])
def test_one_torn_copy_costs_nothing(tmp_path: Path, name: str, garbage: bytes) -> None:
    store = FileStore(tmp_path)
    store.save(STATE)
    store.save(NEXT)
    (tmp_path / name).write_bytes(garbage)
    again = FileStore(tmp_path)
    assert again.load() == NEXT
    again.save(STATE)
    assert FileStore(tmp_path).load() == STATE


def test_a_crash_between_the_two_copies_keeps_the_newer(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.save(STATE)
    old = (tmp_path / MIRROR_NAME).read_bytes()
    store.save(NEXT)
    (tmp_path / MIRROR_NAME).write_bytes(old)
    assert FileStore(tmp_path).load() == NEXT


def test_two_torn_copies_are_an_error_for_a_person(tmp_path: Path) -> None:
    FileStore(tmp_path).save(STATE)
    for name in (FILE_NAME, MIRROR_NAME):
        (tmp_path / name).write_bytes(b"{")
    with pytest.raises(ConfigError, match="restore mesh-state.json from a backup"):
        FileStore(tmp_path).load()


def test_a_folder_that_is_a_file_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(ConfigError, match="could not be written"):
        FileStore(tmp_path / "state").save(STATE)


def test_a_failed_save_leaves_the_old_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileStore(tmp_path)
    store.save(STATE)

    def broken(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(ConfigError, match="Input/output error"):
        store.save(NEXT)
    monkeypatch.undo()
    assert FileStore(tmp_path).load() == STATE


def test_memory_remembers_as_long_as_it_lives() -> None:
    store = MemoryStore()
    store.save(STATE)
    assert store.load() == STATE

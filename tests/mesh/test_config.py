import errno
import os
import stat
from pathlib import Path

import pytest

from mesh import config
from mesh.config import FolderLock, StateFolder, erase, read_private, write_private
from mesh.errors import ConfigError


def test_the_folder_is_the_given_one_then_the_environment_then_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    everything = {"POTLUCK_HOME": f"{tmp_path}/p", "XDG_DATA_HOME": f"{tmp_path}/x"}
    assert StateFolder.open(tmp_path / "given", everything).path == tmp_path / "given"
    assert StateFolder.open(None, everything).path == tmp_path / "p"
    del everything["POTLUCK_HOME"]
    assert StateFolder.open(None, everything).path == tmp_path / "x" / "potluck"
    assert StateFolder.open(None, {}).path == tmp_path / "home/.local/share/potluck"


def test_the_folder_is_for_its_owner_alone(tmp_path):
    folder = StateFolder.open(tmp_path / "a" / "b")
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    names = {folder.key.name, folder.secret.name, folder.state.name, folder.daemon.name}
    assert len(names) == 4


def test_a_folder_that_cannot_be_made_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="POTLUCK_HOME"):
        StateFolder.open(tmp_path / "file" / "below")


def test_what_is_written_is_private_and_replaced_whole(tmp_path):
    path = tmp_path / "device.key"
    write_private(path, b"old")
    write_private(path, b"new")
    assert read_private(path) == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["device.key"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_full_or_read_only_disk_leaves_the_old_file(tmp_path, monkeypatch, call, number):
    path = tmp_path / "mesh.secret"
    write_private(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(config.os, call, fail)
    with pytest.raises(ConfigError, match=f"{os.strerror(number)}.*free some space"):
        write_private(path, b"new")
    monkeypatch.undo()
    assert read_private(path) == b"old"
    assert os.listdir(tmp_path) == ["mesh.secret"]


def test_a_folder_that_is_gone_is_an_error_in_words(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"):
        write_private(tmp_path / "gone" / "state.json", b"{}")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777])
def test_a_secret_that_others_may_read_is_refused(tmp_path, mode):
    path = tmp_path / "mesh.secret"
    write_private(path, b"secret")
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"chmod 600 {path}"):
        read_private(path)


def test_what_is_missing_reads_as_none_and_a_folder_is_no_file(tmp_path: Path):
    assert read_private(tmp_path / "nothing") is None
    erase(tmp_path / "nothing")
    with pytest.raises(ConfigError):
        read_private(tmp_path)


def test_what_is_erased_is_gone(tmp_path):
    write_private(tmp_path / "x", b"1")
    erase(tmp_path / "x")
    assert read_private(tmp_path / "x") is None


def test_one_process_a_folder(tmp_path: Path) -> None:
    folder = StateFolder.open(tmp_path)
    lock, other = FolderLock(folder), FolderLock(folder)
    assert not lock.is_taken
    lock.take()
    assert other.is_taken
    with pytest.raises(ConfigError, match="another potluck runs in"):
        other.take()
    lock.free()
    other.take()
    other.free()
    lock.free()

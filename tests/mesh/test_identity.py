import errno
import hashlib
import os
import stat

import pytest

from mesh import config
from mesh.config import StateFolder, write_private
from mesh.errors import ConfigError
from mesh.identity import Identity


def test_a_device_keeps_its_identity(tmp_path):
    folder = StateFolder.open(tmp_path / "a")
    first = Identity.load(folder)
    assert Identity.load(folder) == first
    assert stat.S_IMODE(folder.key.stat().st_mode) == 0o600
    assert Identity.load(StateFolder.open(tmp_path / "b")).peer != first.peer


def test_the_peer_id_is_the_hash_of_the_raw_public_key():
    identity = Identity.generate()
    raw = identity.private_key.public_key().public_bytes_raw()
    assert identity.peer == hashlib.sha256(raw).hexdigest()


def test_a_key_that_others_may_read_is_refused(tmp_path):
    folder = StateFolder.open(tmp_path)
    Identity.load(folder)
    folder.key.chmod(0o644)
    with pytest.raises(ConfigError, match=f"chmod 600 {folder.key}"):
        Identity.load(folder)


def test_a_truncated_key_is_an_error_in_words(tmp_path):
    folder = StateFolder.open(tmp_path)
    write_private(folder.key, b"short")
    with pytest.raises(ConfigError, match="should hold 32 bytes and holds 5"):
        Identity.load(folder)


def test_the_key_is_not_in_the_repr():
    identity = Identity.from_key(bytes(range(32)))
    assert repr(identity) == f"Identity({identity.peer.short})"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_makes_no_half_key(tmp_path, monkeypatch, call):
    """Test 24, for the key: a device whose key cannot be kept does not start with one."""
    folder = StateFolder.open(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(config.os, call, full)
    with pytest.raises(ConfigError, match="free some space"):
        Identity.load(folder)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []
    assert Identity.load(folder) == Identity.load(folder)

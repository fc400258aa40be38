import errno
import json
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import config
from mesh.config import StateFolder, write_private
from mesh.errors import BadId, ConfigError
from mesh.ids import PeerId
from mesh.keyring import Keyring
from mesh.limits import MAX_OLD_SECRETS, MAX_ROSTER
from mesh.trust import MeshSecret

ONE, TWO = PeerId("1" * 64), PeerId("2" * 64)
SECRET = MeshSecret(bytes(range(16)))


def test_it_is_kept_whole_and_private(tmp_path):
    """Test 20: file mode 0600."""
    folder = StateFolder.open(tmp_path)
    assert Keyring.load(folder) is None
    keyring = Keyring(SECRET, 3, frozenset((ONE, TWO)), (MeshSecret.new(), MeshSecret.new()))
    keyring.save(folder)
    assert Keyring.load(folder) == keyring
    assert stat.S_IMODE(folder.secret.stat().st_mode) == 0o600


def test_a_file_with_the_join_code_alone_is_a_keyring(tmp_path):
    folder = StateFolder.open(tmp_path)
    write_private(folder.secret, SECRET.join_code.encode())
    assert Keyring.load(folder) == Keyring(SECRET)


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_full_disk_leaves_the_old_secret(tmp_path, monkeypatch, call, number):
    """Test 24, for the secret and the roster."""
    folder = StateFolder.open(tmp_path)
    Keyring(SECRET).save(folder)

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(config.os, call, fail)
    with pytest.raises(ConfigError, match="free some space"):
        Keyring(MeshSecret.new(), 2).save(folder)
    monkeypatch.undo()
    assert Keyring.load(folder) == Keyring(SECRET)
    assert os.listdir(tmp_path) == [folder.secret.name]


def test_a_keyring_that_others_may_read_is_refused(tmp_path):
    folder = StateFolder.open(tmp_path)
    Keyring(SECRET).save(folder)
    folder.secret.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        Keyring.load(folder)


RIGHT = {"generation": 2, "roster": [ONE], "old": []}


@pytest.mark.parametrize(
    "rest",
    [
        "{",
        "[]",
        "1",
        "null",
        *(json.dumps({**RIGHT, **wrong}) for wrong in (
            {"generation": 0},
            {"generation": "2"},
            {"generation": True},
            {"generation": 1 << 40},
            {"roster": ["kitchen"]},
            {"roster": [1]},
            {"roster": 7},
            {"old": ["ABC"]},
            {"old": {}},
        )),
        '{"generation": 2}',
        "[" * 100_000,
    ],
)  # fmt: skip
def test_a_damaged_keyring_is_an_error_in_words(tmp_path, rest):
    folder = StateFolder.open(tmp_path)
    write_private(folder.secret, f"{SECRET.join_code}\n{rest}".encode())
    with pytest.raises(ConfigError, match="is damaged below its first line"):
        Keyring.load(folder)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_keyring_or_an_error_in_words(tmp_path_factory, data):
    folder = StateFolder.open(tmp_path_factory.mktemp("any"))
    write_private(folder.secret, f"{SECRET.join_code}\n".encode() + data)
    try:
        assert Keyring.load(folder) is not None
    except ConfigError as error:
        assert "damaged" in str(error)  # noqa: PT017 (either outcome is right)


def test_the_next_one_keeps_a_few_old_secrets_newest_first():
    keyring, secrets = Keyring(SECRET), [SECRET]
    for generation in range(2, MAX_OLD_SECRETS + 4):
        secrets.insert(0, MeshSecret.new())
        keyring = keyring.followed_by(secrets[0], generation, (ONE,))
    assert keyring.secret == secrets[0]
    assert keyring.old == tuple(secrets[1 : MAX_OLD_SECRETS + 1])


def test_a_roster_has_an_end():
    many = [PeerId(f"{number:064x}") for number in range(MAX_ROSTER + 5)]
    keyring = Keyring(SECRET).knowing(many)
    assert len(keyring.roster) == MAX_ROSTER
    assert keyring.knowing([ONE]) == keyring
    with pytest.raises(BadId, match="at most"):
        Keyring(SECRET, 1, frozenset(many))

"""What a device must remember over a restart: its incarnation, its ballot, whom it met.

The file is written twice, `mesh-state.json` and then `mesh-state.mirror.json`, each to a temporary
file that is fsynced and renamed, and a save returns only when both are on disk. So either copy
alone holds everything that was ever acted upon, and one torn copy costs nothing. Each is padded to
whole blocks, so that a full disk, which takes no new file, can still be told the next epoch.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mesh.codec import from_plain, to_plain
from mesh.election import Ballot
from mesh.errors import ConfigError, ProtocolError
from mesh.ids import Address, PeerId

FILE_NAME = "mesh-state.json"
MIRROR_NAME = "mesh-state.mirror.json"
_BLOCK_BYTES = 4096
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class KnownPeer:
    """Whom to look for after a restart, and where."""

    peer: PeerId
    name: str
    address: Address


@dataclass(frozen=True, slots=True)
class StoredState:
    incarnation: int = 0
    ballot: Ballot = field(default_factory=Ballot)
    peers: tuple[KnownPeer, ...] = ()


class StateStore(Protocol):
    def load(self) -> StoredState:
        """The last saved state, or the first one; raises ConfigError if it cannot be trusted."""

    def save(self, state: StoredState) -> None:
        """Returns when it is on disk; raises ConfigError if it could not be written."""


class MemoryStore:
    """A disk that lives as long as this object: for tests, and for nodes that may forget."""

    def __init__(self, state: StoredState | None = None) -> None:
        self.state = state or StoredState()

    def load(self) -> StoredState:
        return self.state

    def save(self, state: StoredState) -> None:
        self.state = state


class FileStore:
    """Two copies in `folder`, mode 0600. Saves are small and rare, so they may block the loop."""

    def __init__(self, folder: Path, on_trouble: Callable[[str], None] = lambda text: None) -> None:
        """`on_trouble` is told in words when a save fails, once until one works again."""
        self.trouble = ""  # why the last save failed
        self._on_trouble = on_trouble
        self._paths = (folder / FILE_NAME, folder / MIRROR_NAME)
        self._saves = 0

    def load(self) -> StoredState:
        """Raises ConfigError if both copies are unreadable: a guess could repeat an old epoch."""
        found: list[tuple[int, StoredState]] = []
        problems: list[str] = []
        for path in self._paths:
            try:
                found.append(_parse(path.read_bytes()))
            except FileNotFoundError:
                continue
            except (OSError, ValueError, ProtocolError) as error:
                problems.append(f"{path}: {error}")
        if found:
            self._saves, state = max(found, key=lambda item: item[0])
            return state
        if problems:
            raise ConfigError(
                "the mesh state cannot be read, so this device could act in an epoch it already "
                f"left; restore {self._paths[0].name} from a backup, or delete both copies and "
                f"join the mesh again ({'; '.join(problems)})"
            )
        return StoredState()

    def save(self, state: StoredState) -> None:
        document = {"save": self._saves + 1, "state": to_plain(state)}
        data = json.dumps(document, indent=1).encode()
        data = data.ljust(-(-len(data) // _BLOCK_BYTES) * _BLOCK_BYTES)  # room to grow in place
        try:
            for path in self._paths:
                _write(path, data)
        except OSError as error:
            known, self.trouble = (
                self.trouble,
                (
                    f"the mesh state could not be written to {self._paths[0].parent}: "
                    f"{error.strerror or error}; free some space there, or make it writable; until "
                    "then this device follows no new leader, and leads nobody"
                ),
            )
            if not known:
                self._on_trouble(self.trouble)
            raise ConfigError(self.trouble) from error
        self._saves += 1
        self.trouble = ""


def _parse(data: bytes) -> tuple[int, StoredState]:
    document: Any = json.loads(data)
    if not isinstance(document, Mapping) or type(document.get("save")) is not int:
        raise ValueError("not a saved mesh state")  # noqa: TRY004 (one class for a torn file)
    state: StoredState = from_plain(StoredState, document.get("state"))
    return document["save"], state


def _write(path: Path, data: bytes) -> None:
    """Replaces the file; on a full disk it overwrites it, which takes no new block: should that be
    torn, the other copy is whole.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    try:
        _fill(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), data)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):  # the disk that refused the one may refuse the other
            temporary.unlink(missing_ok=True)
        if error.errno not in _FULL or not path.exists() or path.stat().st_size < len(data):
            raise
        _fill(os.open(path, os.O_WRONLY), data.ljust(path.stat().st_size))
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must survive a power cut
    finally:
        os.close(folder)


def _fill(descriptor: int, data: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())

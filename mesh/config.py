"""A device's own folder: its key, the mesh secret, what it must remember, and how to reach it.

Every file in it is private. A file is replaced whole or not at all, so a full disk or a power cut
leaves the old one; a key that others may read is refused rather than used.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mesh.errors import ConfigError

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700


@dataclass(frozen=True, slots=True)
class StateFolder:
    """Where one device keeps what is its own. Two devices on one machine need two folders."""

    path: Path

    @classmethod
    def open(
        cls, path: Path | str | None = None, environment: Mapping[str, str] = os.environ
    ) -> StateFolder:
        """The given folder, else POTLUCK_HOME, else XDG_DATA_HOME/potluck; made if missing."""
        folder = cls(_choose(path, environment))
        try:
            folder.path.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"the state folder {folder.path} cannot be made: {error.strerror}; "
                "name another in POTLUCK_HOME"
            ) from None
        return folder

    @property
    def key(self) -> Path:
        """The device's Ed25519 private key."""
        return self.path / "device.key"

    @property
    def secret(self) -> Path:
        """The mesh secret, as a join code; missing while the device is in no mesh."""
        return self.path / "mesh.secret"

    @property
    def state(self) -> Path:
        """What must survive a restart: incarnation, epoch, votes."""
        return self.path / "state.json"

    @property
    def daemon(self) -> Path:
        """How the commands reach the running daemon."""
        return self.path / "daemon.json"


class FolderLock:
    """Held by the daemon of a folder while it runs; the kernel frees it with the process."""

    def __init__(self, folder: StateFolder) -> None:
        self._folder = folder
        self._path = folder.path / "lock"
        self._descriptor: int | None = None

    def take(self) -> None:
        """Raises ConfigError when another process holds it."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, PRIVATE_FILE)
        except OSError as error:
            raise ConfigError(f"{self._path} cannot be opened: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise ConfigError(
                f"another potluck runs in {self._path.parent}; end it, or give this one a folder "
                "of its own with --home"
            ) from None
        self._descriptor = descriptor

    def free(self) -> None:
        """Lets go; fine if it is not held."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    @property
    def is_taken(self) -> bool:
        """Whether some process holds it: whether the folder's daemon runs."""
        probe = FolderLock(self._folder)
        try:
            probe.take()
        except ConfigError:
            return True
        probe.free()
        return False


def write_private(path: Path, data: bytes) -> None:
    """Replaces `path` by `data` at once, mode 0600, on disk when this returns. Blocks: uses fsync.

    Raises ConfigError when it cannot; then the old file is as it was.
    """
    temporary: str | None = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:  # mkstemp made it 0600
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        if temporary is not None:
            with suppress(OSError):  # the disk that refused the one may refuse the other
                Path(temporary).unlink(missing_ok=True)
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}; "
            "free some space on that disk, or make it writable, and try again"
        ) from None


def read_private(path: Path) -> bytes | None:
    """The file's bytes, or None where there is none. Refuses what group or others may read."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise ConfigError(
                    f"{path} is open to other users of this machine (mode {mode:04o}, "
                    f"expected 0600); type: chmod 600 {path}"
                )
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None


def erase(path: Path) -> None:
    """Removes the file for good; does nothing where there is none."""
    try:
        path.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        raise ConfigError(f"{path} cannot be removed: {error.strerror}") from None


def _choose(path: Path | str | None, environment: Mapping[str, str]) -> Path:
    if path is not None:
        return Path(path).expanduser()
    if home := environment.get("POTLUCK_HOME"):
        return Path(home).expanduser()
    if data := environment.get("XDG_DATA_HOME"):
        return Path(data) / "potluck"
    return Path.home() / ".local" / "share" / "potluck"


def _sync_folder(folder: Path) -> None:
    """A rename is on disk only when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

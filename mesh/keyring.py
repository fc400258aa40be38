"""What a member knows of its mesh: the secret, its generation, for whom it is, and older ones.

On disk as one private file, replaced whole or not at all:

    7Q4M2-9XKCB-...                          the join code; all that a person has to write by hand
    {"generation": 2, "roster": [...], "old": [...]}

The roster names the devices that a next secret is for. It is no gate: whoever knows the secret
comes in, and is in the roster from then on. Old secrets open nothing here; with them this device
reaches members that were off while the secret changed, and hands them the new one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from mesh.config import StateFolder, read_private, write_private
from mesh.errors import BadId, ConfigError
from mesh.ids import PeerId
from mesh.limits import MAX_OLD_SECRETS, MAX_ROSTER
from mesh.trust import MeshSecret

MAX_GENERATION = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class Keyring:
    """`old`: the secrets before this one, newest first. `generation` grows with each rotation."""

    secret: MeshSecret
    generation: int = 1
    roster: frozenset[PeerId] = frozenset()
    old: tuple[MeshSecret, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.generation <= MAX_GENERATION:
            raise BadId(f"a generation lies between 1 and {MAX_GENERATION}; got {self.generation}")
        if len(self.roster) > MAX_ROSTER:
            raise BadId(f"a roster has at most {MAX_ROSTER} devices; got {len(self.roster)}")

    def knowing(self, peers: Iterable[PeerId]) -> Keyring:
        """With these in the roster too; those beyond MAX_ROSTER are not taken in."""
        new = sorted(set(peers) - self.roster)[: MAX_ROSTER - len(self.roster)]
        return replace(self, roster=self.roster | set(new)) if new else self

    def without(self, peer: PeerId) -> Keyring:
        return replace(self, roster=self.roster - {peer})

    def followed_by(self, secret: MeshSecret, generation: int, roster: Iterable[PeerId]) -> Keyring:
        """The next one, which keeps this one's secret among the old."""
        old = (self.secret, *(one for one in self.old if one != self.secret))
        return Keyring(secret, generation, frozenset(roster), old[:MAX_OLD_SECRETS])

    @classmethod
    def load(cls, folder: StateFolder) -> Keyring | None:
        """None while this device is in no mesh; raises ConfigError."""
        secret, data = MeshSecret.load(folder), read_private(folder.secret)
        if secret is None or data is None:
            return None
        rest = data.decode("ascii", errors="replace").partition("\n")[2]
        try:
            return _read(secret, json.loads(rest)) if rest.strip() else cls(secret)
        except (BadId, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(
                f"{folder.secret} is damaged below its first line ({error}); remove what follows "
                "that line, and nothing is lost but who the next secret would be for"
            ) from None

    def save(self, folder: StateFolder) -> None:
        """On disk when this returns. Raises ConfigError; then the old file is as it was."""
        rest = {
            "generation": self.generation,
            "roster": sorted(self.roster),
            "old": [secret.join_code for secret in self.old],
        }
        write_private(folder.secret, f"{self.secret.join_code}\n{json.dumps(rest)}\n".encode())


def _read(secret: MeshSecret, rest: Any) -> Keyring:
    generation = rest["generation"]
    if type(generation) is not int:
        raise BadId(f"a generation is a number; got {str(generation)[:40]!r}")
    return Keyring(
        secret,
        generation,
        frozenset(PeerId.parse(peer) for peer in rest["roster"]),
        tuple(MeshSecret.from_join_code(code) for code in rest["old"][:MAX_OLD_SECRETS]),
    )

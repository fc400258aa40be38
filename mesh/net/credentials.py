"""What this device shows and believes: its keyring on disk, and the TLS of every link, in step."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from mesh.config import StateFolder
from mesh.errors import ConfigError
from mesh.identity import Identity
from mesh.ids import PeerId
from mesh.keyring import Keyring
from mesh.limits import OLD_LINK_GRACE_S
from mesh.trust import MeshSecret, MeshTrust

_log = logging.getLogger(__name__)


class HasTrust(Protocol):
    """A server or dialer, whose next handshakes use the trust it has then."""

    trust: MeshTrust


class Credentials:
    """`users` get the new trust whenever the secret changes; then `on_changed` are called."""

    def __init__(self, identity: Identity, keyring: Keyring, folder: StateFolder) -> None:
        self.identity = identity
        self.keyring = keyring
        self.trust = MeshTrust(identity, keyring.secret)
        self.users: list[HasTrust] = []
        self.on_changed: list[Callable[[], None]] = []
        self._folder = folder
        self._erased = False

    def remember(self, peers: Iterable[PeerId]) -> None:
        """Members that proved to know the secret in force: the next one is for them as well."""
        others = {peer for peer in peers if peer != self.identity.peer}
        self._keep(self.keyring.knowing(others & self.trust.met))

    def invited(self, peer: PeerId) -> None:
        """A newcomer that is being given the secret. Raises ConfigError if that cannot be kept."""
        keyring = self.keyring.knowing([peer])
        self._save(keyring)
        self.keyring = keyring

    def forget(self, peer: PeerId) -> None:
        """A member has left for good: no secret will be for it."""
        self._keep(self.keyring.without(peer))

    def adopt(self, keyring: Keyring) -> None:
        """On disk first, then for every handshake from now on. Links with devices that are not in
        the new roster end at once; the others OLD_LINK_GRACE_S later, when all have the secret.

        Raises ConfigError if it cannot be saved; then nothing has changed.
        """
        self._save(keyring)
        old, self.keyring = self.trust, keyring
        self.trust = MeshTrust(self.identity, keyring.secret)
        for user in self.users:
            user.trust = self.trust
        reason = "the mesh has a new secret"
        old.close_links(reason, keep=keyring.roster)
        asyncio.get_running_loop().call_later(OLD_LINK_GRACE_S, old.retire, reason)
        for changed in self.on_changed:
            changed()

    def erase(self) -> None:
        """This device forgets the mesh; nothing brings the secret back to its disk."""
        self._erased = True
        MeshSecret.erase(self._folder)

    def _save(self, keyring: Keyring) -> None:
        if not self._erased:
            keyring.save(self._folder)

    def _keep(self, keyring: Keyring) -> None:
        """The roster is a help for later; a full disk must not cost the link of today."""
        if keyring == self.keyring:
            return
        try:
            self._save(keyring)
        except ConfigError as error:
            _log.warning("%s", error)
        self.keyring = keyring

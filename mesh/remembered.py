"""What this device keeps on disk of itself and of those it met, as the core uses it."""

from __future__ import annotations

import logging
from dataclasses import replace

from mesh.election import Ballot
from mesh.errors import ConfigError
from mesh.limits import MAX_REMEMBERED
from mesh.membership import Member
from mesh.state_store import KnownPeer, StateStore, StoredState

_log = logging.getLogger(__name__)


class Remembered:
    """`state` is what is on disk. Raises ConfigError if that cannot be trusted."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self.state = store.load()

    def begin(self) -> int:
        """The incarnation of a new run; raises ConfigError if it cannot be made to last."""
        state = replace(self.state, incarnation=self.state.incarnation + 1)
        self._store.save(state)
        self.state = state
        return state.incarnation

    def raise_to(self, incarnation: int) -> bool:
        return self._save(replace(self.state, incarnation=incarnation))

    def vote(self, ballot: Ballot) -> bool:
        return self._save(replace(self.state, ballot=ballot))

    def meet(self, member: Member, *, few: bool) -> None:
        """Where to look for it after a restart; of many devices, the first that were met."""
        if member.address is None:
            return
        known = KnownPeer(member.peer, member.name, member.address)
        if known in self.state.peers:
            return
        others = [peer for peer in self.state.peers if peer.peer != member.peer]
        if few or len(others) < MAX_REMEMBERED:
            self._save(replace(self.state, peers=(known, *others[: MAX_REMEMBERED - 1])))

    def _save(self, state: StoredState) -> bool:
        """False if the disk refuses: then what the state was for must not happen."""
        if state == self.state:
            return True
        try:
            self._store.save(state)
        except ConfigError as error:
            _log.warning("%s", error)
            return False
        self.state = state
        return True

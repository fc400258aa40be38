"""What a node tells the packages above: a closed union, each with its loop time and its reason."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.ids import Address, Epoch, PeerId
from mesh.membership import View


@dataclass(frozen=True, slots=True)
class PeerJoined:
    """A device is here: for the first time, again after a death, or as a new process."""

    at_s: float
    reason: str
    peer: PeerId
    incarnation: int


@dataclass(frozen=True, slots=True)
class PeerSuspected:
    at_s: float
    reason: str
    peer: PeerId


@dataclass(frozen=True, slots=True)
class PeerRefuted:
    """A suspected device showed that it lives."""

    at_s: float
    reason: str
    peer: PeerId


@dataclass(frozen=True, slots=True)
class PeerDied:
    """`silence_s` is the time since its last sign of life."""

    at_s: float
    reason: str
    peer: PeerId
    incarnation: int
    silence_s: float


@dataclass(frozen=True, slots=True)
class PeerLeft:
    at_s: float
    reason: str
    peer: PeerId
    incarnation: int


@dataclass(frozen=True, slots=True)
class PeerForgot:
    """A peer held this device gone for a while: it has let go of all that the two had together."""

    at_s: float
    reason: str
    peer: PeerId


@dataclass(frozen=True, slots=True)
class LeaderElected:
    """This device accepted `epoch`, newly or (after a restart) again."""

    at_s: float
    reason: str
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class ViewChanged:
    at_s: float
    reason: str
    view: View


@dataclass(frozen=True, slots=True)
class LinkUp:
    at_s: float
    reason: str
    peer: PeerId


@dataclass(frozen=True, slots=True)
class LinkDown:
    at_s: float
    reason: str
    peer: PeerId


@dataclass(frozen=True, slots=True)
class Refused:
    """An address that answers but cannot be linked with: another mesh, another version."""

    at_s: float
    reason: str
    address: Address


Event = (
    PeerJoined
    | PeerSuspected
    | PeerRefuted
    | PeerDied
    | PeerLeft
    | PeerForgot
    | LeaderElected
    | ViewChanged
    | LinkUp
    | LinkDown
    | Refused
)

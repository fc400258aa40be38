"""What the core wants done: values that the shell carries out."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.events import Event
from mesh.ids import Address, PeerId
from mesh.messages import Message


@dataclass(frozen=True, slots=True)
class Tell:
    """Send `message` to `peer`, or to everybody linked if None."""

    peer: PeerId | None
    message: Message


@dataclass(frozen=True, slots=True)
class Emit:
    event: Event


@dataclass(frozen=True, slots=True)
class Cut:
    """Nothing more will come from this process of `peer`: close its links, fail its requests."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class Forget:
    """`peer` is here as a new process: what was asked of the old one fails."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class Dial:
    """A link to `peer` is wanted, which was last seen at `address`."""

    peer: PeerId
    address: Address


Effect = Tell | Emit | Cut | Forget | Dial

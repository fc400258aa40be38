"""The control messages between two nodes: a closed union, each a frozen value with its own schema.

What belongs to the mesh itself has a message of its own; what the packages above say to each other
travels as Request, Reply and Notice with a body that they define.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mesh.codec import decode, encode_union, from_plain, unpack
from mesh.errors import ProtocolError, VersionMismatch
from mesh.ids import Address, Epoch, PeerId
from mesh.limits import PROTOCOL_VERSION


class Health(StrEnum):
    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class Sighting:
    """How the sender sees one peer; also how addresses spread without mDNS."""

    peer: PeerId
    name: str
    incarnation: int
    health: Health
    address: Address | None


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message on every link, both ways. `incarnation` grows with each start.

    `protocol` stays the first field in every version, so that each can name the other's.
    """

    protocol: int
    peer: PeerId
    name: str
    incarnation: int
    started_as: int  # the incarnation its process began with: tells a restart from a refutation
    address: Address | None  # where the sender listens, as it knows itself
    epoch: Epoch | None
    sightings: tuple[Sighting, ...]


@dataclass(frozen=True, slots=True)
class Beat:
    """The heartbeat. `epoch` is what the sender accepted; `leads`: it now acts as its leader."""

    sequence: int
    incarnation: int
    epoch: Epoch | None
    leads: bool
    has_leader: bool  # the sender holds its epoch's leader alive; False: it looks for one
    voted: Epoch | None  # its last vote: it accepts no other epoch at or below that counter
    followers: int  # devices that accepted the sender's epoch, as it sees them, itself included
    loop_lag_s: float
    stuck: bool  # its work does not get on: it lives, and is degraded
    expects: bool  # the sender judges the receiver's silence, so it wants beats back
    sightings: tuple[Sighting, ...]


@dataclass(frozen=True, slots=True)
class Rumour:
    """What is said of one member, passed on from device to device."""

    peer: PeerId
    name: str
    incarnation: int
    started_as: int
    health: Health
    address: Address | None
    by: PeerId | None  # of a suspicion: who first had it


@dataclass(frozen=True, slots=True)
class News:
    """Rumours, and the epoch that the sender follows, if its leader is here."""

    rumours: tuple[Rumour, ...]
    epoch: Epoch | None


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there? Answered with an Ack of the same number."""

    number: int
    incarnation: int
    news: News


@dataclass(frozen=True, slots=True)
class Ack:
    number: int
    incarnation: int
    news: News


@dataclass(frozen=True, slots=True)
class Seek:
    """The sender has no answer of `peer`: does the receiver get one?"""

    peer: PeerId
    address: Address | None


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to Seek, if there is one: the sender just heard `peer`."""

    peer: PeerId
    incarnation: int


@dataclass(frozen=True, slots=True)
class Digest:
    """The sender's view in a few bytes; whoever has another asks for pages."""

    members: int
    mark: bytes


@dataclass(frozen=True, slots=True)
class Want:
    """Asks for the page of the receiver's view that begins after `after`."""

    after: PeerId | None


@dataclass(frozen=True, slots=True)
class Page:
    rumours: tuple[Rumour, ...]  # ordered by peer
    more: bool


@dataclass(frozen=True, slots=True)
class Park:
    """The sender has no use for this link; the receiver closes it, unless it has one."""


@dataclass(frozen=True, slots=True)
class Leave:
    """The sender goes on purpose; final for this incarnation."""

    incarnation: int


@dataclass(frozen=True, slots=True)
class VoteRequest:
    """`binding` is False for the pre-vote, which moves no counter."""

    counter: int
    binding: bool


@dataclass(frozen=True, slots=True)
class Vote:
    counter: int
    binding: bool
    granted: bool
    floor: int  # the highest counter the voter accepted or voted for: the next try goes above it
    reason: str


@dataclass(frozen=True, slots=True)
class Lead:
    """The sender won `epoch`. Accepted only with a higher counter than any accepted before."""

    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Yield:
    """The sender, leader of `epoch`, gives way to the receiver when two sides heal into one."""

    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Request:
    number: int
    topic: str
    body: Any


@dataclass(frozen=True, slots=True)
class Reply:
    """`error` is the refusal in words, or None."""

    number: int
    error: str | None
    body: Any


@dataclass(frozen=True, slots=True)
class Notice:
    topic: str
    body: Any


Crowded = News | Ping | Ack | Seek | Found | Digest | Want | Page  # what `crowd` takes

Message = (
    Hello
    | Beat
    | Leave
    | VoteRequest
    | Vote
    | Lead
    | Yield
    | News
    | Ping
    | Ack
    | Seek
    | Found
    | Digest
    | Want
    | Page
    | Park
    | Request
    | Reply
    | Notice
)


def encode_message(message: Message) -> bytes:
    return encode_union(message)


def decode_message(data: bytes | bytearray) -> Message:
    """Raises ProtocolError for whatever is not exactly one of ours."""
    message: Message = decode(Message, data)
    return message


def decode_hello(data: bytes | bytearray) -> Hello:
    """Reads a link's first message; raises VersionMismatch before it looks at later fields."""
    plain = unpack(data)
    if type(plain) is not list or len(plain) != 2 or plain[0] != "Hello":
        raise ProtocolError("the first message on a link must be Hello")
    fields = plain[1]
    version = fields[0] if type(fields) is list and fields else None
    if type(version) is int and version != PROTOCOL_VERSION:
        raise VersionMismatch(
            f"the other device speaks protocol {version}, this one {PROTOCOL_VERSION}; "
            "update the older of the two"
        )
    hello: Hello = from_plain(Hello, fields)
    return hello

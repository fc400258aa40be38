"""What bytes take on their way between devices, by the links that were measured."""

from __future__ import annotations

from functools import lru_cache
from math import inf

from mesh.ids import PeerId
from planner.plan import Wire
from planner.profile import Cluster, LinkProfile, ModelProfile

TOKEN_BYTES = 4  # int32
HIDDEN_BYTES = 4  # fp32 between stages
FRAME_BYTES = 256 * 1024  # what one frame carries at most
FRAME_OVERHEAD_BYTES = 150  # its header, and TLS and websocket framing
SCALE_BYTES = 4  # of a row of 8-bit numbers

Links = dict[tuple[PeerId, PeerId], LinkProfile]


def links_of(cluster: Cluster) -> Links:
    return {(link.source, link.target): link for link in cluster.links}


def is_usable(link: LinkProfile | None) -> bool:
    """Whether it was measured, and its numbers can be: they come from another device."""
    return (
        link is not None
        and link.bytes_per_s > 0
        and link.round_trip_s >= 0
        and 0 <= link.burst_bytes < inf
    )


def hop_s(links: Links, source: PeerId, target: PeerId, size_bytes: float) -> float:
    """Half a round trip and the bytes behind a burst; infinite where nobody measured the link."""
    if source == target:
        return 0.0
    link = links.get((source, target))
    if link is None or not is_usable(link):
        return inf
    return link.round_trip_s / 2 + max(0.0, size_bytes - link.burst_bytes) / link.bytes_per_s


def return_s(links: Links, last: PeerId, first: PeerId) -> float:
    """The sampled token's way back."""
    return hop_s(links, last, first, token_bytes())


def token_bytes() -> int:
    """A token alone in its frame."""
    return TOKEN_BYTES + FRAME_OVERHEAD_BYTES


def hidden_bytes(model: ModelProfile, tokens: int) -> int:
    """What a hidden state [tokens, hidden_size] weighs between stages."""
    return rows_bytes(tokens, model.hidden_size)


@lru_cache(maxsize=1 << 12)  # a search asks for the same few a hundred thousand times
def rows_bytes(rows: int, width: int, wire: Wire = Wire.FP32) -> int:
    """What [rows, width] weighs on the wire; a frame holds whole rows."""
    return rows * _row_bytes(width, wire) + frames(rows, width, wire) * FRAME_OVERHEAD_BYTES


@lru_cache(maxsize=1 << 12)
def frames(rows: int, width: int, wire: Wire = Wire.FP32) -> int:
    """How many frames [rows, width] takes."""
    return -(-rows // max(1, FRAME_BYTES // _row_bytes(width, wire)))


def _row_bytes(width: int, wire: Wire) -> int:
    match wire:
        case Wire.FP32:
            return 4 * width
        case Wire.FP16:
            return 2 * width
        case Wire.INT8:
            return width + SCALE_BYTES

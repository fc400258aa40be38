"""Views compared: in a few bytes whether two are the same, and page by page where they are not."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from mesh.ids import PeerId
from mesh.limits import MAX_PAGE
from mesh.membership import Record, rumour_of
from mesh.messages import Digest, Page


def digest_of(records: Mapping[PeerId, Record]) -> Digest:
    """The same for the same members here with the same incarnations."""
    here = sorted(
        (peer, record.member.incarnation)
        for peer, record in records.items()
        if record.member.is_here
    )
    return Digest(len(here), hashlib.sha256(repr(here).encode()).digest()[:8])


def page_of(records: Mapping[PeerId, Record], after: PeerId | None) -> Page:
    """The members that come next, the gone ones too. Suspects count as alive: an accusation
    travels with its accuser's name, or not at all.
    """
    peers = sorted(peer for peer in records if after is None or peer > after)
    told = (rumour_of(records[peer]) for peer in peers[:MAX_PAGE])
    return Page(tuple(told), len(peers) > MAX_PAGE)

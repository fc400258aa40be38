"""Efforts: what this device's last turns took, by plan: computing, waiting, and what travelled.

Turns with nothing but tokens of answers are kept apart from those with a part of a prompt, for a
row of the one costs many times a row of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from mesh.ids import PlanId


@dataclass(slots=True)
class Turn:
    """One turn, and the time since the one before in which somebody waited for an answer."""

    rows: int
    conversations: int
    started_s: float = 0.0  # in the loop's time
    compute_s: float = 0.0
    wait_s: float = 0.0  # nothing was computed here
    wire_s: float = 0.0  # links carried what it sent, until it had arrived
    sent_bytes: int = 0  # without headers, as the next
    received_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """Of the last turns of a kind: seconds and bytes of a pass.

    A pass of a token is a turn, of which the median counts, and bytes are those of one
    conversation. A pass of a prompt is one row of it, on average.
    """

    turns: int
    rows: float  # in a turn, on average
    conversations: float
    compute_s: float
    wire_s: float
    wait_s: float
    sent_bytes: float
    received_bytes: float


@dataclass(frozen=True, slots=True)
class PlanEfforts:
    """What a device measured under one plan; None where there was no such turn yet."""

    plan: PlanId
    prompts: Measured | None
    tokens: Measured | None


def of_tokens(turns: Sequence[Turn]) -> Measured | None:
    """See `Measured`."""
    if not turns:
        return None
    return Measured(
        turns=len(turns),
        rows=fmean(one.rows for one in turns),
        conversations=fmean(one.conversations for one in turns),
        compute_s=median(one.compute_s for one in turns),
        wire_s=median(one.wire_s for one in turns),
        wait_s=median(one.wait_s for one in turns),
        sent_bytes=median(one.sent_bytes / one.conversations for one in turns),
        received_bytes=median(one.received_bytes / one.conversations for one in turns),
    )


def of_prompts(turns: Sequence[Turn]) -> Measured | None:
    """See `Measured`."""
    if not turns:
        return None
    rows = sum(one.rows for one in turns)
    return Measured(
        turns=len(turns),
        rows=rows / len(turns),
        conversations=fmean(one.conversations for one in turns),
        compute_s=sum(one.compute_s for one in turns) / rows,
        wire_s=sum(one.wire_s for one in turns) / rows,
        wait_s=sum(one.wait_s for one in turns) / rows,
        sent_bytes=sum(one.sent_bytes for one in turns) / rows,
        received_bytes=sum(one.received_bytes for one in turns) / rows,
    )

"""Many devices (SWIM): when all-to-all ends, when a ping counts as unanswered, how long an
accusation may be refuted. Functions of numbers and of seconds; no clock, no network, no chance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from mesh.ids import PeerId
from mesh.limits import (
    CONFIRMATIONS,
    FEW_AGAIN,
    FEW_MEMBERS,
    PING_TIMEOUT_S,
    RELAY_TIMEOUT_S,
    SUSPICION_S,
    SUSPICION_SPREAD,
    TELLINGS,
)


def is_crowd(members: int, *, was_crowd: bool) -> bool:
    """Whether so many devices probe at random, rather than beat each other all-to-all."""
    return members > (FEW_AGAIN if was_crowd else FEW_MEMBERS)


def suspicion_s(members: int, confirmations: int, factor: int) -> float:
    """From the first accusation to death: time for rumour and refutation to get through a crowd
    of `members`. Each other accuser shortens it, the first one most (Lifeguard); `factor` is our
    own health's.
    """
    shortest_s = SUSPICION_S * max(1.0, math.log10(members))
    longest_s = shortest_s * SUSPICION_SPREAD
    share = math.log(min(confirmations, CONFIRMATIONS) + 1) / math.log(CONFIRMATIONS + 1)
    return factor * (longest_s - (longest_s - shortest_s) * share)


def tellings(members: int) -> int:
    """How often one device passes a rumour on; then nearly all of a crowd have heard it."""
    return math.ceil(TELLINGS * math.log10(members + 1))


class Step(StrEnum):
    WAIT = "wait"
    ANSWERED = "answered"
    RELAY = "relay"
    ACCUSE = "accuse"


@dataclass(frozen=True, slots=True)
class Probe:
    """A question to one member that has no answer yet."""

    peer: PeerId
    asked_s: float
    relayed_s: float | None = None  # when others were asked to look too


def next_step(probe: Probe, heard_s: float, now_s: float, factor: int) -> Step:
    """`heard_s` is the member's last sign of life, by whatever way it came."""
    if heard_s > probe.asked_s:
        return Step.ANSWERED
    if probe.relayed_s is None:
        return Step.RELAY if now_s - probe.asked_s >= PING_TIMEOUT_S * factor else Step.WAIT
    return Step.ACCUSE if now_s - probe.relayed_s >= RELAY_TIMEOUT_S * factor else Step.WAIT

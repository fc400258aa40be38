"""When silence means death: a function of the silence, of who confirms it, and of our own health.

Time appears only as a number of seconds; the shell that owns the clock is `node`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mesh.ids import PeerId
from mesh.limits import (
    DEAD_ALONE_S,
    DEAD_CONFIRMED_S,
    HEALTH_DECAY_S,
    LATE_TICK_S,
    MAX_LOCAL_HEALTH,
    SLEPT_S,
    SUSPECT_AFTER_S,
)
from mesh.messages import Health


@dataclass(frozen=True, slots=True)
class Verdict:
    health: Health
    reason: str


@dataclass(frozen=True, slots=True)
class LocalHealth:
    """How far this device distrusts its own judgement: 0 (not at all) to MAX_LOCAL_HEALTH."""

    score: int = 0
    changed_s: float = 0.0

    @property
    def factor(self) -> int:
        """Every timeout of the detector is multiplied by it."""
        return 1 + self.score


def judge(
    health: Health,
    silence_s: float,
    confirmed_by: frozenset[PeerId],
    local: LocalHealth,
    *,
    most_hold_it_dead: bool = False,
) -> Verdict:
    """The health that the silence of an alive or suspected peer calls for.

    `most_hold_it_dead`: most of the others here do. How far we distrust ourselves then does not
    matter; waiting on would keep us with a leader whom everybody else has replaced.
    """
    words = f"silent for {silence_s:.2f} s"
    if silence_s >= DEAD_CONFIRMED_S and most_hold_it_dead:
        return Verdict(Health.DEAD, f"{words}, and most of the others hold it dead")
    if local.score:
        words += f", timeouts x{local.factor}"
    if silence_s >= DEAD_CONFIRMED_S * local.factor and confirmed_by:
        names = ", ".join(peer.short for peer in sorted(confirmed_by))
        return Verdict(Health.DEAD, f"{words}, confirmed by {names}")
    if silence_s >= DEAD_ALONE_S * local.factor:
        return Verdict(Health.DEAD, f"{words}, confirmed by nobody")
    if silence_s >= SUSPECT_AFTER_S * local.factor:
        return Verdict(Health.SUSPECT, words)
    return Verdict(health, words)  # a suspicion for another cause (a broken link) stays


def worsen(local: LocalHealth, now_s: float) -> LocalHealth:
    """Our loop lagged, our timer was late, or somebody we accused turned out to live."""
    return LocalHealth(min(MAX_LOCAL_HEALTH, local.score + 1), now_s)


def recover(local: LocalHealth, now_s: float) -> LocalHealth:
    """One point is forgiven for each HEALTH_DECAY_S without trouble."""
    if local.score == 0 or now_s - local.changed_s < HEALTH_DECAY_S:
        return local
    return replace(local, score=local.score - 1, changed_s=now_s)


def check_self(local: LocalHealth, late_s: float, now_s: float) -> tuple[LocalHealth, bool]:
    """Our own tick came `late_s` after its time: the new health, and whether to judge anybody."""
    if late_s <= LATE_TICK_S:
        return recover(local, now_s), True
    return worsen(local, now_s), late_s <= SLEPT_S

"""From what was seen to what is wrong: all rules, in the order in which a person should read."""

from __future__ import annotations

from apps.doctor import rules_here, rules_there
from apps.doctor.finding import Finding, Level, problem, well
from apps.doctor.seen import Outcome, Seen

_RULES = (
    rules_here.mesh,
    rules_here.ports,
    rules_here.interfaces,
    rules_here.multicast,
    rules_there.copies,
    rules_there.answers,
    rules_there.one_way,
    rules_there.silence,
    rules_there.strangers,
    rules_here.clock,
)
_ORDER = (Level.PROBLEM, Level.WELL, Level.NOTE)


def diagnose(seen: Seen) -> tuple[Finding, ...]:
    """At least one finding; the problems first. The same cause at the same place is told once."""
    found = list(dict.fromkeys(finding for rule in _RULES for finding in rule(seen)))
    if seen.met and not _asked_in_vain(seen):
        found.append(well("meets", f"this device meets {' and '.join(seen.met)}"))
    elif not found or not (seen.asked or any(one.level is Level.PROBLEM for one in found)):
        found.append(_alone(seen))
    return tuple(sorted(found, key=lambda finding: _ORDER.index(finding.level)))


def _asked_in_vain(seen: Seen) -> bool:
    return seen.asked and not any(call.outcome is Outcome.MEMBER for call in seen.calls)


def _alone(seen: Seen) -> Finding:
    return problem(
        "alone",
        "nothing is wrong with this device, and no other one of its mesh is heard or known",
        "on the other device: potluck doctor; or ask for it by its address: potluck doctor HOST",
    )

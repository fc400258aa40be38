"""The 26 tests of reliability: what each is about, how it is done, and what must come out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure that must not be above its target; `measure` is a path into a fault's line."""

    fault: str
    measure: str  # "detect_ms.p99", "deaths"
    at_most: float
    words: str

    def measured(self, figures: Mapping[str, Mapping[str, Any]]) -> float | None:
        """None where it was not measured."""
        found: Any = figures.get(self.fault, {})
        if self.measure == "suspicions_per_device_hour":
            hours = found.get("device_hours")
            return found["suspicions"] / hours if hours else None
        if self.measure == "slower":  # by how much the median token is, in percent
            kept = found.get("throughput_kept")
            return None if kept is None else (1 - kept) * 100
        for name in self.measure.split("."):
            if not isinstance(found, Mapping) or name not in found:
                return None
            found = found[name]
        return float(found)


@dataclass(frozen=True, slots=True)
class Promise:
    number: int
    words: str
    kind: str
    target: str
    faults: tuple[str, ...] = ()  # of `potluck chaos --fault`
    goals: tuple[Goal, ...] = ()
    commands: tuple[str, ...] = ()
    later: str = ""  # which half comes with training over the mesh


SIM: Final = "`potluck chaos --seeds 5000`"
FUZZ: Final = "`python -m tests.fuzz --minutes 30`"
_ASTEROID: Final = "comes with Asteroid"


def _under(fault: str, **at_most: float) -> tuple[Goal, ...]:
    """Goals from `detect_ms_p99=1000.0` and the like."""
    goals = []
    for name, value in at_most.items():
        stem, _, quantile = name.rpartition("_")
        is_time = stem.endswith("_ms")
        measure = f"{stem}.{quantile}" if is_time else name
        words = f"{_WORDS[stem]} {quantile}" if is_time else _WORDS[name]
        goals.append(Goal(fault, measure, value, words))
    return tuple(goals)


_WORDS: Final = {
    "detect_ms": "seen by all",
    "elect_ms": "new leader",
    "resume_ms": "next token",
    "heal_ms": "one view again",
    "error_ms": "clear error",
    "deaths": "false deaths",
    "suspicions": "suspicions",
    "suspicions_per_device_hour": "suspicions per device-hour",
    "wrong": "runs with something wrong",
    "replayed_tokens": "tokens replayed",
    "rss_growth_mib": "memory, MiB",
    "longest_open_s": "silent sockets closed, s",
    "slower": "members slower by, %",
    "rss_drift": "drift of memory",
}

PROMISES: Final = (
    Promise(
        1,
        "`kill -9` of a stage in mid-generation, 5 processes, 50 runs",
        "chaos",
        "seen p99 <= 1.0 s; tokens equal; resume p95 <= 3 s",
        ("kill",),
        _under("kill", detect_ms_p99=1000, elect_ms_p99=1500, resume_ms_p95=3000, wrong=0),
    ),
    Promise(
        2,
        "silent death: all traffic dropped, sockets open",
        "chaos",
        "dead p99 <= 4.0 s; resume p95 <= 6 s",
        ("unplug",),
        _under("unplug", detect_ms_p99=4000, elect_ms_p99=1500, resume_ms_p95=6000, wrong=0),
    ),
    Promise(
        3,
        "leader killed with a plan half installed",
        "sim, chaos",
        "new leader <= 1.5 s; no device in two plans; old plan refused",
        ("mid-install",),
        _under("mid-install", elect_ms_max=1500, wrong=0),
        (SIM,),
    ),
    Promise(
        4,
        "16 busy processes per core, 10 min (nightly 1 h)",
        "chaos",
        "0 deaths; <= 1 suspicion per device-hour",
        ("busy",),
        _under("busy", deaths=0, suspicions_per_device_hour=1, wrong=0),
    ),
    Promise(
        5,
        "a stage that blocks the loop for 5 s",
        "unit",
        "the guard fails it; health score rises; it accuses nobody",
    ),
    Promise(
        6,
        "SIGSTOP 1.9 s and 6 s, then CONT",
        "chaos",
        "1.9 s: nothing; 6 s: dead, back in <= 3 s, kills nobody, stale frames refused",
        ("pause", "stop"),
        (
            *_under("pause", deaths=0, wrong=0),
            *_under("stop", deaths=0, heal_ms_p95=3000, wrong=0),
        ),
    ),
    Promise(
        7,
        "graceful leave in training and inference",
        "chaos",
        "<= 0.5 s from the goodbye; 0 replayed; loss curve equal",
        ("leave",),
        _under("leave", detect_ms_p99=500, replayed_tokens=0, suspicions=0, wrong=0),
        later=f"training {_ASTEROID}",
    ),
    Promise(
        8,
        "partition 3/2, 2/2, 1/1, bridge, one-way; heal after 30 s",
        "sim",
        "one line of commits; one view <= 3 s; majority keeps its leader",
        ("partition", "one-way"),
        (
            *_under("partition", heal_ms_p95=3000, wrong=0),
            *_under("one-way", heal_ms_p95=3000, wrong=0),
        ),
        (SIM,),
        later=f"the line of commits {_ASTEROID}",
    ),
    Promise(
        9,
        "election under loss <= 50 %, reorder, duplicate, pause; 200 / 5,000 seeds",
        "sim",
        "0 epochs with two leaders; leader <= 5 s after faults stop",
        commands=(SIM,),
    ),
    Promise(
        10,
        "restart with an old disk, torn epoch file",
        "unit, sim",
        "never acts below the persisted epoch",
    ),
    Promise(
        11,
        "zombie: late frames, acks, checkpoints of an older epoch",
        "unit, sim",
        "all refused, counted",
        commands=(SIM,),
    ),
    Promise(
        12,
        "flapping: one device up and down each 3 s, 10 min",
        "sim",
        "<= 1 plan per 10 s; others keep >= 70 % throughput",
    ),
    Promise(
        13,
        "replay: every position x every stage, tiny model",
        "model",
        "tokens equal; logits within 1e-5; KV length right",
    ),
    Promise(
        14,
        "training: a loss at each operation of 1F1B",
        "model",
        "weights bit-equal (fp32 CPU); <= 1 mini-batch redone",
        later=f"all of it {_ASTEROID}",
    ),
    Promise(
        15,
        "two failures at once; a failure during recovery",
        "sim, chaos",
        "recovers if each layer has a copy; else one clear error <= 5 s, no endless retry",
        ("two-at-once", "during-recovery"),
        (
            *_under("two-at-once", error_ms_max=5000, wrong=0),
            *_under("during-recovery", error_ms_max=5000, wrong=0),
        ),
        (SIM,),
    ),
    Promise(
        16,
        "codec: random, mutated, bombs (lengths, 1 MB of empty maps, depth 10^5, extensions, "
        "bad UTF-8)",
        "fuzz",
        "only our error class; <= 10 ms, <= 8 MiB each; 10^5 inputs in CI, 30 min nightly",
        commands=(FUZZ,),
    ),
    Promise(
        17,
        "tensor frames: wrong shape, dtype, rank, byte count, huge or negative dimensions, "
        "wrong step",
        "fuzz",
        "refused before allocation; link closed with a code; session survives by replay",
        commands=(FUZZ,),
    ),
    Promise(
        18,
        "NaN or Inf from a peer, forward and gradient",
        "unit",
        "never reaches logits or weights; peer named in the log; step redone elsewhere",
        later=f"the gradient {_ASTEROID}",
    ),
    Promise(
        19,
        "no certificate; another mesh's; same id self-signed; left out by `rotate`, with its old "
        "leaf and with a fresh key below the old CA",
        "security",
        "handler never runs; answer <= 50 ms; rotation effective <= 2 s; remaining members keep "
        "PeerIds and sessions",
    ),
    Promise(
        20,
        "pairing: wrong code 3x, reflected message, TLS keys swapped in the middle, window over, "
        "two at once",
        "security",
        "no key; locked after 3; swap detected; no byte of the secret before both confirmations; "
        "file mode 0600",
    ),
    Promise(
        21,
        "recorded control and tensor messages replayed, on the same and a new link",
        "security",
        "no effect",
    ),
    Promise(
        22,
        "2,000 idle sockets, slow headers, slow TLS, slow reader, 1,000 mDNS fakes",
        "security",
        "RSS <= +64 MiB; caps hold; silent ones closed <= 5 s; members keep >= 80 %",
        ("siege",),
        _under("siege", rss_growth_mib=64, longest_open_s=5.5, slower=20),
        ("`python -m tests.siege --pairs 5`",),
    ),
    Promise(
        23,
        "weights: one bit, truncated, layers swapped, wrong manifest, stopped transfer",
        "unit",
        "always detected before use; taken from another holder; never served on",
    ),
    Promise(
        24,
        "disk full, read-only, I/O error at each write of checkpoint, epoch, roster, secret",
        "unit",
        "old file intact; device stays in inference; clear status; no crash loop",
        ("disk-full",),
        _under("disk-full", wrong=0),
    ),
    Promise(
        25,
        "wall clock +-1 day, +-10 years, 1970, NTP step in mid-run",
        "unit, chaos",
        "0 suspicions, 0 expiries",
        ("clock",),
        _under("clock", suspicions=0, deaths=0, wrong=0),
    ),
    Promise(
        26,
        "soak 1 h: a random fault each 20 s on 6 processes, history checked",
        "nightly",
        "all invariants; RSS drift <= 5 %; no leaked task, socket, file",
        ("soak",),
        _under("soak", deaths=0, rss_drift=0.05),
    ),
)

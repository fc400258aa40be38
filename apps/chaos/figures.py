"""From lines to figures: percentiles of many runs, folded into one line a fault; what got worse."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any, Final

from mesh.errors import ConfigError

Line = Mapping[str, Any]

TIMES: Final = ("detect_ms", "elect_ms", "plan_ms", "resume_ms", "heal_ms", "error_ms")
COUNTS: Final = ("suspicions", "deaths", "replayed_tokens", "refused")
QUANTILES: Final = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
WORSE: Final = 1.2  # more than a fifth above what it was fails the night
# So long was a loop late at worst on two cores with 32 busy processes: no more is noise.
NOISE_MS: Final = 100.0


def read_lines(paths: Iterable[Path]) -> list[Line]:
    """Raises ConfigError for a file that is missing, or holds something else."""
    lines: list[Line] = []
    for path in paths:
        try:
            found = [json.loads(text) for text in path.read_text().splitlines() if text.strip()]
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{path}: wanted the JSON lines of `potluck chaos --out`: {error}"
            ) from None
        if not all(isinstance(line, dict) and "fault" in line for line in found):
            raise ConfigError(f"{path}: a line is no run of `potluck chaos --out`")
        lines += found
    return lines


def fold(lines: Iterable[Line]) -> list[Line]:
    """One line a fault: of runs their figures, of everything else the last one as it is."""
    runs: dict[str, list[Line]] = {}
    others: dict[str, Line] = {}
    for line in lines:
        if "detect_ms" in line and "seed" in line:
            runs.setdefault(line["fault"], []).append(line)
        else:
            others[line["fault"]] = line
    folded = [*map(_folded, runs.values()), *others.values()]
    return sorted(folded, key=lambda line: str(line["fault"]))


def merged(old: Iterable[Line], new: Iterable[Line]) -> list[Line]:
    """The new figures, and the old ones of what was not measured again."""
    by_fault = {line["fault"]: line for line in (*old, *new)}
    return [by_fault[fault] for fault in sorted(by_fault)]


def percentile(values: Sequence[float], quantile: float) -> float:
    """The smallest value that so much of all are not above."""
    return sorted(values)[max(0, ceil(len(values) * quantile) - 1)]


def got_worse(old: Iterable[Line], new: Iterable[Line]) -> Iterator[str]:
    """Regressions in words: times above WORSE of what they were, and what had not been wrong."""
    before = {line["fault"]: line for line in old}
    for line in new:
        was = before.get(line["fault"])
        if was is None:
            continue
        for time in TIMES:
            for name in ("p50", "p95"):
                yield from _slower(line["fault"], time, name, was.get(time), line.get(time))
        for count in ("deaths", "wrong"):
            if line.get(count) and not was.get(count):
                yield f"{line['fault']}: {count} {line[count]}, where there were none"


def _folded(runs: Sequence[Line]) -> Line:
    dates = sorted(str(line["date"])[:10] for line in runs)
    line: dict[str, Any] = {
        "fault": runs[0]["fault"],
        "runs": len(runs),
        "dates": sorted({dates[0], dates[-1]}),
        "machine": runs[-1]["machine"],
        "model": runs[-1]["model"],
        "devices": sorted({run["devices"] for run in runs}),
        "tokens_equal": sum(bool(run["tokens_equal"]) for run in runs),
        "wrong": sum(bool(run["wrong"]) for run in runs),
        "device_hours": round(_device_hours(runs), 3),
    }
    line |= {name: sum(run[name] for run in runs) for name in COUNTS}
    for name in TIMES:
        values = [run[name] for run in runs if run[name] is not None]
        if values:
            line[name] = _spread(values)
    return line


def _spread(values: Sequence[float]) -> dict[str, float]:
    figures = {name: round(percentile(values, of), 1) for name, of in QUANTILES.items()}
    return {"n": len(values), **figures, "max": round(max(values), 1)}


def _device_hours(runs: Sequence[Line]) -> float:
    """Under the fault, where it has a length; for suspicions by the hour."""
    lengths = (float(run["notes"].get("length_s", 0.0)) * int(run["devices"]) for run in runs)
    return sum(lengths) / 3600


def _slower(fault: str, time: str, name: str, was: Any, now: Any) -> Iterator[str]:
    if was and now and now[name] > max(was[name] * WORSE, was[name] + NOISE_MS):
        yield (
            f"{fault}: {time} {name} is {now[name]:.0f}, was {was[name]:.0f} "
            f"({now[name] / max(was[name], 1e-9):.2f} times)"
        )

"""docs/reliability.md, made of what the runs wrote.

python -m apps.chaos.report                              the page, from docs/reliability.jsonl
python -m apps.chaos.report RUNS... --fold               takes new runs into that file first
python -m apps.chaos.report RUNS... --against            exits 1 where they are a fifth worse
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from apps.chaos.faults import FAULTS
from apps.chaos.figures import TIMES, Line, fold, got_worse, merged, read_lines
from apps.chaos.numbered import numbered_tests
from apps.chaos.promises import PROMISES, Goal, Promise
from mesh.errors import PotluckError

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "docs" / "reliability.jsonl"

HEAD = """\
# Reliability: what is promised, and what was measured

Made by `make reliability` of docs/reliability.jsonl and the tests' docstrings: not to be edited.
`make test` runs the short forms, `make chaos` some faults on real daemons, `make nightly` all of
them; `python -m apps.chaos.report RUNS --fold` takes new runs into the figures. A night fails where
a p50 or p95 is more than a fifth above what stands here, where devices were held dead that were
not, or where anything else was wrong that was right before.

p50 / p95 / p99 are the values that so many of the runs are not above: with few runs p99 is the
largest. A target that was missed says so."""

_IN_TEST = {True: "in `make test`", False: "-"}
FAULTS_HEAD = """\
## What each fault costs

Real daemons and the default model on this machine, in mid-generation; ms, p50 / p95 / p99 (runs in
which it happened). *seen*: from the loss until the last survivor holds the device gone; *leader*:
from a leader's loss being seen until the last survivor has a new one; *next token*: from the loss;
*one view*: from the end of the fault (a restart counts from the start of the process) until all see
all again under one leader. *wrong*: runs in which anything was not as it must be."""


def page(lines: Sequence[Line], places: Mapping[int, Sequence[str]]) -> str:
    """The whole page, from folded lines and from where each number is tested."""
    figures = {str(line["fault"]): line for line in lines}
    parts = [HEAD, "## The 26 tests", _tests(figures, places), FAULTS_HEAD, _faults(figures)]
    if "soak" in figures:
        parts += ["## The soak", _soak(figures["soak"])]
    if "rival" in figures:
        parts += ["## Beside a rival", _rival(figures["rival"])]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--fold", action="store_true")
    parser.add_argument("--against", action="store_true")
    asked = parser.parse_args(arguments)
    try:
        old = read_lines([FIGURES]) if FIGURES.exists() else []
        new = fold(read_lines(asked.runs))
    except PotluckError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if asked.against:
        worse = list(got_worse(old, new))
        print("\n".join(worse) or "nothing is worse than docs/reliability.md")
        return 1 if worse else 0
    lines = merged(old, new)
    if asked.fold:
        FIGURES.write_text("".join(json.dumps(line) + "\n" for line in lines))
    sys.stdout.write(page(lines, numbered_tests(ROOT)))
    return 0


def _tests(figures: Mapping[str, Line], places: Mapping[int, Sequence[str]]) -> str:
    rows = [
        _row(
            str(promise.number),
            promise.words,
            promise.kind,
            promise.target,
            "<br>".join(_where(promise, places.get(promise.number, ()))),
            "<br>".join(_measured(promise, figures)) or _IN_TEST[promise.number in places],
        )
        for promise in PROMISES
    ]
    return _table(("#", "test", "kind", "target", "where", "measured"), rows)


def _where(promise: Promise, places: Sequence[str]) -> list[str]:
    files: dict[str, list[str]] = {}
    for place in places:
        path, _, name = place.partition("::")
        files.setdefault(path, []).extend([name] if name else [])
    found = [f"`{path}`" + _names(names) for path, names in files.items()]
    real = (fault for fault in promise.faults if fault in (*FAULTS, "soak"))
    found += [f"`potluck chaos --fault {fault}`" for fault in real]
    found += promise.commands
    if promise.later:
        found.append(f"*{promise.later}*")
    return found or ["nothing yet"]


def _names(names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"::{names[0]}{more}"


def _measured(promise: Promise, figures: Mapping[str, Line]) -> list[str]:
    found = []
    for fault in promise.faults:
        line = figures.get(fault)
        if line is None:
            found.append(f"{fault}: not measured yet")
            continue
        goals = [goal for goal in promise.goals if goal.fault == fault]
        told = [text for goal in goals if (text := _goal(goal, figures))]
        if "runs" in line:
            told.append(f"tokens equal {line['tokens_equal']} of {line['runs']}")
        found.append(f"{fault}: " + ", ".join(told))
    return found


def _goal(goal: Goal, figures: Mapping[str, Line]) -> str:
    value = goal.measured(figures)
    if value is None:
        return ""
    verdict = "" if value <= goal.at_most else f" (**missed**, <= {goal.at_most:g})"
    return f"{goal.words} {_number(value)}{verdict}"


def _number(value: float) -> str:
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2g}" if abs(value) < 1 else f"{value:.1f}"


def _faults(figures: Mapping[str, Line]) -> str:
    names = [name for name in FAULTS if name in figures]
    if not names:
        return "Nothing measured yet."
    rows = [_fault_row(name, figures[name]) for name in names]
    head = ("fault", "runs", "tokens equal", "seen", "leader", "plan", "next token", "one view")
    lines = [figures[name] for name in names]
    dates = sorted({date for line in lines for date in line["dates"]})
    machines = sorted({line["machine"] for line in lines})
    when = f"Measured {' to '.join(sorted({dates[0], dates[-1]}))} on {'; '.join(machines)}."
    counts = ("error", "suspicions", "false deaths", "replayed", "wrong")
    return _table((*head, *counts), rows) + f"\n\n{when}"


def _fault_row(name: str, line: Line) -> str:
    cells = [f"{name}: {FAULTS[name].words}", str(line["runs"]), str(line["tokens_equal"])]
    cells += [_spread(line.get(time)) for time in TIMES]
    cells += [str(line[count]) for count in ("suspicions", "deaths", "replayed_tokens", "wrong")]
    return _row(*cells)


def _spread(spread: Mapping[str, float] | None) -> str:
    if spread is None:
        return "-"
    times = " / ".join(f"{spread[name]:,.0f}" for name in ("p50", "p95", "p99"))
    return f"{times} ({spread['n']})"


def _soak(line: Line) -> str:
    wrong = line["wrong"]
    verdict = "Nothing was wrong." if not wrong else "Wrong: " + "; ".join(wrong) + "."
    return (
        f"{line['date'][:10]}, {line['seconds'] / 60:.1f} min, {line['faults']} faults on 6 "
        f"processes, tokens equal in {line['tokens_equal']}, {line['suspicions']} suspicions, "
        f"{line['deaths']} false deaths, drift of resident memory {line['rss_drift']:.1%} "
        f"(target 5 %). {verdict}"
    )


def _rival(line: Line) -> str:
    resumed = line["ours_resume_ms"]
    ours = f"tokens equal in {line['ours_equal']} of {line['runs']}, the next one after "
    ours += "-" if resumed is None else f"{resumed:,.0f} ms (p50)"
    rows = [
        _row(f"{line['who']}, a worker killed", "; ".join(line["killed"])),
        _row(f"{line['who']}, a worker silent", "; ".join(line["silent"])),
        _row("Potluck, a device killed", ours),
    ]
    told = f"{line['date'][:10]}, {line['runs']} runs of each in turns, {line['machine']}."
    return _table(("in mid-generation", "what the client sees"), rows) + f"\n\n{told} {line['how']}"


def _table(head: Sequence[str], rows: Sequence[str]) -> str:
    return "\n".join((_row(*head), _row(*("---" for _ in head)), *rows))


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    sys.exit(main())

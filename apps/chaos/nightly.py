"""The night: everything that takes too long for `make test`, one after the other, to the end.

    python -m apps.chaos.nightly [--share 0.05] [FOLDER]

What each step says goes to FOLDER/NAME.log, the runs to FOLDER/runs.jsonl. Exits 1 if any step
failed, or if any figure is a fifth worse than docs/reliability.md. --share 0.05 is a twentieth of
it all: to see that it works.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from apps.chaos.faults import FAULTS
from apps.chaos.record import machine

FOLDER: Final = Path("build/nightly")
RUNS: Final = "runs.jsonl"
MOST: Final = {"kill": 50, "unplug": 50, "busy": 20}  # 20 times 30 s are the ten minutes of test 4
OTHERS: Final = 20
SOAK_S: Final = 3600
SIEGE_PAIRS: Final = 5
SEEDS: Final = 5000
FUZZ_MIN: Final = 30
CROWDS: Final = (17, 50, 200, 1000)  # devices in simulated homes


@dataclass(frozen=True, slots=True)
class Step:
    name: str
    command: tuple[str, ...]  # after the interpreter
    is_figures: bool = False  # whether the object that it prints belongs to the figures


def steps(folder: Path, share: float) -> Iterator[Step]:
    """In the order of what they cost."""
    chaos = ("-m", "apps.cli", "chaos")
    out = ("--out", str(folder / RUNS))
    yield Step("seeds", (*chaos, "--seeds", _part(SEEDS, share)))
    crowds = [str(max(CROWDS[0], int(_part(devices, share)))) for devices in CROWDS]
    yield Step("crowds", ("-m", "tests.sim.crowds", "--devices", *crowds))
    minutes = f"{FUZZ_MIN * share:.2f}"
    yield Step("fuzz", ("-m", "tests.fuzz", "--minutes", minutes))
    for fault in FAULTS:
        runs = _part(MOST.get(fault, OTHERS), share)
        five = ("--devices", "5") if fault == "kill" else ()
        yield Step(fault, (*chaos, "--fault", fault, "--runs", runs, *five, *out))
    siege = ("-m", "tests.siege", "--pairs", _part(SIEGE_PAIRS, share))
    yield Step("siege", siege, is_figures=True)
    soak_s = _part(SOAK_S, share)
    yield Step("soak", (*chaos, "--fault", "soak", "--seconds", soak_s, *out))
    yield Step("figures", ("-m", "apps.chaos.report", str(folder / RUNS), "--against"))


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("--share", type=float, default=1.0)
    asked = parser.parse_args(arguments)
    asked.folder.mkdir(parents=True, exist_ok=True)
    (asked.folder / RUNS).unlink(missing_ok=True)
    failed = [step.name for step in steps(asked.folder, asked.share) if not _done(step, asked)]
    print(f"failed: {', '.join(failed)}" if failed else "all is well")
    return 1 if failed else 0


def _done(step: Step, asked: argparse.Namespace) -> bool:
    """Runs it, whatever became of those before it: one night tells everything."""
    log = asked.folder / f"{step.name}.log"
    began_s = time.monotonic()
    with log.open("w") as file:
        done = subprocess.run(  # noqa: S603 - our own words
            (sys.executable, *step.command), stdout=file, stderr=subprocess.STDOUT
        )
    if step.is_figures:
        _keep(step.name, log, asked.folder / RUNS)
    how = "ok" if done.returncode == 0 else f"FAILED, see {log}"
    print(f"{step.name:<16} {time.monotonic() - began_s:7.0f} s  {how}", flush=True)
    return done.returncode == 0


def _keep(name: str, log: Path, runs: Path) -> None:
    """The last line of the log, if it is an object, as a line of the runs."""
    try:
        found = json.loads(log.read_text().splitlines()[-1])
    except (ValueError, IndexError):
        return  # the step failed before it had anything to tell, and its log says why
    date = datetime.now(UTC).isoformat(timespec="seconds")
    with runs.open("a") as file:
        file.write(json.dumps({"fault": name, "date": date, "machine": machine(), **found}) + "\n")


def _part(whole: int, share: float) -> str:
    return str(max(1, round(whole * share)))


if __name__ == "__main__":
    sys.exit(main())

"""`potluck bench engine`: one device's speed, memory and exactness beside llama.cpp's.

Every contender is a process pinned to the same cores, loaded once, and asked in turn, one at a
time: whatever the machine does besides meets all of them alike.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apps.bench.contenders import rivals
from apps.bench.perplexity import perplexities
from apps.bench.report import Goal, Report, Row
from mesh.errors import ConfigError
from runtime.compute.precision import Precision

PREFILL_TOKENS: Final = 512
DECODE_TOKENS: Final = 64
SESSIONS: Final = 8
START_TIMEOUT_S: Final = 120.0
PREFILL_GOAL, DECODE_GOAL, MANY_GOAL = 1.5, 1.0, 3.0  # times llama.cpp; times one stream
PERPLEXITY_GOAL: Final = 1.01  # times that of the fp32 model
MEMORY_FACTOR, MEMORY_BESIDE_BYTES = 1.5, 300_000_000
FIRST_TOKEN_GOAL_S: Final = 3.0

Progress = Callable[[str], None]


def run(model: Path, runs: int, progress: Progress) -> Report:
    """Raises ConfigError where no rival is installed, or fewer than five runs are asked for."""
    if runs < 5:
        raise ConfigError(f"a median wants at least 5 runs; got {runs}")
    names = rivals()
    if not names:
        raise ConfigError(
            "there is no llama.cpp to compare with; run: pip install 'potluck[bench]'"
        )
    rows: list[Row] = []
    goals: list[Goal] = []
    for threads in (1, 2):
        if threads <= len(os.sched_getaffinity(0)):
            speeds = _speeds(["potluck", *names], model, threads, runs, progress)
            rows += speeds.rows()
            goals += speeds.goals(names)
    many = _many(model, runs, progress)
    rows += many.rows
    goals.append(Goal(f"{SESSIONS} streams, times one", MANY_GOAL, many.ratio))
    rows.append(Row.of("potluck peak memory", "MB", [many.memory_bytes / 1e6]))
    most_bytes = MEMORY_FACTOR * model.stat().st_size + MEMORY_BESIDE_BYTES
    goals.append(Goal("peak memory, MB", most_bytes / 1e6, many.memory_bytes / 1e6, at_least=False))
    starts = [_start_s(model, progress) for _ in range(runs)]
    rows.append(Row.of("potluck start to first token", "s", starts))
    goals.append(
        Goal("start to first token, s", FIRST_TOKEN_GOAL_S, rows[-1].median, at_least=False)
    )
    found = perplexities(model, progress)
    rows += [Row.of(f"perplexity {name}", "", [value]) for name, value in found.items()]
    ratio = found[Precision.AUTO] / found[Precision.FP32]
    goals.append(Goal("perplexity, times fp32", PERPLEXITY_GOAL, ratio, at_least=False))
    return Report("engine", tuple(rows), tuple(goals))


@dataclass(frozen=True, slots=True)
class _Speeds:
    """Tokens a second of each contender: [run]."""

    threads: int
    prefill: dict[str, list[float]]
    decode: dict[str, list[float]]

    def rows(self) -> list[Row]:
        unit = f"tokens/s, {self.threads} thread{'s' if self.threads > 1 else ''}"
        kinds = (("prefill", self.prefill), ("decode", self.decode))
        return [
            Row.of(f"{name} {kind}", unit, values)
            for kind, figures in kinds
            for name, values in figures.items()
        ]

    def goals(self, names: list[str]) -> list[Goal]:
        """Each rival's medians against ours."""
        goals = []
        for kind, figures, target in (
            ("prefill", self.prefill, PREFILL_GOAL),
            ("decode", self.decode, DECODE_GOAL),
        ):
            medians = {name: Row.of(name, "", values).median for name, values in figures.items()}
            goals += [
                Goal(
                    f"{kind}, times {name}, {self.threads} thread{'s' if self.threads > 1 else ''}",
                    target,
                    medians["potluck"] / medians[name],
                )
                for name in names
            ]
        return goals


def _speeds(names: list[str], model: Path, threads: int, runs: int, progress: Progress) -> _Speeds:
    prefill: dict[str, list[float]] = {name: [] for name in names}
    decode: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        ask = {name: stack.enter_context(_contender(name, model, threads)) for name in names}
        for turn in range(runs + 1):  # the first one warms up
            for name in names:
                progress(f"{name}, {threads} thread(s), run {turn} of {runs}")
                prefill_s = ask[name](f"prefill {PREFILL_TOKENS}")
                decode_s = ask[name](f"decode {DECODE_TOKENS}")
                if turn:
                    prefill[name].append(PREFILL_TOKENS / prefill_s)
                    decode[name].append(DECODE_TOKENS / decode_s)
    return _Speeds(threads, prefill, decode)


@dataclass(frozen=True, slots=True)
class _Many:
    rows: list[Row]
    ratio: float
    memory_bytes: float


def _many(model: Path, runs: int, progress: Progress) -> _Many:
    """Conversations at once on one device, against one alone, in turns; and the peak memory after
    a prompt of 512 and all of that.
    """
    figures: dict[int, list[float]] = {1: [], SESSIONS: []}
    with _contender("potluck", model, 1) as ask:
        ask(f"prefill {PREFILL_TOKENS}")
        memory_bytes = ask("memory")
        for turn in range(runs + 1):
            for sessions, values in figures.items():
                progress(f"{sessions} stream(s), run {turn} of {runs}")
                seconds = ask(f"many {sessions} {DECODE_TOKENS // 2}")
                if turn:
                    values.append(sessions * (DECODE_TOKENS // 2) / seconds)
    rows = [
        Row.of(
            f"potluck {sessions} stream{'s' if sessions > 1 else ''}", "tokens/s together", values
        )
        for sessions, values in figures.items()
    ]
    return _Many(rows, rows[1].median / rows[0].median, memory_bytes)


def _start_s(model: Path, progress: Progress) -> float:
    """From the start of a process to its first token, the file in the system's cache."""
    progress("start to first token")
    started_s = time.perf_counter()
    with _contender("potluck", model, 1) as ask:
        ask("prefill 16")
        return time.perf_counter() - started_s


@contextmanager
def _contender(name: str, model: Path, threads: int) -> Iterator[Callable[[str], float]]:
    """A process for one engine; the returned function gives it a command and waits."""
    cores = sorted(os.sched_getaffinity(0))[-threads:]
    process = subprocess.Popen(  # noqa: S603 - our own module, with our own words
        [sys.executable, "-m", "apps.bench.contenders", name, str(model), str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        preexec_fn=lambda: os.sched_setaffinity(0, cores),  # noqa: PLW1509 - no threads here yet
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def ask(command: str) -> float:
        stdin.write(command + "\n")
        stdin.flush()
        return float(_line())

    def _line() -> str:
        """Engines print what they like; ours is the line that is a number, or `ready`."""
        for line in stdout:
            word = line.strip()
            if word == "ready" or word.replace(".", "", 1).replace("e-", "", 1).isdigit():
                return word
        raise ConfigError(f"{name} ended with status {process.wait()}; it does not run here")

    try:
        if _line() != "ready":
            raise ConfigError(f"{name} did not start")
        yield ask
    finally:
        stdin.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        stdout.close()

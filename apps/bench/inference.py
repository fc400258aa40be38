"""`potluck bench inference`: what several devices gain over one, in emulated homes.

Every strategy is a plan in the very same runtime; beside them stand Megatron's over gloo, and what
no strategy can beat: the work alone and the wire alone.
"""

from __future__ import annotations

import asyncio
import signal
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from apps.bench import home
from apps.bench.cases import ANSWERING, LAYERS, Cases, shapes_of
from apps.bench.home import Environment
from apps.bench.inference_goals import Figures, goals_of
from apps.bench.measuring import Measuring, Passes
from apps.bench.passes import Model
from apps.bench.report import Report, Row
from apps.bench.strategies import PLANNER
from mesh.errors import ConfigError
from planner.plan import Prediction

T = TypeVar("T")

ENVIRONMENTS: Final = (
    *(f"{count}x0.25@{mbit}" for count in (2, 4) for mbit in (125, 500, 1000)),
    *(f"{cores}@{mbit}" for cores in ("0.5+0.25+0.125", "0.5+0.125") for mbit in (125, 1000)),
    "2x1@1000",
    "2x1",
    "2x0.25:450MB@125",  # too little for any of the models on one device
)
QUICK: Final = ("2x0.25@125", "2x1@1000")
MIN_RUNS: Final = 5

Progress = Callable[[str], None]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be measured, as a person says it."""

    environments: tuple[str, ...] = ENVIRONMENTS
    models: tuple[str, ...] = (*LAYERS, ANSWERING)
    runs: int = MIN_RUNS

    @property
    def homes(self) -> list[Environment]:
        """Raises ConfigError for what is none."""
        return [Environment.parse(text) for text in self.environments]


def quick(asked: Asked) -> Asked:
    """What takes two minutes and still shows most of it."""
    return replace(asked, environments=QUICK, models=tuple(LAYERS)[:1])


def run(asked: Asked, progress: Progress) -> Report:
    """Raises ConfigError for what cannot be asked; what cannot be here is skipped, with why."""
    if asked.runs < MIN_RUNS:
        raise ConfigError(f"a median wants at least {MIN_RUNS} runs; got {asked.runs}")
    homes = asked.homes
    shapes_of(asked.models)
    if reason := home.why_not():
        return Report("inference", (), (), (f"everything: {reason}",))
    return _until_signalled(_measure(homes, asked, progress))


async def _measure(homes: Sequence[Environment], asked: Asked, progress: Progress) -> Report:
    passes: list[Passes] = []
    figures: list[Figures] = []
    skipped: list[str] = []
    with tempfile.TemporaryDirectory(prefix="potluck-bench-") as folder:
        cases = Cases(asked.models, Path(folder))
        for number, environment in enumerate(homes):
            if reason := home.why_not_here(environment):
                skipped.append(f"{environment}: {reason}")
                continue
            async with Measuring.of(environment, progress) as measuring:
                for case in cases.of(environment, measuring.party, is_first=number == 0):
                    found = await measuring.run(case, asked.runs)
                    passes += found
                    figures.append(_figures(environment, case.model, found))
    skipped += [f"{_where(one)}: {one.failed}" for one in passes if one.failed]
    rows = tuple(row for one in passes for row in rows_of(one))
    return Report("inference", rows, tuple(goals_of(figures)), (*cases.skipped, *skipped))


def _figures(environment: Environment, model: Model, found: Sequence[Passes]) -> Figures:
    predicted = next((one.predicted for one in found if one.strategy == PLANNER), None)
    return Figures(
        environment,
        model.name,
        {one.strategy: one.seconds for one in found if one.done},
        {one.strategy: one.error for one in found if one.error is not None},
        predicted,
        {one.strategy: one.token_seconds for one in found if one.token_seconds},
        {one.strategy: one.alike for one in found if one.alike is not None},
    )


def _where(one: Passes) -> str:
    return f"{one.environment}, {one.model}: {one.strategy}"


def rows_of(one: Passes) -> Iterator[Row]:
    """Milliseconds of a pass; and what it took of the devices, where that is known."""
    if not one.done:
        return
    where = _where(one)
    words = f" ({one.words})" if one.words else ""
    yield Row.of(f"{where}{words}", "ms", [1e3 * seconds for seconds in one.seconds])
    if one.token_seconds:
        yield Row.of(f"{where}, a token", "ms", [1e3 * seconds for seconds in one.token_seconds])
    if one.predicted is not None:
        yield from _predicted(one, one.predicted)
    if one.error is not None:
        yield Row.of(f"{where}, error", "of the largest number", [one.error])
    if one.alike is not None:
        yield Row.of(f"{where}, tokens as of one device", "of all", [one.alike])
    if any(done.cpu_s for done in one.done):
        busiest = [1e3 * max(done.cpu_s) for done in one.done]
        yield Row.of(f"{where}, busiest device", "ms CPU", busiest)
    if any(done.sent_bytes for done in one.done):
        yield Row.of(f"{where}, sent", "MB", [done.sent_bytes / 1e6 for done in one.done])


def _predicted(one: Passes, predicted: Prediction) -> Iterator[Row]:
    """Beside what was measured: below 1, it was quicker."""
    where, expected_s, token_s = _where(one), predicted.prefill_s, predicted.decode_s
    yield Row.of(f"{where}, predicted", "ms", [1e3 * expected_s])
    ratios = [seconds / expected_s for seconds in one.seconds]
    yield Row.of(f"{where}, measured", "of predicted", ratios)
    if one.token_seconds:
        yield Row.of(f"{where}, a token predicted", "ms", [1e3 * token_s])
        ratios = [seconds / token_s for seconds in one.token_seconds]
        yield Row.of(f"{where}, a token measured", "of predicted", ratios)


def _until_signalled(work: Coroutine[Any, Any, T]) -> T:
    """Runs it to its end. The first Ctrl-C or SIGTERM ends it in order, and no other disturbs that:
    whatever was made on this machine is to be gone afterwards.
    """

    async def guarded() -> T:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(work)

        def end() -> None:
            for number in _SIGNALS:
                loop.add_signal_handler(number, lambda: None)
            task.cancel()

        for number in _SIGNALS:
            loop.add_signal_handler(number, end)
        try:
            return await task
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None

    return asyncio.run(guarded())

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
from apps.bench.home import Environment
from apps.bench.inference_goals import Figures, goals_of
from apps.bench.measuring import Measuring, Passes
from apps.bench.passes import Model
from apps.bench.report import Report, Row
from apps.bench.shapes import SHAPES, Shape
from apps.bench.strategies import BOUNDS, ONE, Party, Sizes, Strategy, strategies_for
from mesh.errors import ConfigError
from runtime.checkpoints import open_model
from runtime.compute.precision import Precision

T = TypeVar("T")

TOKENS: Final = 284  # of a pass: the mean length of what Galaxy was measured with
ENVIRONMENTS: Final = (
    *(f"{count}x0.25@{mbit}" for count in (2, 4) for mbit in (125, 500, 1000)),
    *(f"{cores}@{mbit}" for cores in ("0.5+0.25+0.125", "0.5+0.125") for mbit in (125, 1000)),
    "2x1@1000",
    "2x1",
)
QUICK: Final = ("2x0.25@125", "2x1@1000")
LAYERS: Final = {"bert-large": 4, "gpt2-large": 4, "distilbert": 6}  # all, or as fit the time
MIN_RUNS: Final = 5

Progress = Callable[[str], None]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be measured, as a person says it."""

    environments: tuple[str, ...] = ENVIRONMENTS
    models: tuple[str, ...] = tuple(LAYERS)
    runs: int = MIN_RUNS

    @property
    def homes(self) -> list[Environment]:
        """Raises ConfigError for what is none."""
        return [Environment.parse(text) for text in self.environments]

    @property
    def shapes(self) -> list[Shape]:
        """Raises ConfigError for a name that is not known."""
        if unknown := [name for name in self.models if name not in SHAPES]:
            known = ", ".join(SHAPES)
            raise ConfigError(f"no model {', '.join(unknown)} is measured; there are: {known}")
        return [SHAPES[name] for name in self.models]


def quick(asked: Asked) -> Asked:
    """What takes two minutes and still shows most of it."""
    return replace(asked, environments=QUICK, models=tuple(LAYERS)[:1])


def run(asked: Asked, progress: Progress) -> Report:
    """Raises ConfigError for what cannot be asked; what cannot be here is skipped, with why."""
    if asked.runs < MIN_RUNS:
        raise ConfigError(f"a median wants at least {MIN_RUNS} runs; got {asked.runs}")
    homes, shapes = asked.homes, asked.shapes
    if reason := home.why_not():
        return Report("inference", (), (), (f"everything: {reason}",))
    return _until_signalled(_measure(homes, shapes, asked.runs, progress))


async def _measure(
    homes: Sequence[Environment], shapes: Sequence[Shape], runs: int, progress: Progress
) -> Report:
    passes: list[Passes] = []
    figures: list[Figures] = []
    skipped: list[str] = []
    with tempfile.TemporaryDirectory(prefix="potluck-bench-") as folder:
        models = [_made(shape, Path(folder)) for shape in shapes]
        for environment in homes:
            if reason := home.why_not_here(environment):
                skipped.append(f"{environment}: {reason}")
                continue
            async with Measuring.of(environment, progress) as measuring:
                for model in models:
                    strategies = strategies_for(measuring.party)
                    bound = bound_of(strategies, measuring.party)
                    found = await measuring.run(model, strategies, bound, runs)
                    passes += found
                    figures.append(_figures(environment, model, found))
    skipped += [f"{_where(one)}: {one.failed}" for one in passes if one.failed]
    rows = tuple(row for one in passes for row in _rows(one))
    return Report("inference", rows, tuple(goals_of(figures)), tuple(skipped))


def bound_of(strategies: Sequence[Strategy], party: Party) -> Strategy:
    """The one whose work and wire are measured alone: Galaxy's, with fp16 on the wire."""
    wanted = f"hybrid {'even' if party.is_even else 'by speed'} fp16"
    return next(one for one in strategies if one.name == wanted)


def _made(shape: Shape, folder: Path) -> Model:
    layers = LAYERS[shape.name]
    path = shape.write(folder, layers)
    model_id = open_model(path, Precision.FP32).model_id
    name = shape.name if layers == shape.layers else f"{shape.name}, {layers} of {shape.layers}"
    return Model(name, path, model_id, Sizes(layers, shape.heads, shape.ffn), TOKENS)


def _figures(environment: Environment, model: Model, found: Sequence[Passes]) -> Figures:
    return Figures(
        environment,
        model.name,
        {one.strategy: one.seconds for one in found if one.done},
        {one.strategy: one.error for one in found if one.error is not None},
    )


def _where(one: Passes) -> str:
    return f"{one.environment}, {one.model}: {one.strategy}"


def _rows(one: Passes) -> Iterator[Row]:
    """Milliseconds of a pass; and what it took of the devices, where that is known."""
    if not one.done:
        return
    where = _where(one)
    yield Row.of(where, "ms", [1e3 * seconds for seconds in one.seconds])
    if one.error is not None and one.strategy not in (ONE, *BOUNDS):
        yield Row.of(f"{where}, error", "of the largest number", [one.error])
    if any(done.cpu_s for done in one.done):
        busiest = [1e3 * max(done.cpu_s) for done in one.done]
        yield Row.of(f"{where}, busiest device", "ms CPU", busiest)
    if any(done.sent_bytes for done in one.done):
        yield Row.of(f"{where}, sent", "MB", [done.sent_bytes / 1e6 for done in one.done])


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

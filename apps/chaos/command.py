"""`potluck chaos --fault NAME`: what it runs, tells, and writes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from apps.chaos.faults import FAULTS
from apps.chaos.figures import QUANTILES, TIMES, Line, fold
from apps.chaos.record import Record
from apps.chaos.runs import Asked, run_all
from apps.chaos.soak import soak
from apps.local_mesh import DeviceFailed
from mesh.errors import ConfigError
from runtime.stored.model_files import DEFAULT_MODEL, has_default_model

SOAK: Final = "soak"
SOAK_S: Final = 3600.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of all runs."""

    lines: tuple[Line, ...]  # folded, one a fault; or the soak's own
    wrong: tuple[str, ...]

    @property
    def text(self) -> str:
        """A few lines for a person."""
        return "\n".join(map(_text, self.lines))


def run_faults(asked: Asked, out: Path | None, tell: Callable[[str], None]) -> Outcome:
    """All runs, each a line to `out` and to `tell`.

    Raises ConfigError for a fault that there is not, or that this machine cannot have.
    """
    _check(asked)
    _one_thread_each()
    file = _appending(out)

    def note(record: Record) -> None:
        line = json.dumps(record.as_dict())
        tell(line)
        file(line)

    if SOAK in asked.faults:
        seconds = SOAK_S if asked.seconds is None else asked.seconds
        hour = _unless_ended(
            soak(seconds, asked.seeds.start, note, model=asked.model, memory=asked.memory)
        )
        file(json.dumps(hour.as_dict()))
        return Outcome((hour.as_dict(),), hour.wrong)
    records = _unless_ended(run_all(asked, note))
    if not records:
        raise ConfigError("there was no time for a single run; give it more --seconds")
    lines = fold(record.as_dict() for record in records)
    wrong = [f"{one.fault}, seed {one.seed}: {text}" for one in records for text in one.wrong]
    return Outcome(tuple(lines), tuple(wrong))


def _text(line: Line) -> str:
    if line["fault"] == SOAK:
        return (
            f"{line['faults']} faults in {line['seconds'] / 60:.1f} min, tokens equal in "
            f"{line['tokens_equal']}, resident memory drifted by {line['rss_drift']:.1%}"
        )
    lines = [f"{line['fault']}: {line['runs']} runs, tokens equal in {line['tokens_equal']}"]
    for time in TIMES:
        if time in line:
            figures = "  ".join(f"{name} {line[time][name]:7.0f}" for name in QUANTILES)
            lines.append(f"{time:>10}  {figures}  n {line[time]['n']}")
    return "\n".join(lines)


def _check(asked: Asked) -> None:
    names = [*FAULTS, SOAK]
    for name in asked.faults:
        if name not in names:
            raise ConfigError(f"no fault is called {name!r}; there are: {', '.join(names)}")
    if asked.model == DEFAULT_MODEL and not has_default_model():
        raise ConfigError(
            "the default model is not installed (pip install 'potluck[gemma]'), and these runs "
            "talk with it"
        )
    if SOAK in asked.faults:
        if asked.faults != (SOAK,):
            raise ConfigError("a soak has all faults in it; ask for nothing beside it")
        return  # it takes what this machine can have
    for name in asked.faults:
        fault = FAULTS[name]
        if reason := fault.equipment.why_not():
            raise ConfigError(f"{name} cannot be done here: {reason}")
        if asked.devices is not None and asked.devices not in fault.devices:
            fits = f"{fault.devices.start} to {fault.devices.stop - 1}"
            raise ConfigError(f"{name} takes {fits} devices, not {asked.devices}")


def _one_thread_each() -> None:
    """Several daemons share the cores of this machine: more threads would only fight for them."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def _appending(out: Path | None) -> Callable[[str], None]:
    """Writes a line at the end of the file. Raises ConfigError where that cannot be."""
    if out is None:
        return lambda line: None

    def write(line: str) -> None:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with out.open("a") as file:
                file.write(line + "\n")
        except OSError as error:
            raise ConfigError(f"{out} cannot be written: {error.strerror}") from None

    return write


def _unless_ended(work: Coroutine[Any, Any, T]) -> T:
    """In a loop of its own, in which SIGTERM too leaves no daemon and no namespace behind.

    Raises DeviceFailed for a home that could not be built.
    """

    async def run() -> T:
        task = asyncio.ensure_future(work)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await task

    try:
        return asyncio.run(run())
    except TimeoutError as error:  # only while a home is built; later ones stand in the records
        raise DeviceFailed(
            f"the devices did not start or meet: {error}; is the machine busy with something else?"
        ) from None

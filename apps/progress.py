"""A bar for what comes over a network: how much of it, how fast, how long still."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

STAGES = {
    "asking": "asking the other devices",
    "waiting": "another device is bringing it",
    "fetching": "from the other devices",
    "downloading": "from the hub",
    "copying": "copying",
    "checking": "checking",
    "done": "done",
}


class Shown(Protocol):
    """A bar on the terminal."""

    def show(self, stage: str, done_bytes: int, wanted_bytes: int) -> None:
        """How far it is; `wanted_bytes` is 0 where that is not known yet."""


class _Silent:
    def show(self, stage: str, done_bytes: int, wanted_bytes: int) -> None:
        """Nothing is shown."""


class _Bar:
    def __init__(self, progress: Progress, name: str) -> None:
        self._progress = progress
        self._name = name
        self._task = progress.add_task(name, total=None)

    def show(self, stage: str, done_bytes: int, wanted_bytes: int) -> None:
        self._progress.update(
            self._task,
            description=f"{self._name}: {STAGES.get(stage, stage)}",
            completed=done_bytes,
            total=wanted_bytes or None,
        )


@contextmanager
def show_progress(console: Console, name: str, *, quiet: bool) -> Iterator[Shown]:
    """Nothing where the output is not a terminal."""
    if quiet or not console.is_interactive:
        yield _Silent()
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Bar(progress, name)

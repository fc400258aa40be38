"""What a benchmark prints: rows as measured, and goals computed from those rows alone."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Row:
    """One thing measured several times."""

    what: str
    unit: str
    median: float
    least: float
    most: float
    count: int

    @classmethod
    def of(cls, what: str, unit: str, values: Sequence[float]) -> Row:
        return cls(what, unit, median(values), min(values), max(values), len(values))


@dataclass(frozen=True, slots=True)
class Goal:
    """`measured` is held against `target`, from below or from above."""

    goal: str
    target: float
    measured: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        return self.measured >= self.target if self.at_least else self.measured <= self.target


@dataclass(frozen=True, slots=True)
class Report:
    name: str
    rows: tuple[Row, ...]
    goals: tuple[Goal, ...]
    skipped: tuple[str, ...] = ()  # what could not be measured here, each with why

    def as_dict(self) -> dict[str, Any]:
        goals = [{**asdict(goal), "met": goal.met} for goal in self.goals]
        return {
            "name": self.name,
            "machine": machine(),
            "rows": [asdict(row) for row in self.rows],
            "goals": goals,
            "skipped": list(self.skipped),
        }


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        model = named[0] if named else model
    return {
        "processor": model,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def show(console: Console, report: Report) -> None:
    table = Table("measured", "median", "min", "max", "runs", title=f"bench {report.name}")
    for row in report.rows:
        figures = (f"{value:,.4g}" for value in (row.median, row.least, row.most))
        table.add_row(f"{row.what} [dim]{row.unit}[/]", *figures, str(row.count))
    console.print(table)
    goals = Table("goal", "target", "measured", "met")
    for goal in report.goals:
        sign = ">=" if goal.at_least else "<="
        met = "[green]yes[/]" if goal.met else "[red]no[/]"
        goals.add_row(goal.goal, f"{sign} {goal.target:g}", f"{goal.measured:.4g}", met)
    console.print(goals)
    for text in report.skipped:
        console.print(f"[yellow]not measured[/] {text}")

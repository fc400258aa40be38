"""What is drawn of a plan, however it is drawn: bars of what each device holds, and timelines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

Run = tuple[float, float]  # from, to: fractions of the whole

WHOLE: Final[Run] = (0.0, 1.0)
NOTHING: Final[Run] = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Bar:
    """A device's part of something that is cut."""

    run: Run
    label: str  # how much it is


@dataclass(frozen=True, slots=True)
class Holding:
    """What one device has, a bar for each of the sheet's columns."""

    name: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class Lane:
    """What one device does in a timeline."""

    name: str
    compute: tuple[Run, ...]
    wire: tuple[Run, ...]
    wait: tuple[Run, ...]

    @property
    def kinds(self) -> tuple[tuple[str, tuple[Run, ...]], ...]:
        return ("compute", self.compute), ("wire", self.wire), ("wait", self.wait)


@dataclass(frozen=True, slots=True)
class Timeline:
    title: str
    milliseconds: float
    lanes: tuple[Lane, ...]


@dataclass(frozen=True, slots=True)
class Sheet:
    model: str
    columns: tuple[str, ...]
    holdings: tuple[Holding, ...]
    timelines: tuple[Timeline, ...]


def sheet_of(body: dict[str, Any]) -> Sheet:
    """Of what /potluck/plan answers."""
    plan = body["chosen"]
    names = [" ".join(device["name"].split()) for device in body["devices"]]
    columns = _columns(plan)
    shares = {share["device"]: share for share in plan["stages"]}
    heads = {share["device"]: share for share in plan["head"]}
    holdings = tuple(
        Holding(
            name,
            tuple(
                _bar(heads if field == "tokens" else shares, device["id"], field, total)
                for field, total in columns.items()
            ),
        )
        for name, device in zip(names, body["devices"], strict=True)
    )
    return Sheet(
        body["model"],
        tuple(_column_text(field, total) for field, total in columns.items()),
        holdings,
        tuple(_timeline(one, names) for one in body["timelines"]),
    )


def share_of(runs: Iterable[Run]) -> float:
    """How much of the whole they are; runs do not overlap."""
    return sum(last - first for first, last in runs)


def time_text(milliseconds: float) -> str:
    """Three digits."""
    if milliseconds >= 1e3:
        return f"{milliseconds / 1e3:.3g} s"
    return f"{milliseconds:.0f} ms" if milliseconds >= 99.5 else f"{milliseconds:.3g} ms"


def _columns(plan: dict[str, Any]) -> dict[str, float]:
    """What is cut, and how much there is of it; the layers where nothing else is."""
    stages, found = plan["stages"], {}
    for field in ("heads", "columns", "rows"):
        cuts = [share[field] for share in stages if share.get(field)]
        if cuts:
            found[field] = max(last for _, last in cuts)
    many = len({share["stage"] for share in stages}) > 1
    if many or not found:
        found = {"layers": max(share["layers"][1] for share in stages)} | found
    if plan["head"]:
        found["tokens"] = max(share["tokens"][1] for share in plan["head"])
    return found


def _column_text(field: str, total: float) -> str:
    match field:
        case "rows":
            return "prompt's rows"
        case "tokens":
            return "vocabulary"
        case _:
            return f"{total:.0f} {field}"


def _bar(shares: dict[str, dict[str, Any]], device: str, field: str, total: float) -> Bar:
    share = shares.get(device)
    if share is None:
        return Bar(NOTHING, "-")
    span = share.get(field)
    if span is None:
        return Bar(WHOLE, "all")
    first, last = span
    run = first / total, last / total
    if field == "layers":
        return Bar(run, f"{first}-{last - 1}" if last - first > 1 else f"{first}")
    if field in ("rows", "tokens"):
        return Bar(run, f"{100 * (run[1] - run[0]):.0f} %")
    return Bar(run, f"{last - first}")


def _timeline(one: dict[str, Any], names: list[str]) -> Timeline:
    lanes = []
    for lane in one["lanes"]:
        compute, wire = (
            tuple((first / one["steps"], last / one["steps"]) for first, last in lane[kind])
            for kind in ("compute", "wire")
        )
        edges = [0.0, *(edge for run in compute for edge in run), 1.0]
        wait = tuple(run for run in zip(edges[::2], edges[1::2], strict=True) if run[1] > run[0])
        lanes.append(Lane(names[lane["device"]], compute, wire, wait))
    return Timeline(one["title"], one["ms"], tuple(lanes))

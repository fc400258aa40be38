"""`potluck status --watch`: what every device does in a pass, predicted against measured, live."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from apps.client import Client
from apps.show import layers_text

WATCH_S: Final = 1.0  # between two looks
TOLERANCE: Final = 0.15  # within which a prediction is right
LEAST_MS: Final = 0.05  # of less a ratio says nothing
LIKE_PREDICTED: Final = 128  # rows: shorter prompts are dearer, a row, than the predicted one
EFFORTS: Final = ("compute", "wire", "wait")


class _Screen(Protocol):
    def update(self, renderable: RenderableType) -> None:
        """Shows this in place of what was shown."""


async def watch(port: int, out: Console, *, as_json: bool) -> None:
    """Shows it until cancelled, as JSON one object a line. Raises as `Client` does."""
    async with Client(port) as client:
        with _screen(out) as screen:
            while True:
                body = await client.get("/potluck/efforts")
                if as_json:
                    print(json.dumps(body), flush=True)
                else:
                    screen.update(efforts(body))
                await asyncio.sleep(WATCH_S)


def efforts(body: dict[str, Any]) -> RenderableType:
    """All models, each with a table of prompts and one of tokens."""
    if not body["models"]:
        return Text("No model runs yet: potluck run MODEL 'PROMPT'")
    parts: list[RenderableType] = []
    for model in body["models"]:
        parts.append(Text.from_markup(f"[bold]{escape(model['model'])}[/], {_epoch(model)}"))
        for kind, what in (
            ("prefill", f"{model['prefill_tokens']} tokens of a prompt"),
            ("decode", "a token of an answer"),
        ):
            if model[kind] is not None:
                parts += [_whole(model[kind], what), _table(model["rows"], kind), Text()]
    return Group(
        *parts, Text("each: measured, predicted, ratio; ms; kB are of one token", style="dim")
    )


def _epoch(model: dict[str, Any]) -> str:
    return f"plan of epoch {model['epoch']}"


def _whole(whole: dict[str, Any], what: str) -> Text:
    text = Text(f"{what}: ")
    text.append_text(_compared(whole["measured_ms"], whole["predicted_ms"], is_alike=True))
    return text


def _table(rows: list[dict[str, Any]], kind: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("device", no_wrap=True, max_width=14)
    table.add_column("layers", no_wrap=True)
    for column in (*EFFORTS, "kB out", "in"):
        table.add_column(column, no_wrap=True, justify="right")
    for row in rows:
        table.add_row(
            Text(row["name"], overflow="ellipsis"),
            layers_text(row["layers"]),
            *_cells(row[kind], kind),
        )
    return table


def _cells(one: dict[str, Any], kind: str) -> Iterator[Text]:
    measured, predicted = one["measured"], one["predicted"] or {}
    is_alike = measured is not None and (
        measured["rows"] >= LIKE_PREDICTED if kind == "prefill" else measured["conversations"] < 1.5
    )
    for effort in EFFORTS:
        took_ms = measured[f"{effort}_ms"] if measured else None
        yield _compared(took_ms, predicted.get(f"{effort}_ms"), is_alike=is_alike)
    for way in ("sent_kb", "received_kb"):
        yield Text(_short(measured[way]) if measured else "-")


def _compared(measured: float | None, predicted: float | None, *, is_alike: bool) -> Text:
    """Coloured where the prediction is wrong, and was one of such work."""
    text = Text("-" if measured is None else _short(measured))
    if predicted is None:
        return text
    text.append(f" {_short(predicted)}", style="dim")
    if measured is not None and max(measured, predicted) >= LEAST_MS:
        ratio = measured / max(predicted, LEAST_MS)
        right = abs(ratio - 1) <= TOLERANCE
        style = "dim" if not is_alike else "green" if right else "bold red"
        text.append(f" {_short(ratio)}x", style=style)
    return text


def _short(number: float) -> str:
    """Three digits."""
    digits = 0 if number >= 99.5 else 1 if number >= 9.95 else 2
    return f"{number:.{digits}f}"


class _Printed:
    def __init__(self, out: Console) -> None:
        self._out = out

    def update(self, renderable: RenderableType) -> None:
        self._out.print(renderable)


@contextmanager
def _screen(out: Console) -> Iterator[_Screen]:
    """Where the output is no terminal, what is shown stands one below the other."""
    if not out.is_terminal or out.is_dumb_terminal:
        yield _Printed(out)
        return
    with Live(console=out, auto_refresh=False) as live:
        yield _Refreshed(live)


class _Refreshed:
    def __init__(self, live: Live) -> None:
        self._live = live

    def update(self, renderable: RenderableType) -> None:
        self._live.update(renderable, refresh=True)

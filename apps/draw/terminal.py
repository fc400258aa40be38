"""A plan drawn with characters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from rich.cells import set_cell_size
from rich.text import Text

from apps.draw.sheet import Bar, Run, Sheet, Timeline, share_of, time_text

STYLES: Final = {"compute": "green", "wire": "cyan", "wait": "yellow"}
NAME_WIDTH: Final = 12
GAP: Final = 2
MOST_BAR_WIDTH: Final = 32
LEVELS: Final = " ▁▂▃▄▅▆▇█"  # how much of a moment is filled
PLAIN_LEVELS: Final = " .:|#"  # where the terminal has no such characters
HALVES: Final = {(False, False): "·", (True, False): "▌", (False, True): "▐", (True, True): "█"}


def draw(sheet: Sheet, width: int, *, plain: bool = False) -> Iterator[Text]:
    """Line by line, at most `width` wide where that is 80 or more; `plain`: names and ASCII."""
    yield Text("who holds what", style="bold")
    yield from _holdings(sheet, width, plain=plain)
    for one in sheet.timelines:
        yield Text()
        yield Text(f"{one.title}: {time_text(one.milliseconds)}", style="bold")
        yield from _timeline(one, width, plain=plain)


def cells(run: Run, width: int) -> list[tuple[bool, bool]]:
    """Which halves of so many characters a run covers; a run that is something covers one."""
    first, last = round(2 * width * run[0]), round(2 * width * run[1])
    if run[1] > run[0] and last <= first:
        first = min(first, 2 * width - 1)
        last = first + 1
    return [(first <= 2 * n < last, first <= 2 * n + 1 < last) for n in range(width)]


def filled(runs: Sequence[Run], width: int) -> list[float]:
    """How much of each of so many equal moments the runs cover, 0 to 1."""
    found = [0.0] * width
    for first, last in runs:
        for n in range(int(first * width), min(width, int(last * width) + 1)):
            found[n] += max(0.0, min(last * width, n + 1) - max(first * width, n))
    return [min(1.0, one) for one in found]


def _holdings(sheet: Sheet, width: int, *, plain: bool) -> Iterator[Text]:
    labels = [
        max(len(holding.bars[n].label) for holding in sheet.holdings)
        for n in range(len(sheet.columns))
    ]
    room = (width - NAME_WIDTH) // len(sheet.columns)
    widths = [max(4, min(MOST_BAR_WIDTH, room - GAP - 1 - label)) for label in labels]
    head = Text(" " * NAME_WIDTH)
    for title, bar_width, label in zip(sheet.columns, widths, labels, strict=True):
        head.append(" " * GAP + _fit(title, bar_width + 1 + label))
    head.rstrip()
    head.stylize("dim")
    yield head
    for holding in sheet.holdings:
        line = Text(_fit(holding.name, NAME_WIDTH))
        for bar, bar_width, label in zip(holding.bars, widths, labels, strict=True):
            line.append(" " * GAP)
            line.append_text(_bar(bar, bar_width, plain=plain))
            line.append(f" {bar.label:<{label}}")
        line.rstrip()
        yield line


def _bar(bar: Bar, width: int, *, plain: bool) -> Text:
    text = Text()
    for halves in cells(bar.run, width):
        shown = ("#" if any(halves) else ".") if plain else HALVES[halves]
        text.append(shown, style="magenta" if any(halves) else "dim")
    return text


def _timeline(one: Timeline, width: int, *, plain: bool) -> Iterator[Text]:
    levels = PLAIN_LEVELS if plain else LEVELS
    kinds = max(map(len, STYLES))
    room = max(10, width - NAME_WIDTH - kinds - len(" 100 %") - 2 * GAP)
    for lane in one.lanes:
        name = lane.name
        for kind, runs in lane.kinds:
            line = Text(_fit(name, NAME_WIDTH) + " " * GAP)
            line.append(f"{kind:<{kinds}}" + " " * GAP, style="dim")
            moments = "".join(_level(part, levels) for part in filled(runs, room))
            line.append(moments, style=STYLES[kind])
            line.append(f" {100 * share_of(runs):3.0f} %", style="dim")
            yield line
            name = ""
    middle, end = time_text(one.milliseconds / 2), time_text(one.milliseconds)
    scale = "0" + " " * (room // 2 - 1 - len(middle) // 2) + middle
    scale += " " * max(1, room - len(scale) - len(end)) + end
    yield Text(" " * (NAME_WIDTH + kinds + 2 * GAP) + scale, style="dim")


def _level(part: float, levels: str) -> str:
    """Whatever is more than nothing shows."""
    most = len(levels) - 1
    return levels[max(1, min(most, round(part * most)))] if part > 1e-9 else levels[0]


def _fit(text: str, width: int) -> str:
    return set_cell_size(text, width)

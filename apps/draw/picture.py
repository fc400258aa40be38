"""A plan drawn as a PNG. Needs Pillow, the extra `draw`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from apps.draw.sheet import Run, Sheet, Timeline, share_of, time_text
from mesh.errors import ConfigError

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

WIDTH: Final = 1280  # pixels, as all that follows
MARGIN: Final = 32
NAME_WIDTH: Final = 150
KIND_WIDTH: Final = 90
TEXT: Final = 16
TITLE: Final = 19
ROW: Final = 30  # of a device's bars
LANE: Final = 20
LANE_GAP: Final = 12  # between two devices

PAPER: Final = "#ffffff"
INK: Final = "#1f2328"
FAINT: Final = "#6e7781"
EMPTY: Final = "#eceff2"
HELD: Final = "#8250df"
COLORS: Final = {"compute": "#2da44e", "wire": "#1f7fd1", "wait": "#e3b341"}


def check_picture(path: Path) -> None:
    """Raises ConfigError where no picture can be made, or not there."""
    try:
        import PIL  # noqa: F401 - only whether it is here
    except ImportError:
        raise ConfigError(
            "a picture needs Pillow: .venv/bin/pip install -c constraints.txt -e '.[draw]'"
        ) from None
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"expected a file in a folder that exists; {path.parent} does not")
    if path.is_dir():
        raise ConfigError(f"expected a file to write the picture to; {path} is a folder")


def save_picture(sheet: Sheet, path: Path) -> None:
    """Writes a PNG, whatever the name ends with. Raises ConfigError, as `check_picture` too."""
    check_picture(path)
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (WIDTH, _height(sheet)), PAPER)
    used = _Page(ImageDraw.Draw(image)).draw(sheet)
    try:
        image.crop((0, 0, WIDTH, used)).save(path, format="PNG")
    except OSError as error:
        raise ConfigError(f"the picture cannot be written: {error}") from None


def _height(sheet: Sheet) -> int:
    """No less than is used."""
    holdings = TITLE + 2 * TEXT + ROW * len(sheet.holdings) + 3 * MARGIN
    return holdings + sum(_timeline_height(one) for one in sheet.timelines)


def _timeline_height(one: Timeline) -> int:
    return TITLE + TEXT + len(one.lanes) * (3 * LANE + LANE_GAP) + TEXT + 2 * MARGIN


class _Page:
    """From the top down."""

    def __init__(self, pen: ImageDraw) -> None:
        from PIL import ImageFont

        self._pen = pen
        self._text = ImageFont.load_default(TEXT)
        self._title = ImageFont.load_default(TITLE)
        self._y = MARGIN

    def draw(self, sheet: Sheet) -> int:
        """Returns how far down it went."""
        self._head(f"{sheet.model}: who holds what")
        self._holdings(sheet)
        for one in sheet.timelines:
            self._y += MARGIN
            self._head(f"{one.title}: {time_text(one.milliseconds)}")
            self._timeline(one)
        return self._y + MARGIN

    def _holdings(self, sheet: Sheet) -> None:
        room = (WIDTH - 2 * MARGIN - NAME_WIDTH) // len(sheet.columns)
        labels = 64
        for number, title in enumerate(sheet.columns):
            self._write(MARGIN + NAME_WIDTH + number * room, title, FAINT)
        self._y += TEXT + 10
        for holding in sheet.holdings:
            self._write(MARGIN, self._fit(holding.name, NAME_WIDTH - 10), INK)
            for number, bar in enumerate(holding.bars):
                left = MARGIN + NAME_WIDTH + number * room
                self._runs(left, room - labels - 16, ROW - 12, (bar.run,), HELD)
                self._write(left + room - labels - 6, bar.label, INK)
            self._y += ROW

    def _timeline(self, one: Timeline) -> None:
        left = MARGIN + NAME_WIDTH + KIND_WIDTH
        room = WIDTH - MARGIN - left - 60
        for lane in one.lanes:
            self._write(MARGIN, self._fit(lane.name, NAME_WIDTH - 10), INK)
            for kind, runs in lane.kinds:
                self._write(MARGIN + NAME_WIDTH, kind, FAINT)
                self._runs(left, room, LANE - 4, runs, COLORS[kind])
                self._write(left + room + 10, f"{100 * share_of(runs):.0f} %", FAINT)
                self._y += LANE
            self._y += LANE_GAP
        for part in (0.0, 0.25, 0.5, 0.75, 1.0):
            text = time_text(part * one.milliseconds) if part else "0"
            shift = part * self._pen.textlength(text, font=self._text)
            self._write(left + round(part * room - shift), text, FAINT)
        self._y += TEXT

    def _runs(self, left: int, width: int, height: int, runs: tuple[Run, ...], color: str) -> None:
        self._box(left, left + width, height, EMPTY)
        for first, last in runs:
            if last > first:
                start = left + round(first * width)
                self._box(start, max(start + 1, left + round(last * width)), height, color)

    def _box(self, left: int, right: int, height: int, color: str) -> None:
        self._pen.rectangle((left, self._y + 2, right - 1, self._y + 1 + height), fill=color)

    def _head(self, text: str) -> None:
        self._pen.text((MARGIN, self._y), text, font=self._title, fill=INK)
        self._y += TITLE + 12

    def _write(self, left: int, text: str, color: str) -> None:
        self._pen.text((left, self._y), text, font=self._text, fill=color)

    def _fit(self, text: str, width: int) -> str:
        while self._pen.textlength(text, font=self._text) > width:
            text = text[:-1]
        return text

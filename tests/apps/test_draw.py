"""A plan drawn: whatever kind it is of, it fits the terminal, and the picture is one."""

from __future__ import annotations

import json
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from apps import show
from apps.draw.picture import COLORS, HELD, save_picture
from apps.draw.sheet import Sheet, sheet_of
from apps.draw.terminal import LEVELS, cells, draw, filled
from apps.planning.preview import choice_as_dict
from mesh.codec import encode
from mesh.errors import ConfigError
from planner.allowed import EVERYTHING, PIPELINES, Allowed
from planner.choose import Choice, choose
from planner.plan import Capacity, Split
from planner.profile import ModelProfile, Stacks
from tests.planner.homes import EPOCH, MB, PLAN, at_mbit, bert, board

DECODER = bert(12, Stacks.DECODER, head_bytes=40 * MB)


def only(split: Split, *, head: bool = False) -> Allowed:
    return Allowed(frozenset({split}), head=head)


def choice(
    devices: int, allowed: Allowed, of: ModelProfile = DECODER, memory: int = 4000
) -> Choice:
    boards = (board(n, 0.25 + n % 2 * 0.25, memory * MB, head_s=2e-2) for n in range(devices))
    return choose(at_mbit(500, *boards), of, Capacity(1, 512), EPOCH, PLAN, allowed=allowed)


def answer(devices: int, allowed: Allowed, of: ModelProfile = DECODER, memory: int = 4000) -> Any:
    """As it comes over the API."""
    return json.loads(json.dumps(choice_as_dict(choice(devices, allowed, of, memory), {}, of)))


KINDS = {
    "one device": answer(1, PIPELINES),
    "pipeline": answer(3, PIPELINES, memory=260),
    "chunks": answer(3, Allowed(chunks=True), memory=260),
    "hybrid": answer(3, only(Split.HYBRID, head=True)),
    "tensor": answer(2, only(Split.TENSOR)),
    "sequence": answer(3, only(Split.SEQUENCE)),
    "groups": answer(5, EVERYTHING, bert(24, Stacks.DECODER), 320),
    "encoder": answer(4, EVERYTHING, bert(24)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [80, 100, 132])
def test_it_fits_the_terminal(kind: str, width: int) -> None:
    body = KINDS[kind]
    lines = [line.plain for line in draw(sheet_of(body), width)]
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for device in body["devices"]:
        assert text.count(device["name"]) >= 2  # what it holds, and what it does
    assert all(f"{kind_of}  " in text for kind_of in ("compute", "wire", "wait"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_terminal_without_such_characters_gets_others(kind: str) -> None:
    for line in draw(sheet_of(KINDS[kind]), 80, plain=True):
        line.plain.encode("ascii")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_cut_is_held_once(kind: str) -> None:
    sheet = sheet_of(KINDS[kind])
    for number, column in enumerate(sheet.columns):
        bars = [holding.bars[number] for holding in sheet.holdings]
        if column == "24 layers":  # a group holds them together
            continue
        parts = sum(bar.run[1] - bar.run[0] for bar in bars if bar.label != "all")
        assert parts == pytest.approx(1.0), column


def test_the_parts_of_each_kind_are_named() -> None:
    def columns(kind: str) -> tuple[str, ...]:
        return sheet_of(KINDS[kind]).columns

    assert columns("one device") == columns("pipeline") == ("12 layers",)
    assert columns("hybrid") == ("16 heads", "4096 columns", "prompt's rows", "vocabulary")
    assert columns("tensor") == ("16 heads", "4096 columns")
    assert columns("sequence") == ("prompt's rows",)


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_computes_or_waits_at_every_moment(kind: str) -> None:
    for timeline in sheet_of(KINDS[kind]).timelines:
        for lane in timeline.lanes:
            both = [
                a + b for a, b in zip(filled(lane.compute, 50), filled(lane.wait, 50), strict=True)
            ]
            assert both == pytest.approx([1.0] * 50)


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 60))
def test_a_bar_is_as_long_as_its_part(one: float, other: float, width: int) -> None:
    run = min(one, other), max(one, other)
    halves = sum(sum(pair) for pair in cells(run, width))
    assert abs(halves - 2 * width * (run[1] - run[0])) <= 1.0
    assert (halves > 0) == (run[1] > run[0])


@given(st.lists(st.floats(0, 1), max_size=12), st.integers(1, 80))
def test_moments_add_up_to_the_runs(edges: list[float], width: int) -> None:
    edges = sorted(edges)[: len(edges) // 2 * 2]
    runs = tuple(zip(edges[::2], edges[1::2], strict=True))
    whole = sum(last - first for first, last in runs)
    assert sum(filled(runs, width)) / width == pytest.approx(whole, abs=1e-9)


def test_a_short_moment_still_shows() -> None:
    sheet = sheet_of(KINDS["pipeline"])
    shown = [line.plain for line in draw(sheet, 80) if "wire" in line.plain]
    assert all(set(LEVELS[1:]) & set(line) for line in shown[:2])


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 8), st.sampled_from([EVERYTHING, PIPELINES]), st.sampled_from([4000, 400]))
def test_the_answer_fits_a_message(devices: int, allowed: Allowed, memory: int) -> None:
    made = choice(devices, allowed, memory=memory)
    names = {one.device: "ü" * 64 for one in made.cluster.devices}
    body = choice_as_dict(made, names, DECODER)
    encode(body)  # raises for one that is too large
    assert body["candidates"][0]["chosen"]
    assert len(body["candidates"]) + body["not_shown"] == len(made.candidates)


# --- the command, and the picture -----------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_plan_shows_candidates_reason_and_drawing(kind: str) -> None:
    shown = StringIO()
    show.plan(Console(file=shown, width=100, soft_wrap=True), KINDS[kind])
    text = shown.getvalue()
    assert KINDS[kind]["chosen"]["reason"][:30] in text
    assert "who holds what" in text


def colors(path: Path) -> set[str]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        found = image.convert("RGB").getcolors(1 << 16)
    assert found is not None
    return {"#{:02x}{:02x}{:02x}".format(*color) for _, color in found if isinstance(color, tuple)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_picture_has_bars_and_lanes(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.png"
    save_picture(sheet_of(KINDS[kind]), path)
    expected = {HELD, COLORS["compute"]}
    if kind != "one device":
        expected |= set(COLORS.values())
    assert expected <= colors(path)


def test_names_that_no_font_knows_are_no_reason_to_fail(tmp_path: Path) -> None:
    body = json.loads(json.dumps(KINDS["hybrid"]))
    for device in body["devices"]:
        device["name"] = "厨房 🍲 \n" * 9
    save_picture(sheet_of(body), tmp_path / "plan.png")


def test_without_pillow_the_error_says_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ConfigError, match=r"pip install .* '\.\[draw\]'"):
        save_picture(_sheet(), tmp_path / "plan.png")


@pytest.mark.parametrize("where", ["missing/plan.png", "."])
def test_a_place_where_no_picture_can_be_is_named(tmp_path: Path, where: str) -> None:
    with pytest.raises(ConfigError, match=r"folder"):
        save_picture(_sheet(), tmp_path / where)


def _sheet() -> Sheet:
    return sheet_of(KINDS["one device"])

"""The checker finds what it is there to find, and reads nothing but the lines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from apps.sim.check import violations

HOME = {"at_s": 0.0, "device": "", "event": "home", "devices": ["d0", "d1"], "seed": 1}


def line(device: str, event: str, at_s: float = 1.0, **fields: Any) -> dict[str, Any]:
    return {"at_s": at_s, "device": device, "event": event, **fields}


def epoch(device: str, counter: int, leader: str) -> dict[str, Any]:
    return line(device, "epoch", counter=counter, leader=leader)


def view(device: str, alive: list[str], leader: str, at_s: float = 1.0) -> dict[str, Any]:
    return line(device, "view", at_s, alive=alive, leader=leader, counter=1, incarnation=1)


def plan(device: str, number: int, name: str) -> dict[str, Any]:
    return line(
        device, "plan", epoch=number, leader="d0", plan=name, model="m", devices=["d0", "d1"]
    )


GOOD = [
    HOME,
    epoch("d0", 1, "d0"),
    epoch("d1", 1, "d0"),
    plan("d0", 1, "p"),
    plan("d1", 1, "p"),
    line("d0", "asked", session=1, expected=[1, 2]),
    line("d0", "answered", session=1, tokens=[1, 2], error=None),
    line("", "over"),
]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([epoch("d1", 1, "d0")], "never declared"),
        ([epoch("d0", 2, "d0"), epoch("d1", 2, "d1"), epoch("d1", 2, "d0")], "after epoch 2 of d1"),
        ([epoch("d0", 2, "d0"), epoch("d0", 1, "d0")], "accepted epoch 1 of d0 after"),
        ([epoch("d0", 1, "d0"), plan("d0", 1, "p"), plan("d1", 1, "q")], "a second plan"),
        ([epoch("d0", 1, "d0"), plan("d0", 2, "p")], "being in epoch 1"),
        ([line("d0", "asked", session=1, expected=[1]), line("", "over")], "never ended"),
        (
            [
                line("d0", "asked", session=1, expected=[1, 2]),
                line("d0", "answered", session=1, tokens=[1, 3], error="lost"),
            ],
            "got [1, 3]",
        ),
        (
            [
                line("d0", "asked", session=1, expected=[1, 2]),
                line("d0", "answered", session=1, tokens=[1], error=None),
            ],
            "ended early",
        ),
        (
            [
                line("d0", "started"),
                line("d1", "started"),
                line("", "calm", 5.0, within_s=3.0),
                view("d0", ["d0"], "d0", 6.0),
                line("", "over", 9.0),
            ],
            "when all should agree",
        ),
        (
            [
                line("d0", "died", peer="d1", incarnation=2),
                line("d0", "joined", peer="d1", incarnation=2),
            ],
            "brought d1 back",
        ),
    ],
)
def test_each_breach_is_named(lines: list[dict[str, Any]], words: str) -> None:
    assert any(words in text for text in violations([HOME, *lines]))


def test_a_good_history_has_none() -> None:
    assert violations(GOOD) == []


@pytest.mark.parametrize(
    ("text", "status", "words"),
    [
        ("".join(json.dumps(one) + "\n" for one in GOOD), 0, ""),
        (json.dumps(epoch("d1", 1, "d0")), 1, "never declared"),
        ("no history", 2, "is no history"),
    ],
)
def test_it_is_a_program_of_its_own(tmp_path: Path, text: str, status: int, words: str) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "apps.sim.check", str(path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert words in done.stdout + done.stderr

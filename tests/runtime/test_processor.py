"""What a system tells of its processor, and how it is called here."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime import processor as module
from runtime.processor import MOST_CHARS, named, processor

PC = "processor\t: 0\nmodel name\t: Some CPU @ 2.00GHz\n\nprocessor\t: 1\nmodel name\t: Some CPU"
PI = "processor\t: 0\nBogoMIPS\t: 108.00\n\nHardware\t: BCM2835\nModel\t\t: Raspberry Pi 4 Model B"


@pytest.mark.parametrize(
    ("told", "name"),
    [
        (PC, "2 cores of Some CPU @ 2.00GHz"),
        (PI, "2 cores of Raspberry Pi 4 Model B"),
        ("model name\t:\n", ""),
        ("", ""),
        ("\x00:: :\n:", ""),
    ],
)
def test_it_is_called_as_its_maker_does(told: str, name: str) -> None:
    assert named(told, 2) == name


def test_a_name_has_an_end() -> None:
    assert len(named(f"model name: {'x' * 1000}", 2)) == MOST_CHARS


def test_a_system_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CPUINFO", tmp_path / "none")
    processor.cache_clear()
    assert processor() == ""
    processor.cache_clear()

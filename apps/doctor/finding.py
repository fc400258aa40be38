"""One thing that the doctor found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    PROBLEM = "problem"  # devices do not meet because of it
    NOTE = "note"  # good to know
    WELL = "well"


@dataclass(frozen=True, slots=True)
class Finding:
    """`key` names the cause for programs; `do` is what to type or do next, or empty."""

    key: str
    level: Level
    text: str
    do: str = ""


def problem(key: str, text: str, do: str) -> Finding:
    return Finding(key, Level.PROBLEM, text, do)


def note(key: str, text: str, do: str = "") -> Finding:
    return Finding(key, Level.NOTE, text, do)


def well(key: str, text: str) -> Finding:
    return Finding(key, Level.WELL, text)

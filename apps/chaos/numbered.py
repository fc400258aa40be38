"""Which tests say in their docstrings that they are one of the 26: "reliability test 19"."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

LAST: Final = 26
_NUMBERS: Final = re.compile(
    r"\btests?\s+(\d+(?:\s*(?:,|and|or|to|-)\s*\d+)*)(?!\s*(?:times|s\b|ms\b|%))", re.IGNORECASE
)


def numbered_tests(root: Path) -> dict[int, list[str]]:
    """For each number where it is tested: `tests/mesh/test_core.py::test_name`."""
    found: dict[int, list[str]] = {}
    for path in sorted((root / "tests").rglob("test_*.py")):
        for name, doc in _docstrings(path):
            place = str(path.relative_to(root)) + (f"::{name}" if name else "")
            for number in sorted(numbers_in(doc)):
                found.setdefault(number, []).append(place)
    return found


def numbers_in(doc: str) -> set[int]:
    """`tests 8 and 9`, `test 16`, `tests 19 to 21`."""
    found: set[int] = set()
    for match in _NUMBERS.finditer(doc):
        words = re.split(r"\s*(,|and|or|to|-)\s*", match[1])
        numbers = [int(word) for word in words[::2]]
        found.update(numbers)
        for before, word, after in zip(numbers, words[1::2], numbers[1:], strict=False):
            if word in ("to", "-"):
                found.update(range(before, after + 1))
    return {number for number in found if 1 <= number <= LAST}


def _docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Of the module, under an empty name, and of its tests."""
    tree = ast.parse(path.read_text())
    yield "", ast.get_docstring(tree) or ""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, ast.get_docstring(node) or ""

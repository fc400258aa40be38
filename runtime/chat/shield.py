"""Keeps what people write from becoming control tokens, whatever a chat template does with it.

A template weaves contents and marks such as `<end_of_turn>` into one text, and afterwards nobody
can tell whose a mark was. So before it is rendered, the marks in contents are broken by a character
that no text may hold; the tokenizer sees no mark there, and takes the character out again.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from mesh.errors import BadPrompt

BREAK: Final = "\ufdd0"  # a noncharacter: Unicode keeps it free for use inside a program
REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"
MAX_DEPTH: Final = 32  # of lists and objects in tools and arguments


@dataclass(frozen=True, slots=True)
class Shield:
    """Breaks marks in texts. `written` is how the vocabulary spells a text, letter for letter."""

    marks: frozenset[str]
    written: Callable[[str], str] = str

    def breaks(self, value: Any) -> Any:
        """`value` with each mark in its strings broken, and each beginning of one at their ends,
        which something next to it might complete.
        """
        starts, lengths = _letters(self.marks), sorted({*map(len, self.marks)})

        def broken(text: str) -> str:
            spelled = self.written(text)
            found = (match.start() for match in starts.finditer(spelled))
            return _with_breaks(text, [at for at in found if self._is_mark(spelled, at, lengths)])

        return _mapped(value, broken, MAX_DEPTH)

    def breaks_more(self, value: Any) -> Any:
        """As `breaks`, but around every letter that a mark begins with, save plain letters and
        digits. No cutting, joining or turning around can make a mark of this.
        """
        starts = _letters(mark for mark in self.marks if not mark[0].isalnum())

        def broken(text: str) -> str:
            return starts.sub(rf"{BREAK}\g<0>{BREAK}", text)

        return _mapped(self.breaks(value), broken, MAX_DEPTH)

    def _is_mark(self, text: str, start: int, lengths: list[int]) -> bool:
        if any(text[start : start + length] in self.marks for length in lengths):
            return True
        if len(text) - start > 2 * lengths[-1]:
            return False
        end = text[start:].rstrip()  # a template may trim the end before it goes on
        return any(mark.startswith(end) for mark in self.marks) if end else False


def _letters(marks: Iterable[str]) -> re.Pattern[str]:
    letters = "".join(sorted({re.escape(mark[0]) for mark in marks}))
    return re.compile(f"[{letters}]" if letters else r"(?!)")


def _with_breaks(text: str, places: list[int]) -> str:
    """`text` with BREAK behind the letter at each of these places."""
    bounds = [0, *(place + 1 for place in places), len(text)]
    return BREAK.join(text[first:last] for first, last in itertools.pairwise(bounds))


def _mapped(value: Any, change: Callable[[str], str], depth: int) -> Any:
    """`value`, plain JSON, with its strings changed. Raises BadPrompt for too deep a nesting.

    Names that a template looks up stay as they are: keys that are plain words, and roles.
    """
    if depth == 0:
        raise BadPrompt(f"messages and tools nest at most {MAX_DEPTH} lists and objects")
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {
            key if key.isidentifier() else change(key): (
                item if key == "role" else _mapped(item, change, depth - 1)
            )
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_mapped(item, change, depth - 1) for item in value]
    return value


def cleaned(value: Any) -> Any:
    """`value` as text: without BREAK, and half a surrogate pair is no letter and becomes U+FFFD."""

    def clean(text: str) -> str:
        whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return whole.replace(BREAK, REPLACEMENT)

    return _mapped(value, clean, MAX_DEPTH)

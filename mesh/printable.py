"""What a stranger wrote, fit for a terminal."""

from __future__ import annotations


def printable(text: str | None, most_chars: int) -> str:
    """Without control characters, and not longer than this."""
    return "".join(char for char in text or "" if char.isprintable())[:most_chars]

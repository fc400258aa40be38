"""The pairing window: six digits for two minutes, three tries, one newcomer at a time, one in all.

The code is used in SPAKE2 and nowhere else, so a try is the only way to learn whether a guess was
right. A try counts from the moment it begins: whoever breaks off in the middle has had one.
"""

from __future__ import annotations

import secrets

from mesh.errors import BadId, PairingFailed
from mesh.limits import PAIRING_TRIES, PAIRING_WINDOW_S

SHORT_CODE_DIGITS = 6
_SEPARATORS = " -\t\r\n_"


def new_short_code() -> str:
    return f"{secrets.randbelow(10**SHORT_CODE_DIGITS):0{SHORT_CODE_DIGITS}}"


def is_short_code(text: str) -> bool:
    """Told from a long code by its length."""
    return len(_plain(text)) == SHORT_CODE_DIGITS


def parse_short_code(text: str) -> str:
    """The six digits; raises BadId."""
    plain = _plain(text)
    if len(plain) != SHORT_CODE_DIGITS or not (plain.isascii() and plain.isdigit()):
        raise BadId(f"a short code is {SHORT_CODE_DIGITS} digits; got {text[:80]!r}")
    return plain


def _plain(text: str) -> str:
    return "".join(char for char in text if char not in _SEPARATORS)


class PairingWindow:
    """`closed` says in words why it takes nobody any more; None while it does."""

    def __init__(self, code: str, now_s: float) -> None:
        self.code = code
        self.until_s = now_s + PAIRING_WINDOW_S
        self.tries_left = PAIRING_TRIES
        self.closed: str | None = None
        self._busy = False

    def begin(self, now_s: float) -> None:
        """A newcomer's try; raises PairingFailed if there is none to be had."""
        if self.closed is None and now_s >= self.until_s:
            self.expire()
        if self.closed is not None:
            raise PairingFailed(f"{self.closed}; `potluck invite` shows another one")
        if self._busy:
            raise PairingFailed("another device is being let in at this moment; try again")
        self._busy = True
        self.tries_left -= 1

    def succeeded(self) -> None:
        """The other side has proved that it knows the code: it is used up."""
        self.close("the code has let a device in, and is good for one")

    def ended(self) -> None:
        """The try that began is over, well or not."""
        self._busy = False
        if self.tries_left == 0:
            self.close(f"the code was wrong {PAIRING_TRIES} times, so it is locked")

    def expire(self) -> None:
        """Its time has run out."""
        self.close("the code was good for two minutes, and they are over")

    @property
    def over(self) -> bool:
        """Whether nobody comes in any more, and nobody is coming in."""
        return self.closed is not None and not self._busy

    def close(self, reason: str) -> None:
        if self.closed is None:
            self.closed = reason

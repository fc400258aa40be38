"""What a conversation has said so far, as the stage that chooses tokens remembers it for penalties.

The last stage sees rows of hidden numbers and no tokens. So the owner packs what is known into the
opening of the session, only where a penalty is on, and the stage adds what it chooses. After a
replay all of it comes with the next opening, so the counts are the same on whichever device.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from mesh.errors import BadPrompt, ProtocolError
from mesh.limits import KIB

# A control message holds 64 KiB, of which the other fields of an opening may need 17. Ids go as
# differences, mostly of one byte: 20,000 different tokens, which no prompt of 128,000 has, take
# about 30 KiB.
MAX_HISTORY_BYTES: Final = 44 * KIB
MAX_NUMBER: Final = (1 << 28) - 1  # an id, a count: four groups of seven bits

Ids = npt.NDArray[np.int64]


class History:
    """Which tokens the prompt has, and how often each was generated. Not thread-safe."""

    def __init__(self, prompt: Iterable[int] = (), generated: Iterable[int] = ()) -> None:
        self._prompt: Ids = np.unique(np.fromiter(prompt, dtype=np.int64))
        self._counts = Counter(generated)
        self._chosen: list[tuple[int, int]] = []  # since the opening: (position, token), ascending

    def chose(self, position: int, token: int) -> None:
        """Adds the token for `position`. What stood there or later is forgotten: the step was
        computed again.
        """
        while self._chosen and self._chosen[-1][0] >= position:
            _, forgotten = self._chosen.pop()
            self._counts -= Counter((forgotten,))
        self._chosen.append((position, token))
        self._counts[token] += 1

    def generated(self, position: int) -> tuple[Ids, Ids]:
        """Ids [N] of the tokens generated before `position`, ascending, and how often each came."""
        later = itertools.takewhile(lambda one: one[0] >= position, reversed(self._chosen))
        counts = self._counts
        if not_yet := [token for _, token in later]:
            counts = counts - Counter(not_yet)
        ids = sorted(counts)
        return (
            np.array(ids, dtype=np.int64),
            np.array([counts[token] for token in ids], dtype=np.int64),
        )

    def seen(self, position: int) -> Ids:
        """Ids [N] of all tokens before `position`, prompt and generated, ascending."""
        ids, _ = self.generated(position)
        return np.union1d(self._prompt, ids)

    def pack(self) -> bytes:
        """For the opening of a session. Raises BadPrompt for more than a message can hold."""
        ids, counts = self.generated(MAX_NUMBER)
        packed = bytearray()
        for group in (self._prompt.tolist(), ids.tolist()):
            packed += _packed([len(group)])
            packed += _packed(now - before for before, now in _steps(group))
        packed += _packed(counts.tolist())
        if len(packed) > MAX_HISTORY_BYTES:
            raise BadPrompt(
                f"a penalty needs to know which tokens came before, and these are too many "
                f"different ones ({len(self._prompt)} in the prompt, {len(ids)} generated); "
                "leave the penalties out, or shorten the prompt"
            )
        return bytes(packed)

    @classmethod
    def unpack(cls, data: bytes) -> History:
        """What `pack` wrote; nothing from no bytes. Raises ProtocolError."""
        if len(data) > MAX_HISTORY_BYTES:
            raise ProtocolError(f"a history has at most {MAX_HISTORY_BYTES} bytes; got {len(data)}")
        if not data:
            return cls()
        numbers = iter(_unpacked(data))
        prompt, generated = _ids(numbers), _ids(numbers)
        history = cls(prompt)
        history._counts = Counter({token: _next(numbers) for token in generated})
        if min(history._counts.values(), default=1) < 1 or next(numbers, None) is not None:
            raise ProtocolError("a history counts each generated token at least once, and no more")
        return history


def _steps(ascending: list[int]) -> Iterator[tuple[int, int]]:
    return zip([-1, *ascending], ascending, strict=False)


def _ids(numbers: Iterator[int]) -> list[int]:
    """A count, then so many ids as differences to the one before, the first to -1."""
    ids: list[int] = []
    token = -1
    for _ in range(_next(numbers)):
        step = _next(numbers)
        token += step
        if step < 1 or token > MAX_NUMBER:
            raise ProtocolError("the ids of a history ascend and are tokens")
        ids.append(token)
    return ids


def _next(numbers: Iterator[int]) -> int:
    number = next(numbers, None)
    if number is None:
        raise ProtocolError("a history ends too early")
    return number


def _packed(numbers: Iterable[int]) -> bytes:
    """Seven bits a byte, the lowest first; the eighth bit says that more follow."""
    packed = bytearray()
    for number in numbers:
        rest = min(number, MAX_NUMBER)
        while rest > 0x7F:
            packed.append(rest & 0x7F | 0x80)
            rest >>= 7
        packed.append(rest)
    return bytes(packed)


def _unpacked(data: bytes) -> Iterator[int]:
    number = shift = 0
    for byte in data:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte & 0x80:
            if shift > 21:
                raise ProtocolError(f"a number in a history is at most {MAX_NUMBER}")
            continue
        yield number
        number = shift = 0
    if shift:
        raise ProtocolError("a history ends within a number")

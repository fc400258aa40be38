"""Values of our message types, made from their annotations; and what a liar makes of them."""

from __future__ import annotations

import copy
import random
import types
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

from mesh.ids import ModelId, PeerId, PlanId, SessionId

_ID_DIGITS = {PeerId: 64, ModelId: 64, SessionId: 32, PlanId: 32}
WILD = (
    None, True, False, -1, 0, 1, 2, 2**31, 2**63 - 1, -(2**63), 2**64 - 1, 10**30,
    1.5, -0.0, 1e308, float("nan"), float("inf"), -float("inf"),
    "", "x" * 300, "\x00\x1b[2J\ud7ff", "é", "a" * 64, "0" * 32, b"", b"\xff" * 40,
    [], [[]], [None] * 20, {}, {"a": []}, {1: 2},
)  # fmt: skip


def value_of(kind: Any, rng: random.Random) -> Any:
    """Some value of an annotated type, such as the codec reads."""
    origin, args = get_origin(kind), get_args(kind)
    if kind in _ID_DIGITS:
        return kind("".join(rng.choices("0123456789abcdef", k=_ID_DIGITS[kind])))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return rng.choice(list(kind))
    if is_dataclass(kind):
        return _instance_of(kind, rng)
    if origin in (Union, types.UnionType):
        return value_of(rng.choice(args), rng)
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(value_of(args[0], rng) for _ in range(rng.randint(0, 2)))
        return tuple(value_of(arg, rng) for arg in args)
    if origin is dict:
        return {str(number): value_of(args[1], rng) for number in range(rng.randint(0, 2))}
    return _scalar_of(kind, rng)


def _instance_of(kind: Any, rng: random.Random) -> Any:
    """Tries again where a value checks itself: not all combinations are allowed."""
    hints = get_type_hints(kind)
    for _ in range(50):
        try:
            return kind(*(value_of(hints[field.name], rng) for field in fields(kind)))
        except (ValueError, TypeError):
            continue
        except Exception as error:  # a value's own check refuses in whatever class it likes
            last = error
    raise AssertionError(f"no {kind.__name__} comes out right: {last}")


def _scalar_of(kind: Any, rng: random.Random) -> Any:
    if kind is type(None):
        return None
    if kind is bool:
        return rng.random() < 0.5
    if kind is int:
        return rng.choice((0, 1, 2, 7, 4096))
    if kind is float:
        return rng.choice((0.0, 0.5, 1.0))
    if kind is str:
        return rng.choice(("", "attic", "blk.0"))
    if kind is bytes:
        return b""
    return rng.choice((None, 1, "any", [1, 2], {"a": 1.5}))


def changed(plain: Any, rng: random.Random) -> Any:
    """The same plain value with one to three places replaced, doubled or left out."""
    for _ in range(rng.randint(1, 3)):
        places = list(_places(plain))
        if not places:
            return _lie(rng)
        holder, key = rng.choice(places)
        match rng.randint(0, 3):
            case 0 if isinstance(holder, list):
                del holder[key]
            case 1 if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(holder[key]))
            case 2:
                holder[key] = [holder[key]]
            case _:
                holder[key] = _lie(rng)
    return plain


def _lie(rng: random.Random) -> Any:
    """A copy: what is put somewhere may be changed there."""
    return copy.deepcopy(rng.choice(WILD))


def _places(plain: Any) -> Iterator[tuple[Any, Any]]:
    """Every element of every list and map in it: the holder, and its index or key."""
    if isinstance(plain, list):
        for index, item in enumerate(plain):
            yield plain, index
            yield from _places(item)
    elif isinstance(plain, dict):
        for key, item in plain.items():
            yield plain, key
            yield from _places(item)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The same bytes with some replaced, left out or put in."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        match rng.randint(0, 5):
            case 0 | 1 if at < len(out):
                out[at] = rng.randrange(256)
            case 2 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 3:
                del out[at : at + rng.choice((1, 1, 2, 4, 30))]
            case 4:
                out[at:at] = rng.choice((b"\x00", b"\xff" * 4, b"\x80", b"\x91" * 20, b"\xdd\xff"))
            case _:
                del out[at:]
    return bytes(out)

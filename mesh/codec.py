"""Frozen dataclasses to msgpack and back, strictly: nothing of a wrong type or size gets through.

A value is written as the list of its fields in order of definition; a union member as
`[name, fields]`. Decoding is driven by the annotations, so a class is its own schema. Whatever a
peer sends that does not fit raises ProtocolError, and no other exception.
"""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from enum import StrEnum
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import msgpack

from mesh.errors import BadId, PotluckError, ProtocolError
from mesh.ids import ModelId, PeerId, PlanId, SessionId
from mesh.limits import MAX_CONTROL_BYTES, MAX_CONTROL_DEPTH, MAX_CONTROL_ITEMS

T = TypeVar("T")
Read = Callable[[Any], Any]

_ID_TYPES = (PeerId, SessionId, PlanId, ModelId)


def encode(value: object) -> bytes:
    """Raises ProtocolError if the result would be larger than a peer accepts."""
    data: bytes = msgpack.packb(to_plain(value), use_bin_type=True)
    if len(data) > MAX_CONTROL_BYTES:
        raise ProtocolError(
            f"a control message holds at most {MAX_CONTROL_BYTES} bytes; "
            f"{type(value).__name__} came to {len(data)}"
        )
    return data


def decode(kind: Any, data: bytes | bytearray | memoryview) -> Any:
    """Reads a value of `kind` (a dataclass, or a union of dataclasses). Raises ProtocolError."""
    return from_plain(kind, unpack(data))


def unpack(data: bytes | bytearray | memoryview) -> Any:
    """Bounded msgpack: sizes, nesting, no extension types, no duplicate surprises."""
    if len(data) > MAX_CONTROL_BYTES:
        raise ProtocolError(f"control message of {len(data)} bytes; at most {MAX_CONTROL_BYTES}")
    try:
        plain = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_array_len=MAX_CONTROL_ITEMS,
            max_map_len=MAX_CONTROL_ITEMS,
            max_ext_len=0,
            ext_hook=_refuse_extension,  # one of no bytes passes the limit
        )
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise ProtocolError(f"not a control message: {error or type(error).__name__}") from None
    _check_plain(plain, MAX_CONTROL_DEPTH)
    return plain


def to_plain(value: object) -> Any:
    """Lists, strings, numbers, bytes and None only."""
    if is_dataclass(value) and not isinstance(value, type):
        return [to_plain(getattr(value, name)) for name in _field_names(type(value))]
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, str):
        return str(value)
    return value


def to_named(value: object) -> list[Any]:
    """A union member as `[class name, fields]`."""
    return [type(value).__name__, to_plain(value)]


def from_plain(kind: Any, plain: Any) -> Any:
    """The inverse of `to_plain`, or of `to_named` where `kind` is a union of dataclasses."""
    return _reader(kind)(plain)


def encode_union(value: object) -> bytes:
    return encode(to_named(value))


@functools.cache
def _field_names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


@functools.cache
def _reader(kind: Any) -> Read:
    """Builds, once per type, the function that checks and converts a plain value to it."""
    if kind is Any:
        return lambda plain: plain
    if kind is float:
        return _read_float
    if kind in (bool, int, str, bytes):
        return functools.partial(_read_scalar, kind)
    if kind in _ID_TYPES:
        return functools.partial(_read_id, kind)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return functools.partial(_read_enum, kind)
    if is_dataclass(kind) and isinstance(kind, type):
        return _dataclass_reader(kind)
    origin, args = get_origin(kind), get_args(kind)
    if origin is tuple:
        return _tuple_reader(args)
    if origin is dict:
        return _dict_reader(_reader(args[1]))
    if origin in (Union, types.UnionType):
        return _union_reader(args)
    raise TypeError(f"the codec has no rule for {kind!r}")


def _refuse_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code}")


def _read_scalar(kind: type, plain: Any) -> Any:
    if type(plain) is not kind:
        raise ProtocolError(f"expected {kind.__name__}, got {type(plain).__name__}")
    return plain


def _read_float(plain: Any) -> float:
    if type(plain) not in (int, float):
        raise ProtocolError(f"expected float, got {type(plain).__name__}")
    try:
        return float(plain)
    except OverflowError:
        raise ProtocolError("a number is too large for a float") from None


def _read_id(kind: Any, plain: Any) -> Any:
    try:
        return kind.parse(_read_scalar(str, plain))
    except BadId as error:
        raise ProtocolError(str(error)) from None


def _read_enum(kind: type[StrEnum], plain: Any) -> StrEnum:
    try:
        return kind(_read_scalar(str, plain))
    except ValueError:
        raise ProtocolError(f"{plain[:40]!r} is no {kind.__name__}") from None


def _dataclass_reader(kind: type) -> Read:
    hints = get_type_hints(kind)
    readers = [(name, _reader(hints[name])) for name in _field_names(kind)]

    def read(plain: Any) -> Any:
        if type(plain) is not list or len(plain) != len(readers):
            raise ProtocolError(f"{kind.__name__} is a list of {len(readers)} fields")
        values = []
        for (name, reader), item in zip(readers, plain, strict=True):
            try:
                values.append(reader(item))
            except ProtocolError as error:
                raise ProtocolError(f"{kind.__name__}.{name}: {error}") from None
        try:
            return kind(*values)
        except (PotluckError, ValueError, TypeError) as error:  # a value's own checks
            raise ProtocolError(f"{kind.__name__}: {error}") from None

    return read


def _tuple_reader(args: tuple[Any, ...]) -> Read:
    if len(args) == 2 and args[1] is Ellipsis:
        item = _reader(args[0])

        def read_many(plain: Any) -> tuple[Any, ...]:
            if type(plain) is not list:
                raise ProtocolError(f"expected a list, got {type(plain).__name__}")
            return tuple(item(part) for part in plain)

        return read_many
    readers = [_reader(arg) for arg in args]

    def read_fixed(plain: Any) -> tuple[Any, ...]:
        if type(plain) is not list or len(plain) != len(readers):
            raise ProtocolError(f"expected a list of {len(readers)}")
        return tuple(reader(part) for reader, part in zip(readers, plain, strict=True))

    return read_fixed


def _dict_reader(value: Read) -> Read:
    def read(plain: Any) -> dict[str, Any]:
        if type(plain) is not dict:
            raise ProtocolError(f"expected a map, got {type(plain).__name__}")
        return {_read_scalar(str, key): value(item) for key, item in plain.items()}

    return read


def _union_reader(args: tuple[Any, ...]) -> Read:
    """`X | None` reads X or None; a union of dataclasses reads `[name, fields]`."""
    members = [arg for arg in args if arg is not type(None)]
    if len(members) < len(args):
        inner = _reader(members[0]) if len(members) == 1 else _union_reader(tuple(members))
        return lambda plain: None if plain is None else inner(plain)
    by_name = {member.__name__: _reader(member) for member in members}

    def read(plain: Any) -> Any:
        if type(plain) is not list or len(plain) != 2 or type(plain[0]) is not str:
            raise ProtocolError("expected [name, fields]")
        reader = by_name.get(plain[0])
        if reader is None:
            raise ProtocolError(f"unknown message {plain[0][:40]!r}")
        return reader(plain[1])

    return read


def _check_plain(plain: Any, depth: int) -> None:
    if depth == 0:
        raise ProtocolError(f"nested deeper than {MAX_CONTROL_DEPTH}")
    if type(plain) is float and not math.isfinite(plain):
        raise ProtocolError("numbers must be finite")
    if type(plain) is list:
        for item in plain:
            _check_plain(item, depth - 1)
    elif type(plain) is dict:
        for item in plain.values():
            _check_plain(item, depth - 1)

"""JSON files that came with a model: not trusted, and no larger than such files are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from mesh.errors import BadModelFile

MAX_JSON_BYTES: Final = 64 << 20  # a tokenizer with its merges; configs have a few kB


def read_object(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is no such file. Raises BadModelFile."""
    value = _read(path)
    if value is not None and not isinstance(value, dict):
        raise BadModelFile(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def read_list(path: Path) -> list[Any] | None:
    """A JSON list; None where there is no such file. Raises BadModelFile."""
    value = _read(path)
    if value is not None and not isinstance(value, list):
        raise BadModelFile(f"{path}: expected a JSON list, got {type(value).__name__}")
    return value


def _read(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise BadModelFile(f"{path} has more than {MAX_JSON_BYTES} bytes; is it a config?")
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise BadModelFile(f"{path} cannot be read: {error}") from None
    if value is None:
        raise BadModelFile(f"{path} holds nothing; copy or download it again")
    return value

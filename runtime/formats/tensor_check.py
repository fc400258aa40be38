"""Whether a file has the tensors that its model needs, and no others."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mesh.errors import BadModelFile, UnsupportedModel
from runtime.formats.tensor_file import TensorFile


def check_tensors(file: TensorFile, expected: Mapping[str, tuple[int, ...]], ignored: str) -> None:
    """Raises BadModelFile when tensors are missing, misshaped, or there for no reason.

    `ignored` is found in the names of those that need no reason. Raises UnsupportedModel for a
    tensor that is there, but stored in a type that we do not read.
    """
    there = file.tensors.keys() | file.unreadable.keys()
    unreadable = sorted(expected.keys() & file.unreadable.keys())
    if unreadable:
        name = unreadable[0]
        raise UnsupportedModel(
            f"{file.path}: tensor {name} is stored as {file.unreadable[name]}; known are F32, F16 "
            "and BF16. Take the model in one of these, or quantised as GGUF."
        )
    extra = (name for name in there - expected.keys() if not re.search(ignored, name))
    wrong = (
        f"{name} is {list(file.tensors[name].shape)}, not {list(shape)}"
        for name, shape in expected.items()
        if name in there and file.tensors[name].shape != shape
    )
    found = (("missing", expected.keys() - there), ("not known", extra), ("wrong shape", wrong))
    faults = [_listed(what, sorted(names)) for what, names in found]
    if any(faults):
        raise BadModelFile(
            f"the tensors of {file.path} do not fit its header; {'; '.join(filter(None, faults))}. "
            "Copy or download it again."
        )


def _listed(what: str, names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if names[5:] else ""
    return f"{what}: {', '.join(names[:5])}{more}" if names else ""

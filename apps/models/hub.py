"""The Hugging Face hub: which files a repository has, and one of them onto this disk, resumable.

The library `huggingface_hub` speaks to the hub, and is needed only by whoever pulls from there. Its
own download starts over after a break, so the bytes go to a file that we keep: what has come is
asked for no second time.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from logging import ERROR
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

from mesh.errors import PullFailed
from runtime.formats.safetensors_folder import POOLING
from runtime.stored.partial import disk_error

_SOURCE = re.compile(r"^([A-Za-z0-9._-]+/[A-Za-z0-9._-]+)(?::([A-Za-z0-9._/-]+))?$")
# Of a repository without a GGUF file: what a model is made of, and nothing beside it.
_FOLDER_FILES = re.compile(
    r"^(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|vocab|"
    r"chat_template|modules|sentence_bert_config)\.json$|^1_Pooling/config\.json$|^(merges|vocab)\.txt$|^tokenizer\.model$|^chat_template\.jinja$|"
    r"\.safetensors(\.index\.json)?$"
)
OnBytes = Callable[[int], None]  # how many more have come; may raise to end it


@dataclass(frozen=True, slots=True)
class HubSource:
    """`owner/repo`, or `owner/repo:file`."""

    repo: str
    file: str | None

    def __str__(self) -> str:
        return f"{self.repo}:{self.file}" if self.file else self.repo


@dataclass(frozen=True, slots=True)
class HubFile:
    """`sha256` is what the hub says of large files; empty for others."""

    path: str
    size_bytes: int
    sha256: str

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True)
class HubModel:
    """The files of one model; `is_folder` where they belong together in a folder."""

    source: HubSource
    name: str
    files: tuple[HubFile, ...]
    is_folder: bool


def parse_hub(text: str) -> HubSource | None:
    """None for what is no name on the hub."""
    match = _SOURCE.match(text)
    return HubSource(match[1], match[2]) if match else None


def look(source: HubSource, endpoint: str | None = None) -> HubModel:
    """Asks the hub which files to take; blocks. Raises PullFailed, which says what there is."""
    hub = _library()
    try:
        info = hub.HfApi(endpoint=endpoint).model_info(source.repo, files_metadata=True)
    except Exception as error:  # whatever the library and its HTTP client raise: told in words
        raise _in_words(error, source) from None
    files = [
        HubFile(one.rfilename, one.size or 0, one.lfs.sha256 if one.lfs else "")
        for one in info.siblings or ()
    ]
    return choose(source, files)


def choose(source: HubSource, files: list[HubFile]) -> HubModel:
    """The file that was named; the only GGUF file; or the files of a model in a folder. Raises
    PullFailed with the choice there is.
    """
    ggufs = [file for file in files if file.path.endswith(".gguf")]
    if source.file is not None:
        named = next((file for file in files if file.path == source.file), None)
        if named is None:
            there = ", ".join(file.path for file in ggufs or files)[:600]
            raise PullFailed(f"{source.repo} has no file {source.file!r}; it has: {there}")
        return HubModel(source, named.name.removesuffix(".gguf"), (named,), is_folder=False)
    if len(ggufs) == 1:
        only = HubSource(source.repo, ggufs[0].path)
        return HubModel(only, ggufs[0].name.removesuffix(".gguf"), (ggufs[0],), is_folder=False)
    if ggufs:
        there = ", ".join(f"{file.path} ({file.size_bytes / 1e6:.0f} MB)" for file in ggufs)[:600]
        raise PullFailed(
            f"{source.repo} has {len(ggufs)} GGUF files; name one, such as "
            f"{source.repo}:{ggufs[0].path}. There are: {there}"
        )
    folder = tuple(file for file in files if _FOLDER_FILES.search(file.path) and file.size_bytes)
    folder = tuple(file for file in folder if "/" not in file.path or file.path == POOLING)
    if not any(file.path.endswith(".safetensors") for file in folder):
        raise PullFailed(f"{source.repo} has neither a GGUF file nor safetensors; take another one")
    return HubModel(source, source.repo.split("/")[1], folder, is_folder=True)


def download(
    model: HubModel, file: HubFile, target: Path, on_bytes: OnBytes, endpoint: str | None = None
) -> None:
    """Brings the rest of a file to `target`, and checks its SHA-256; blocks.

    Raises PullFailed, or DiskFull; what has come stays there, and the next call goes on with it.
    Whatever `on_bytes` raises ends it likewise.
    """
    hub = _library()
    from huggingface_hub.file_download import http_get

    url = hub.hf_hub_url(model.source.repo, file.path, endpoint=endpoint)
    try:
        meta = hub.get_hf_file_metadata(url, endpoint=endpoint)
        _restart_if_changed(target, str(meta.etag))
        with target.open("ab", buffering=0) as out:
            have = out.tell()
            on_bytes(have)
            http_get(
                meta.location,
                cast(BinaryIO, _Growing(out, on_bytes)),  # it needs no more of a file than that
                resume_size=have,
                headers=hub.utils.build_hf_headers(),
                expected_size=meta.size or file.size_bytes or None,
                tqdm_class=_NoBar,
            )
    except _Ended as ended:
        raise ended.why from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_error(error, target.parent) from None
        raise _in_words(error, model.source) from None
    except Exception as error:  # as in `look`
        raise _in_words(error, model.source) from None
    _check(target, file, model.source)


class _Ended(Exception):
    """Carries what `on_bytes` raised through a library that swallows some exceptions."""

    def __init__(self, why: Exception) -> None:
        super().__init__(str(why))
        self.why = why


class _Growing:
    """A file that tells how it grows."""

    def __init__(self, file: Any, on_bytes: OnBytes) -> None:
        self._file = file
        self._on_bytes = on_bytes

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        try:
            self._on_bytes(len(data))
        except Exception as error:  # whatever it is, the library must not take it for its own
            raise _Ended(error) from None
        return len(data)

    def tell(self) -> int:
        return int(self._file.tell())

    def seek(self, to: int) -> int:
        return int(self._file.seek(to))

    def truncate(self) -> int:
        """Called when the hub ignores where to go on, and sends everything."""
        before = self._file.seek(0, 2)
        self._on_bytes(-before)
        return int(self._file.truncate(0))


class _NoBar:
    """In place of the library's progress bar: ours is drawn elsewhere."""

    def __init__(self, **options: object) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def update(self, count: int) -> None:
        pass


def _library() -> Any:
    try:
        import huggingface_hub
        from huggingface_hub.utils import logging
    except ImportError:
        raise PullFailed(
            "a pull from the hub needs the package huggingface_hub, which is not installed; "
            "run: pip install 'potluck[hub]'"
        ) from None
    logging.set_verbosity(ERROR)  # what it has to say is in our errors
    return huggingface_hub


def _restart_if_changed(target: Path, etag: str) -> None:
    """What has come of another version of the file is of no use."""
    record = target.with_name(target.name + ".etag")
    try:
        known = json.loads(record.read_text())
    except (OSError, ValueError):
        known = None
    if known != etag:
        target.unlink(missing_ok=True)
        record.write_text(json.dumps(etag))


def _check(target: Path, file: HubFile, source: HubSource) -> None:
    """Removes a file that is not what the hub says it is: going on with it would be in vain."""
    if not file.sha256:
        return
    with target.open("rb") as done:
        found = hashlib.file_digest(done, "sha256").hexdigest()
    if found != file.sha256:
        target.unlink()
        raise PullFailed(
            f"{file.path} of {source.repo} came damaged (SHA-256 {found[:12]}, expected "
            f"{file.sha256[:12]}) and was removed; pull it again"
        )


def _in_words(error: Exception, source: HubSource) -> PullFailed:
    known = {
        "RepositoryNotFoundError": "there is no such repository, or it is private (set HF_TOKEN)",
        "GatedRepoError": "its owner lets in who asks on its page; ask there, and set HF_TOKEN",
        "EntryNotFoundError": "the repository has no such file",
        "RemoteEntryNotFoundError": "the repository has no such file",
        "HFValidationError": "that cannot be the name of a repository",
    }
    why = known.get(type(error).__name__)
    if why is None:
        said = str(error).strip().splitlines()
        first = said[0] if said else ""
        why = f"{type(error).__name__}: {first[:200]}; is this device online? What came is kept"
    return PullFailed(f"{source} could not be pulled from the hub: {why}")

"""Pulls: a model onto this device's disk, from the other devices where they have it, else from
where it was named: the hub, a path, a package.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.models import hub
from apps.models.fetcher import Fetcher
from apps.models.library import Library
from apps.models.messages import FindRequest, Pull
from apps.models.shelf import Shelf, file_name
from apps.planning.messages import ModelRef
from mesh.errors import ConfigError, DiskFull, ModelInUse, PullFailed
from mesh.ids import PeerId
from runtime.checkpoints import open_model
from runtime.formats.safetensors_folder import POOLING
from runtime.stored.model_files import (
    DEFAULT_MODEL,
    cache_dir,
    default_model,
    has_default_model,
)
from runtime.stored.partial import SPARE_BYTES, disk_error

REPORT_INTERVAL_S = 0.25
ASK_AGAIN_S = 1.0  # while another device brings the same model from outside
COPY_BYTES = 4 * 1024 * 1024


@dataclass(slots=True)
class Progress:
    """How far a pull is; written by whoever works, also in a thread."""

    stage: str = "asking"  # asking, waiting, fetching, downloading, copying, checking
    done_bytes: int = 0
    wanted_bytes: int = 0
    stopped: bool = False

    def add(self, size_bytes: int) -> None:
        """Raises PullFailed once nobody wants the pull any more."""
        if self.stopped:
            raise PullFailed("the pull was ended; what has come is kept")
        self.done_bytes += size_bytes

    def as_dict(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "done_bytes": self.done_bytes,
            "wanted_bytes": self.wanted_bytes,
        }


class Pulls:
    """One at a time of each source."""

    def __init__(
        self,
        me: PeerId | None,
        library: Library,
        shelf: Shelf,
        fetcher: Fetcher | None = None,
        hub_endpoint: str | None = None,
    ) -> None:
        """Without a fetcher there is no mesh to ask, and nobody that `me` would tell apart."""
        self._me = me
        self._library = library
        self._shelf = shelf
        self._fetcher = fetcher
        self._hub_endpoint = hub_endpoint
        self._states: dict[str, Pull] = {}

    def state_of(self, origin: str) -> Pull:
        return self._states.get(origin, Pull.NONE)

    async def pull(self, source: str) -> AsyncGenerator[dict[str, Any], None]:
        """How far it is, now and again; the last one has the model's `name`. Closing it ends the
        pull, and the next one goes on from there.

        Raises PullFailed, ModelNotFound, WeightsMissing, DiskFull or ModelError.
        """
        wanted = None if _is_path(source) else hub.parse_hub(source)
        key = f"hf:{wanted}" if wanted else source
        if key in self._states:
            raise ModelInUse(f"{source} is being pulled already")
        self._states[key] = Pull.DECIDING
        progress = Progress()
        # Kept and waited for right here.
        task = asyncio.create_task(self._pull(source, wanted, progress))
        try:
            while not task.done():
                yield progress.as_dict()
                await asyncio.wait([task], timeout=REPORT_INTERVAL_S)
            name, how = task.result()
            yield {**progress.as_dict(), "stage": "done", "name": name, "how": how}
        finally:
            progress.stopped = True
            task.cancel()
            await asyncio.wait([task])
            self._states.pop(key, None)

    async def _pull(
        self, source: str, wanted: hub.HubSource | None, progress: Progress
    ) -> tuple[str, str]:
        """The model's name here, and how it came."""
        if _is_path(source):
            return await self._copy(Path(source), progress)
        if wanted is not None:
            return await self._from_hub(wanted, progress)
        if source == DEFAULT_MODEL and has_default_model():
            progress.stage = "copying"
            await asyncio.to_thread(default_model, cache_dir())
            return source, "from its package"
        return await self._by_name(source, progress)

    async def _by_name(self, name: str, progress: Progress) -> tuple[str, str]:
        reference, checkpoint = await self._library.find(name)
        if await self._library.whole_here(reference.model) is not None:
            return name, "it was here already"
        return await self._from_mesh(reference, progress)

    async def _from_mesh(self, reference: ModelRef, progress: Progress) -> tuple[str, str]:
        assert self._fetcher is not None
        progress.stage = "fetching"
        bringing = asyncio.ensure_future(self._library.whole(reference))
        try:
            while not bringing.done():
                for state in self._fetcher.transfers:
                    if state.model == reference.model:
                        progress.done_bytes = state.done_bytes
                        progress.wanted_bytes = state.wanted_bytes
                await asyncio.wait([bringing], timeout=REPORT_INTERVAL_S)
        finally:
            bringing.cancel()
        checkpoint = bringing.result()
        progress.done_bytes = progress.wanted_bytes
        return await self._library.name_of(checkpoint), "from the other devices"

    # --- from the hub -----------------------------------------------------------------------------

    async def _from_hub(self, wanted: hub.HubSource, progress: Progress) -> tuple[str, str]:
        if (found := await self._in_the_mesh(f"hf:{wanted}", progress)) is not None:
            return found
        model = await asyncio.to_thread(hub.look, wanted, self._hub_endpoint)
        origin = f"hf:{model.source}"
        if origin != f"hf:{wanted}":  # the only file of a repository: by its own name, once more
            self._states[origin] = Pull.DECIDING
            try:
                found = await self._in_the_mesh(origin, progress)
                return found or await self._download(model, origin, progress)
            finally:
                self._states.pop(origin, None)
        return await self._download(model, origin, progress)

    async def _in_the_mesh(self, origin: str, progress: Progress) -> tuple[str, str] | None:
        """From here or from another device that has it, or will when it has brought it itself."""
        held = await self._library.held()
        here = next((one for one in held if one.origin == origin and one.is_whole), None)
        if here is not None:
            return here.name, "it was here already"
        while self._fetcher is not None:
            replies = await self._fetcher.ask_find(FindRequest("", origin))
            for reply in replies.values():
                if reply.model is not None and reply.is_whole:
                    return await self._from_mesh(reply.model, progress)
            bringing = any(
                reply.pull is Pull.RUNNING or self._gives_way(peer, reply.pull)
                for peer, reply in replies.items()
            )
            if not bringing:
                break
            progress.stage = "waiting"
            await asyncio.sleep(ASK_AGAIN_S)
        self._states[origin] = Pull.RUNNING
        return None

    def _gives_way(self, peer: PeerId, pull: Pull) -> bool:
        """Of two that decide at the same moment, the one with the smaller id brings it."""
        return pull is Pull.DECIDING and self._me is not None and peer < self._me

    async def _download(
        self, model: hub.HubModel, origin: str, progress: Progress
    ) -> tuple[str, str]:
        folder = self._scratch(model.name)
        progress.stage, progress.done_bytes = "downloading", 0
        progress.wanted_bytes = sum(file.size_bytes for file in model.files)
        await asyncio.to_thread(_check_space, folder, progress.wanted_bytes)
        for file in model.files:
            target = folder / (file.path if model.is_folder else file.name)
            target.parent.mkdir(exist_ok=True)
            await asyncio.to_thread(
                hub.download, model, file, target, progress.add, self._hub_endpoint
            )
        made = folder if model.is_folder else folder / model.files[0].name
        name = await asyncio.to_thread(self._take_in, made, model.name, origin, progress)
        return name, "from the hub"

    # --- from a path ------------------------------------------------------------------------------

    async def _copy(self, path: Path, progress: Progress) -> tuple[str, str]:
        path = await asyncio.to_thread(path.resolve)
        is_folder = (path / "config.json").is_file()
        if not path.is_file() and not is_folder:
            raise PullFailed(f"there is no model at {path}: a GGUF file or a folder is expected")
        if path.is_relative_to(self._shelf.folder.resolve()):
            return path.name if is_folder else path.stem, "it was here already"
        await asyncio.to_thread(open_model, path)  # says now what is wrong with it
        inside = [*path.iterdir(), path / POOLING] if is_folder else [path]
        files = sorted(one for one in inside if one.is_file())
        name = path.name if is_folder else path.stem
        folder = self._scratch(name)
        progress.stage = "copying"
        progress.wanted_bytes = sum(one.stat().st_size for one in files)
        await asyncio.to_thread(_check_space, folder, progress.wanted_bytes)
        for one in files:
            target = folder / (one.relative_to(path) if is_folder else one.name)
            await asyncio.to_thread(_copy_on, one, target, progress.add)
        made = folder if is_folder else folder / path.name
        return await asyncio.to_thread(self._take_in, made, name, "", progress), f"from {path}"

    # --- into the folder --------------------------------------------------------------------------

    def _scratch(self, name: str) -> Path:
        folder = self._shelf.pull_folder(name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(error, folder) from None
        return folder

    def _take_in(self, made: Path, name: str, origin: str, progress: Progress) -> str:
        """A whole model, checked by opening it, gets its name among the others."""
        progress.stage = "checking"
        suffix = "" if made.is_dir() else ".gguf"
        open_model(made).close()
        if made.is_dir():
            for record in made.rglob("*.etag"):
                record.unlink()
        target = self._shelf.folder / f"{file_name(name)}{suffix}"
        if target.exists():
            raise ConfigError(
                f"another model is called {file_name(name)}; remove it with "
                f"`potluck rm {file_name(name)}`, and pull again: nothing is copied twice"
            )
        try:
            os.rename(made, target)
            if origin:
                self._shelf.note_origin(target, origin)
        except OSError as error:
            raise disk_error(error, self._shelf.folder) from None
        shutil.rmtree(self._scratch(name), ignore_errors=True)
        return file_name(name)


def _is_path(source: str) -> bool:
    """The command makes paths absolute, since the daemon may run in another folder."""
    return Path(source).is_absolute()


def _check_space(folder: Path, size_bytes: int) -> None:
    have = sum(one.stat().st_size for one in folder.iterdir() if one.is_file())
    free = shutil.disk_usage(folder).free
    short = size_bytes - have + SPARE_BYTES - free
    if size_bytes > have and short > 0:
        raise DiskFull(
            f"{(size_bytes - have) / 1e6:.0f} MB are to come and {free / 1e6:.0f} MB are free on "
            f"the disk of {folder}; free {short / 1e6:.0f} MB and pull again"
        )


def _copy_on(source: Path, target: Path, on_bytes: Callable[[int], None]) -> None:
    """Goes on where an earlier copy of the same file ended. Raises DiskFull with that kept."""
    record = target.with_name(target.name + ".etag")
    stat = source.stat()
    stamp = hashlib.sha256(f"{source} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()
    try:
        target.parent.mkdir(exist_ok=True)
        if not record.exists() or record.read_text() != stamp:
            target.unlink(missing_ok=True)
            record.write_text(stamp)
        with source.open("rb") as read, target.open("ab", buffering=0) as write:
            on_bytes(read.seek(write.tell()))
            while data := memoryview(read.read(COPY_BYTES)):
                on_bytes(len(data))
                while data:
                    data = data[write.write(data) :]
            os.fsync(write.fileno())
    except OSError as error:
        raise disk_error(error, target.parent) from None

"""Pulls without a mesh: from a path, from a hub, and what is left when they break off."""

from __future__ import annotations

import asyncio
import errno
import shutil
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from apps.models.hub import HubFile, HubSource, choose, parse_hub
from apps.models.library import Library
from apps.models.pulls import Pulls
from apps.models.shelf import Shelf, file_name
from mesh.errors import BadModelFile, ConfigError, DiskFull, ModelError, ModelInUse, PullFailed
from tests.apps.hub_server import FakeHub
from tests.runtime.tiny_model import write_tiny_gemma

REPO = "somebody/tiny-gguf"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gemma(
        tmp_path_factory.mktemp("model") / "tiny-q8.gguf", layers=3, hidden=256, ffn=1024
    )


@pytest.fixture(scope="module")
def data(model: Path) -> bytes:
    return model.read_bytes()


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(Shelf(tmp_path / "models"))


@pytest.fixture
async def fake_hub(data: bytes, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeHub]:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    # It hands on 10 MB at a time, and more than that would have to be sent for these tests.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 64 * 1024)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the library's own retries
    files = {"tiny-q8.gguf": data, "README.md": b"# a model"}
    two = {"a-q4.gguf": data, "b-q8.gguf": data, "README.md": b"#"}
    async with FakeHub({REPO: files, "somebody/two": two}).running() as running:
        yield running


def pulls_of(library: Library, endpoint: str | None = None) -> Pulls:
    return Pulls(None, library, library.shelf, hub_endpoint=endpoint)


async def pull(puller: Pulls, source: str) -> dict[str, Any]:
    """The last report."""
    async with aclosing(puller.pull(source)) as reports:
        return [report async for report in reports][-1]


# --- from a path ---------------------------------------------------------------------------------


async def test_a_file_is_copied_and_found_by_name(
    library: Library, model: Path, data: bytes
) -> None:
    done = await pull(pulls_of(library), str(model))
    assert (done["stage"], done["name"]) == ("done", "tiny-q8")
    assert done["done_bytes"] == done["wanted_bytes"] == len(data)
    copy = library.shelf.folder / "tiny-q8.gguf"
    assert copy.read_bytes() == data
    assert "tiny-q8" in await library.names()
    _, checkpoint = await library.find("tiny-q8")
    assert checkpoint.path == copy
    assert not list((library.shelf.folder / ".partial").iterdir())


async def test_what_is_no_model_is_not_copied(library: Library, tmp_path: Path) -> None:
    (tmp_path / "letter.gguf").write_bytes(b"dear neighbours")
    with pytest.raises(BadModelFile):
        await pull(pulls_of(library), str(tmp_path / "letter.gguf"))
    with pytest.raises(PullFailed, match="there is no model at"):
        await pull(pulls_of(library), str(tmp_path / "nothing.gguf"))
    assert await library.held() == [] or "letter" not in await library.names()


async def test_a_disk_that_fills_up_offers_no_half_model_and_goes_on_later(
    library: Library, model: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open, half = Path.open, len(data) // 2

    class Full:
        """A file on a disk with room for half of the model."""

        def __init__(self, file: Any) -> None:
            self._file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *error: object) -> None:
            self._file.close()

        def tell(self) -> int:
            return int(self._file.tell())

        def write(self, data: bytes) -> int:
            room = half - self._file.tell()
            if room <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return int(self._file.write(data[:room]))

    def open_full(path: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        file = real_open(path, mode, *rest, **named)
        return Full(file) if mode == "ab" else file

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(DiskFull, match="what has come is kept"):
        await pull(pulls_of(library), str(model))
    monkeypatch.setattr(Path, "open", real_open)
    assert "tiny-q8" not in await library.names()
    assert not list(library.shelf.folder.glob("*.gguf"))
    kept = list((library.shelf.folder / ".partial").glob("*/tiny-q8.gguf"))
    assert [path.stat().st_size for path in kept] == [half]
    reports = []
    async with aclosing(pulls_of(library).pull(str(model))) as running:
        async for report in running:
            reports.append(report)
    assert reports[-1]["stage"] == "done"
    assert (library.shelf.folder / "tiny-q8.gguf").read_bytes() == data


async def test_too_little_room_is_said_before_a_byte_is_copied(
    library: Library, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(DiskFull, match="and pull again"):
        await pull(pulls_of(library), str(model))


async def test_a_name_that_is_taken_is_not_overwritten(
    library: Library, model: Path, data: bytes, tmp_path: Path
) -> None:
    await pull(pulls_of(library), str(model))
    other = write_tiny_gemma(tmp_path / "tiny-q8.gguf", seed=9)
    with pytest.raises(ConfigError, match="potluck rm tiny-q8"):
        await pull(pulls_of(library), str(other))
    assert (library.shelf.folder / "tiny-q8.gguf").read_bytes() == data


async def test_a_model_can_be_removed_and_its_link_leaves_the_file(
    library: Library, model: Path, data: bytes
) -> None:
    library.shelf.folder.mkdir(parents=True)
    (library.shelf.folder / "linked.gguf").symlink_to(model)
    await pull(pulls_of(library), str(model))
    assert await library.remove("linked", lambda model_id: "") == 0
    assert list(model.parent.iterdir())
    with pytest.raises(ModelInUse, match="somebody needs it"):
        await library.remove("tiny-q8", lambda model_id: "somebody needs it")
    assert await library.remove("tiny-q8", lambda model_id: "") == len(data)
    assert "tiny-q8" not in await library.names()


# --- from a hub ----------------------------------------------------------------------------------


async def test_the_only_gguf_of_a_repository_is_taken(
    library: Library, fake_hub: FakeHub, data: bytes
) -> None:
    done = await pull(pulls_of(library, fake_hub.endpoint), REPO)
    assert done["name"] == "tiny-q8"
    assert done["done_bytes"] == done["wanted_bytes"] == len(data)
    assert (library.shelf.folder / "tiny-q8.gguf").read_bytes() == data
    held = {one.name: one for one in await library.held()}
    assert held["tiny-q8"].origin == f"hf:{REPO}:tiny-q8.gguf"
    fake_hub.sent.clear()
    again = await pull(pulls_of(library, fake_hub.endpoint), f"{REPO}:tiny-q8.gguf")
    assert "already" in again["how"]
    assert not fake_hub.sent


async def test_a_broken_download_goes_on_where_it_was(
    library: Library, fake_hub: FakeHub, data: bytes
) -> None:
    """The hub's own library tries some more times; then what has come stays."""
    fake_hub.break_after = 256 * 1024
    with pytest.raises(PullFailed, match="What came is kept"):
        await pull(pulls_of(library, fake_hub.endpoint), REPO)
    assert "tiny-q8" not in await library.names()
    (kept,) = (library.shelf.folder / ".partial").glob("*/tiny-q8.gguf")
    have = kept.stat().st_size
    assert have == fake_hub.break_after < len(data)
    fake_hub.break_after = None
    fake_hub.sent.clear()
    await pull(pulls_of(library, fake_hub.endpoint), REPO)
    assert fake_hub.sent == {"tiny-q8.gguf": len(data) - have}
    assert (library.shelf.folder / "tiny-q8.gguf").read_bytes() == data


async def test_what_came_damaged_is_removed_and_said(library: Library, fake_hub: FakeHub) -> None:
    fake_hub.lie = True
    with pytest.raises(PullFailed, match="came damaged"):
        await pull(pulls_of(library, fake_hub.endpoint), REPO)
    assert "tiny-q8" not in await library.names()
    fake_hub.lie = False
    assert (await pull(pulls_of(library, fake_hub.endpoint), REPO))["stage"] == "done"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("somebody/nothing", "no such repository"),
        (f"{REPO}:other.gguf", "has no file 'other.gguf'; it has: tiny-q8.gguf"),
        ("somebody/two", "has 2 GGUF files; name one, such as somebody/two:a-q4.gguf"),
    ],
)
async def test_a_source_that_is_none_is_told_in_words(
    library: Library, fake_hub: FakeHub, source: str, words: str
) -> None:
    with pytest.raises(PullFailed) as caught:
        await pull(pulls_of(library, fake_hub.endpoint), source)
    assert words in str(caught.value)


async def test_a_hub_that_nobody_reaches(library: Library) -> None:
    pytest.importorskip("huggingface_hub")
    with pytest.raises(PullFailed, match="is this device online"):
        await pull(pulls_of(library, "http://127.0.0.1:9"), REPO)


async def test_without_the_library_the_error_names_it(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(PullFailed, match=r"pip install 'potluck\[hub\]'"):
        await pull(pulls_of(library), REPO)


async def test_one_source_is_pulled_once_at_a_time(library: Library, fake_hub: FakeHub) -> None:
    puller = pulls_of(library, fake_hub.endpoint)
    async with aclosing(puller.pull(REPO)) as first:
        await anext(first)
        with pytest.raises(ModelInUse, match="being pulled already"):
            await pull(puller, REPO)
    await asyncio.sleep(0)
    assert (await pull(puller, REPO))["stage"] == "done", "the first one was given up"


# --- what is taken -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("a/b", HubSource("a/b", None)),
        ("a/b:c.gguf", HubSource("a/b", "c.gguf")),
        ("a/b:q4/c.gguf", HubSource("a/b", "q4/c.gguf")),
        ("gemma-3-270m", None),
        ("a/b/c", None),
        ("a/b:", None),
        ("/a/b", None),
    ],
)
def test_what_is_a_name_on_the_hub(text: str, source: HubSource | None) -> None:
    assert parse_hub(text) == source


def test_of_a_folder_only_the_models_files_are_taken() -> None:
    names = [
        *("config.json", "tokenizer.json", "model.safetensors", "README.md", "pytorch_model.bin"),
        *("onnx/model.onnx", "old/model.safetensors", "model.safetensors.index.json"),
    ]
    files = [HubFile(name, 10, "") for name in names]
    found = choose(HubSource("a/house", None), files)
    assert found.is_folder
    assert found.name == "house"
    assert {file.path for file in found.files} == {
        *("config.json", "tokenizer.json", "model.safetensors", "model.safetensors.index.json")
    }


@pytest.mark.parametrize("name", ["..", "/", "", "   ", "..."])
def test_a_name_that_no_file_can_have(name: str) -> None:
    with pytest.raises(ModelError, match="cannot be the name of a file"):
        file_name(name)


def test_a_name_becomes_one_that_any_disk_takes() -> None:
    assert file_name("My Model: v2/final") == "My-Model-v2-final"
    assert "/" not in file_name("../../etc/passwd")
    assert len(file_name("m" * 500)) <= 80

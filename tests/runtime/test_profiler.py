"""What a device says of its own speed: honest, kept, and measured of holes as of weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.profile import DeviceProfile
from planner.sound import is_sound
from runtime import profiler
from runtime.compute.torch_device import CPU
from runtime.measured import Measured, store, stored
from runtime.part_timing import PartSeconds, Spent, by_clock, part_curves, small_cut
from runtime.profiler import measure
from runtime.weights import Checkpoint
from tests.planner.homes import peer
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
        Checkpoint,
        "load_layer",
        lambda self, index, device, cut: taken.append(index) or load(self, index, device, cut),
    )
    measure(Checkpoint.open(path))
    # Of six, since files pack some layers tighter than others; at last a share of the first one.
    assert taken == [0, 1, 3, 4, 0]


def test_a_layer_is_the_sum_of_its_parts(path: Path) -> None:
    measured = measure(Checkpoint.open(path))
    parts = measured.parts
    assert parts is not None
    whole, counts = parts.whole, [tokens for tokens, _ in measured.layer.points]
    for tokens in counts:
        each = (whole.project, whole.attend, whole.close, whole.mlp, parts.connect)
        # The median of each is not that of their sum.
        assert sum(one.at(tokens) for one in each) == pytest.approx(
            measured.layer.at(tokens), rel=0.5
        )
    for one in (parts.small.project, parts.small.attend, parts.small.close, parts.small.mlp):
        assert [tokens for tokens, _ in one.points] == counts
    assert (parts.small.heads, parts.small.columns) == (1, whole.columns // 4 // 32 * 32 or 1)
    assert is_sound(DeviceProfile(peer(0), "one", 1, measured.layer, 0.1, 0, parts))


def test_how_much_of_the_processor_is_there(path: Path) -> None:
    measured = measure(Checkpoint.open(path))
    assert 1.0 <= measured.slowdown < 1000.0


@pytest.mark.parametrize(
    ("found", "threads", "slowdown", "own_core"),
    [
        (2.0, 1, 1.0, True),
        (1.0, 1, 1.0, False),  # one core, which computing takes
        (0.25, 1, 4.0, False),
        (2.0, 2, 1.0, False),
        (3.0, 2, 1.0, True),
        (1.0, 2, 2.0, False),
    ],
)
def test_what_computing_leaves_for_the_network(
    found: float, threads: int, slowdown: float, own_core: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiler, "cores", lambda busy: found if busy == threads + 1 else 0.0)
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    spent = Spent()
    spent.note(passed(0.1, slowdown))
    assert profiler.share_of_cores(CPU, spent) == (slowdown, own_core)


def test_a_share_too_slow_to_measure_grows_as_the_whole_layer() -> None:
    def seconds(of: float) -> PartSeconds:
        return PartSeconds(of, 2 * of, 3 * of, 3.5 * of, 0.5 * of, 10 * of)

    whole = {rows: seconds(float(rows)) for rows in (1, 64, 512)}
    small = {rows: seconds(0.3 * rows) for rows in (1, 64)}
    cut = small_cut(8, 256)
    assert cut is not None
    found = part_curves(8, 256, cut, whole, small, CPU, 1.0).small
    seconds_s = [seconds for _, seconds in found.mlp.points]
    assert seconds_s == pytest.approx([0.3 * 3.5 * rows for rows in (1, 64, 512)])


def passed(own_s: float, stretch: float) -> PartSeconds:
    """A pass that took so long by the clock as its thread was stopped."""
    return PartSeconds(own_s, 0.0, 0.0, 0.0, 0.0, wall=own_s * stretch)


def test_parts_of_a_thread_that_is_stopped_take_as_long_as_all_of_it() -> None:
    """With a quarter of a core; the small share was never stopped while it was measured."""
    whole = {64: PartSeconds(1.0, 2.0, 1.0, 5.0, 1.0, wall=40.0)}
    small = {64: PartSeconds(0.25, 0.5, 0.25, 1.25, 1.0, wall=3.25)}
    spent = Spent()
    for one in (whole, whole, small):
        spent.note(one[64])
    cut = small_cut(8, 256)
    assert cut is not None
    found = part_curves(8, 256, cut, by_clock(whole, spent), by_clock(small, spent), CPU, 4.0)
    assert found.whole.mlp.at(64) == pytest.approx(20.0)
    assert found.small.mlp.at(64) == pytest.approx(5.0)
    assert found.connect.at(64) == pytest.approx(4.0)


def test_somebody_else_on_the_processor_for_a_while_makes_no_slow_device() -> None:
    spent = Spent()
    for stretch in (4.0, 4.1, 9.0, 3.9, 4.0):
        spent.note(passed(0.1, stretch))
    assert spent.stretch == 4.0
    assert spent.is_known


def test_a_limited_device_is_not_known_from_one_pass() -> None:
    spent = Spent()
    assert not spent.is_told
    for _ in range(2):
        spent.note(passed(0.1, 6.0))
        assert not spent.is_known
    spent.note(passed(0.1, 4.0))
    assert spent.is_known
    free = Spent()
    free.note(passed(0.001, 1.01))
    assert free.is_known


@pytest.mark.parametrize(("heads", "columns"), [(1, 4096), (16, 1)])
def test_a_layer_of_one_head_or_column_is_not_shared(heads: int, columns: int) -> None:
    assert small_cut(heads, columns) is None


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

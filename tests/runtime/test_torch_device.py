"""An accelerator instead of the processor: which one, what goes there, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mesh.errors import ConfigError
from mesh.ids import SessionId
from planner.plan import Span
from planner.profile import Curve
from runtime import profiler
from runtime.checkpoints import Model, open_model
from runtime.compute import torch_device
from runtime.compute.linear import Linear, Part
from runtime.compute.precision import Precision
from runtime.compute.torch_device import CPU, choose
from runtime.formats.gguf import GGMLType
from runtime.holdings import Holdings
from runtime.measured import Measured, store, stored
from runtime.models.seq2seq_spec import MelEntrySpec
from runtime.profiler import TOKEN_COUNTS
from runtime.sampling import Sampling
from runtime.seq2seq.folder import open_folder
from runtime.seq2seq.weights import Seq2SeqCheckpoint
from runtime.stage import Slice, Stage
from runtime.stages import stage_of
from runtime.weights import Checkpoint
from runtime.worker import Worker
from tests.runtime.one_device import META, OneDevice
from tests.runtime.random_checkpoints import write_folder
from tests.runtime.random_encoders import write_random
from tests.runtime.tiny_model import write_tiny_gemma

INT8 = Precision.INT8
WINDOW = 8  # of the tiny model's sliding layers
FAMILIES = ["llama 3", "qwen3", "gemma3", "gpt2", "opt"]


def on(checkpoint: Model, device: torch.device, last: int | None = None) -> Any:
    """A stage of all layers, or of those before `last`."""
    count = len(checkpoint.profile().layers)
    span = Span(0, count if last is None else last)
    layers = {index: checkpoint.load_layer(index, device) for index in range(span.last)}
    head = checkpoint.load_head(device) if span.last == count else None
    return stage_of(checkpoint, span, layers, head, device)


def opened(stage: Any, sampling: Sampling | None = None) -> SessionId:
    session = SessionId.new()
    stage.open(session, sampling or Sampling(), 200)
    return session


def column(tokens: Iterable[int]) -> torch.Tensor:
    return torch.tensor(list(tokens), dtype=torch.int32)[:, None]


# --- which ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(0, False, "cpu"), (0, True, "mps"), (2, False, "cuda:0"), (1, True, "cuda:0")],
)
def test_the_best_that_is_here_is_taken(
    monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, expected: str
) -> None:
    having(monkeypatch, cuda, mps=mps)
    assert str(choose()) == expected
    assert choose("cpu") == CPU


def test_one_of_several_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    having(monkeypatch, 2)
    assert str(choose("cuda")) == "cuda:0"
    assert str(choose("cuda:1")) == "cuda:1"


@pytest.mark.parametrize("name", ["cuda", "cuda:2", "mps", "meta", "xpu", "", "no such thing" * 99])
def test_one_that_is_not_here_is_told_from_those_that_are(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    having(monkeypatch, 2 if name != "cuda" else 0)
    with pytest.raises(ConfigError, match="one that is here: (cuda:0, cuda:1, )?cpu; got") as told:
        choose(name)
    assert len(str(told.value)) < 200


def having(monkeypatch: pytest.MonkeyPatch, cuda: int, *, mps: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


# --- what is there --------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [Precision.AUTO, Precision.FP32])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_crosses_once_each_way_and_meets_nothing_of_the_processor(
    tmp_path: Path, family: str, precision: Precision
) -> None:
    """Prompts, slices of prompts that need a mask, single tokens, two sessions in a turn."""
    stage = on(Checkpoint.open(write_folder(family, tmp_path), precision), META)
    one, other = opened(stage), opened(stage)
    with OneDevice():
        stage.turn([Slice(one, 0, column(range(2 * WINDOW)), choose=False)])
        stage.turn([Slice(other, 0, column(range(3)), choose=True)])
    with OneDevice() as watched:
        stage.turn(
            [
                Slice(one, 2 * WINDOW, column(range(5)), choose=True),
                Slice(other, 3, column([1]), choose=True),
            ]
        )
    assert (watched.entered, watched.left) == (1, 1)


def test_what_a_stage_in_the_middle_says_is_the_processors(tmp_path: Path) -> None:
    stage = on(Checkpoint.open(write_tiny_gemma(tmp_path / "tiny.gguf")), META, last=2)
    with OneDevice() as watched:
        (hidden,) = stage.turn([Slice(opened(stage), 0, column(range(5)), choose=True)])
    assert hidden is not None
    assert (hidden.device, hidden.dtype) == (CPU, torch.float32)
    assert watched.left == 1


def test_a_rewound_step_and_a_prefix_that_is_kept_stay_there(tmp_path: Path) -> None:
    stage = on(Checkpoint.open(write_tiny_gemma(tmp_path / "tiny.gguf")), META)
    session = opened(stage)
    with OneDevice():
        stage.turn([Slice(session, 0, column(range(20)), choose=True)])
        stage.turn([Slice(session, 18, column(range(2)), choose=True)])


@pytest.mark.parametrize(
    "name", ["t5-1.0", "t5-1.1", "bart", "whisper", "bert-classes", "distilbert"]
)
def test_an_encoder_and_its_decoder_meet_nothing_of_the_processor(
    tmp_path: Path, name: str
) -> None:
    write_random(name, tmp_path)
    checkpoint = Seq2SeqCheckpoint(open_folder(tmp_path))
    stage, entry = on(checkpoint, META), checkpoint.spec.source
    rows = column(range(1, 12))
    if isinstance(entry, MelEntrySpec):
        rows = torch.randn(40, entry.mels)
    session, answers = opened(stage), checkpoint.spec.decoder is None
    with OneDevice() as watched:
        stage.turn([Slice(session, 1, rows, choose=answers, is_source=True)])
        assert watched.entered <= 2  # the rows, and a table of distances
        if answers:
            assert watched.left == 1
            return
        assert watched.left == 0
        stage.turn([Slice(session, 0, column([1, 2, 3]), choose=True)])
        stage.turn([Slice(session, 3, column([4]), choose=True)])
    assert watched.left == 2


def test_nothing_of_a_layer_is_left_behind(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_tiny_gemma(tmp_path / "tiny.gguf"))
    stage: Stage = on(checkpoint, META)
    stage.turn([Slice(opened(stage), 0, column(range(5)), choose=False)])
    (one,) = stage._open.values()
    for block in stage._blocks:
        rope = block.attention.rope
        assert rope is not None
        assert {rope._cos.device, rope._sin.device} == {META}
        assert {tensor.device for tensor in block.state_dict().values()} == {META}
    parts = [part for block in stage._blocks for part in block.modules()]
    assert not any(getattr(part, "matrices", ()) for part in parts)
    assert one.cache.size_bytes > 0


# --- what it weighs -------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", list(Precision))
def test_weighs_what_its_profile_says(tmp_path: Path, precision: Precision) -> None:
    checkpoint = Checkpoint.open(write_tiny_gemma(tmp_path / "tiny.gguf"), precision)
    profile = checkpoint.profile(META)
    assert held(checkpoint.load_head(META)) == profile.head_bytes
    for index, layer in enumerate(profile.layers):
        block = checkpoint.load_layer(index, META)
        assert held(block) == layer.weight_bytes
        exact = precision is Precision.FP32
        assert block.mlp.down.weight is not None
        assert block.mlp.down.weight.dtype is (torch.float32 if exact else torch.bfloat16)
    assert checkpoint.profile() == checkpoint.profile(CPU)


def held(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.parameters())


async def test_what_is_loaded_counts_as_it_is_there(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_tiny_gemma(tmp_path / "tiny.gguf"))
    profile, worker = checkpoint.profile(META), Worker(1)
    holdings = Holdings(worker, 1 << 30, META)
    await holdings.load(checkpoint, Span(0, 4), 0, lambda: None)
    worker.close()
    weights = profile.head_bytes + sum(layer.weight_bytes for layer in profile.layers)
    assert holdings.size_bytes == weights > 1.5 * checkpoint.profile().head_bytes


# --- what comes of it -----------------------------------------------------------------------------


@pytest.fixture
def without_loops(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, the processor is used as an accelerator is."""

    def refuse() -> None:
        for place in ("linear", "pointwise"):
            monkeypatch.setattr(f"runtime.compute.{place}.runs_loops", lambda device: False)

    return refuse


@pytest.mark.parametrize(("precision", "most"), [(Precision.FP32, 1e-4), (Precision.AUTO, 0.03)])
@pytest.mark.parametrize("family", FAMILIES)
def test_says_what_the_processor_says(
    tmp_path: Path,
    family: str,
    precision: Precision,
    most: float,
    without_loops: Callable[[], None],
) -> None:
    folder = write_folder(family, tmp_path)
    expected = hidden_states(Checkpoint.open(folder, Precision.FP32))
    without_loops()
    said = hidden_states(Checkpoint.open(folder, precision))
    assert (said - expected).norm() < most * expected.norm()


def hidden_states(checkpoint: Checkpoint) -> torch.Tensor:
    """[N, hidden] before the head, of a prompt, and a few tokens after it one by one."""
    stage = on(checkpoint, CPU, last=3)
    session, rows = opened(stage), []
    for first, last in ((0, 20), (20, 21), (21, 22), (22, 30)):
        (out,) = stage.turn([Slice(session, first, column(range(first, last)), choose=True)])
        rows.append(out)
    return torch.cat(rows)


def test_weights_of_every_width_are_halved(without_loops: Callable[[], None]) -> None:
    """Also rows that fall into no whole groups, with a bias."""
    without_loops()
    weight = torch.randn(6, 50)
    linear = Linear(6, 50, bias=True)
    assert linear.bias is not None
    linear.bias.copy_(torch.arange(6.0))
    raw = weight.numpy().view(np.uint8)
    linear.fill([Part(half.reshape(-1), GGMLType.F32, 3) for half in (raw[:3], raw[3:])], INT8)
    x = torch.randn(2, 3, 50)
    out, exact = linear(x), x @ weight.T + linear.bias
    assert (out.shape, out.dtype) == ((2, 3, 6), torch.float32)
    assert (out - exact).norm() < 0.02 * exact.norm()


# --- how long it takes ----------------------------------------------------------------------------


def test_the_clock_is_read_when_all_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was started is not done: without waiting, a step would seem to take no time."""
    events: list[str] = []

    def read_clock() -> float:
        events.append("clock")
        return float(len(events))

    monkeypatch.setattr(profiler, "synchronize", lambda device: events.append(str(device)))
    monkeypatch.setattr("runtime.profiler.time", SimpleNamespace(perf_counter=read_clock))
    layer = profiler._Layer(Checkpoint.open(write_tiny_gemma(tmp_path / "tiny.gguf")), 0, META)
    with torch.inference_mode(), OneDevice():
        layer.unparted_s(torch.randn(5, 64))
    assert events == ["meta", "clock"] * 2


def test_what_one_device_measured_is_not_the_others(tmp_path: Path) -> None:
    checkpoint = open_model(write_tiny_gemma(tmp_path / "tiny.gguf"))
    measured = Measured(Curve(((TOKEN_COUNTS[-1], 1.0),)), 0.5)
    second = torch.device("cuda:1")
    store(measured, checkpoint, tmp_path, 1, second)
    assert stored(checkpoint, tmp_path, 1, second) == measured
    for other in (CPU, torch.device("cuda:0"), torch.device("mps")):
        assert stored(checkpoint, tmp_path, 1, other) is None


def test_waiting_for_the_processor_is_nothing() -> None:
    torch_device.synchronize(CPU)
    assert torch_device.free_bytes(CPU) is None

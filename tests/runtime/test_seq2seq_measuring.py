"""What the planner is told of encoders and decoders: figures that can be, memory that is enough."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from planner.memory import layer_bytes
from planner.plan import Capacity
from planner.profile import DeviceProfile
from planner.sound import is_sound
from runtime.checkpoints import open_model
from runtime.measuring import measure
from runtime.models.decoder_block import DecoderCache, Target
from runtime.seq2seq.weights import Seq2SeqCheckpoint

pytest.importorskip("transformers")
from tests.runtime.random_encoders import LAYERS, write_random
from tests.runtime.room import peer


def made(name: str, folder: Path) -> Seq2SeqCheckpoint:
    write_random(name, folder)
    found = open_model(folder)
    assert isinstance(found, Seq2SeqCheckpoint)
    return found


@pytest.mark.parametrize("name", ["bert", "distilbert-classes", "t5-1.1", "bart", "whisper"])
def test_both_stacks_are_measured(name: str, tmp_path: Path) -> None:
    """The planner leaves out a device whose figures cannot be."""
    checkpoint = made(name, tmp_path)
    measured = measure(checkpoint)
    counts = [count for count, _ in measured.layer.points]
    assert counts == sorted(set(counts))
    assert counts[0] == 1
    assert counts[-1] <= checkpoint.spec.source.context
    assert all(seconds > 0 for _, seconds in measured.layer.points)
    assert measured.head_s > 0
    DeviceProfile(peer(1), "one", 1, measured.layer, measured.head_s, 1)


@pytest.mark.parametrize(("name", "shares"), [("bert", True), ("t5-1.1", False)])
def test_only_an_encoder_s_layers_are_measured_part_by_part(
    name: str, shares: bool, tmp_path: Path
) -> None:
    """One with a decoder is not shared: its curve stands for two kinds of layers."""
    checkpoint = made(name, tmp_path)
    measured, stack = measure(checkpoint), checkpoint.spec.encoder
    assert (measured.parts is not None) is shares
    if measured.parts is not None:
        whole = measured.parts.whole
        assert (whole.heads, whole.columns) == (stack.heads, stack.ffn_size)
        assert measured.parts.small.heads < whole.heads
    assert is_sound(
        DeviceProfile(peer(1), "one", 1, measured.layer, measured.head_s, 1, measured.parts)
    )


@pytest.mark.parametrize("name", ["t5-1.1", "bart", "whisper"])
def test_caches_never_take_more_than_was_planned(name: str, tmp_path: Path) -> None:
    checkpoint = made(name, tmp_path)
    spec = checkpoint.spec
    profile = checkpoint.profile()
    context = min(64, profile.context)
    source = spec.source.context if name == "whisper" else context
    section = checkpoint.load_layer(LAYERS)
    assert spec.decoder is not None
    cache = DecoderCache(spec.decoder, context)
    with torch.inference_mode():
        section.layer.remember(torch.randn(source, spec.hidden_size), cache)  # type: ignore[union-attr]
        section.layer.forward(torch.randn(context, spec.hidden_size), Target(0, cache))  # type: ignore[call-arg]
    layer = profile.layers[LAYERS]
    assert cache.size_bytes <= layer_bytes(layer, Capacity(1, context)) - layer.weight_bytes
    assert profile.layers[0].kv_bytes_per_token == profile.layers[0].session_bytes == 0

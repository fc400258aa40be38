"""A small model of every family, written once: what is cut into shares."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from runtime.formats.gguf import GGMLType
from tests.runtime.ctranslate2_writer import write_converted
from tests.runtime.gguf_from_folder import write_as_gguf
from tests.runtime.gguf_writer import Stored, write_gguf
from tests.runtime.random_checkpoints import make_model, write_folder
from tests.runtime.random_encoders import write_random
from tests.runtime.tiny_model import tiny_metadata, tiny_tensors

# Which layer stands for the others: one of each kind of each family.
FAMILIES: Mapping[str, tuple[int, ...]] = {
    "llama with all biases": (0,),
    "qwen2": (0,),
    "qwen3": (0,),
    "gemma3": (0, 1),
    "gpt2": (0,),
    "opt": (0,),
    "llama 3 as gguf": (0,),
    "gpt2 as gguf": (0,),
    "bert": (0, 2),
    "distilbert": (0,),
    "t5-1.0": (0, 4),
    "t5-1.1": (0, 3),
    "bart": (0, 3),
    "whisper": (0, 4),
    "whisper converted": (0, 2),
}
ENCODERS = ("bert", "distilbert", "t5-1.0", "t5-1.1", "bart", "whisper")
QUANTISED = {kind.name: kind for kind in GGMLType if kind.block_weights > 1}


def write_one(name: str, folder: Path) -> Path:
    """One of FAMILIES or of QUANTISED; returns what to open."""
    if name.endswith("as gguf"):
        variant = name.removesuffix(" as gguf")
        return write_as_gguf(make_model(variant), folder / "model.gguf")
    if name == "whisper converted":
        return _converted(folder)
    if name in QUANTISED:
        return _quantised(QUANTISED[name], folder / "model.gguf")
    if name in ENCODERS:
        write_random(name, folder)
        return folder
    return write_folder(name, folder)


def _converted(folder: Path) -> Path:
    """Two layers a stack, two heads of 64, as every Whisper has."""
    torch.manual_seed(3)
    config = transformers.WhisperConfig(
        d_model=128,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        num_mel_bins=20,
        max_source_positions=30,
        max_target_positions=40,
        vocab_size=51_864,
        pad_token_id=50_256,
    )
    model = transformers.WhisperForConditionalGeneration(config)
    weights = {k: v for k, v in model.state_dict().items() if k != "proj_out.weight"}
    write_converted(weights, folder / "model.bin")
    (folder / "config.json").write_text(json.dumps({"suppress_ids": []}))
    return folder


def _quantised(kind: GGMLType, path: Path) -> Path:
    """Random blocks, whose scales are small numbers; heads of half a K block."""
    tensors = tiny_tensors(2, 256, 4, 128, 512, seed=5)
    random = np.random.default_rng(5)
    for name, stored in tensors.items():
        if stored.type is GGMLType.Q8_0:
            tensors[name] = _random_blocks(kind, stored.shape, random)
    return write_gguf(path, tiny_metadata(2, 256, 4, 128, 512, 64, 8), tensors)


def _random_blocks(kind: GGMLType, shape: tuple[int, ...], random: Any) -> Stored:
    count = int(np.prod(shape)) // kind.block_weights
    blocks = random.integers(0, 256, (count, kind.block_bytes), np.uint8)
    for place in {GGMLType.Q6_K: (208,), GGMLType.Q4_K: (0, 2), GGMLType.Q5_K: (0, 2)}.get(
        kind, (0,)
    ):
        scales = random.uniform(-0.001, 0.001, count).astype("<f2")
        blocks[:, place : place + 2] = scales.view(np.uint8).reshape(-1, 2)
    return Stored(kind, shape, blocks.tobytes())

"""Writes a Whisper of `transformers` as CTranslate2's converter does: fused, and in its format."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

LAYER = {
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
    "ffn/layer_norm": ("final_layer_norm",),
}


def write_converted(weights: Mapping[str, Tensor], path: Path) -> None:
    """`weights` under transformers' names, without the head that is tied."""
    variables = sorted(_variables({k.removeprefix("model."): v for k, v in weights.items()}))
    head = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(variables))
    body = b"".join(variable(name, values, kind) for name, values, kind in variables)
    aliases = text("decoder/projection/weight") + text("decoder/embeddings/weight")
    path.write_bytes(head + body + struct.pack("<I", 1) + aliases)


def text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def variable(name: str, values: np.ndarray, kind: int) -> bytes:  # type: ignore[type-arg]
    shape = struct.pack(f"<B{values.ndim}I", values.ndim, *values.shape)
    raw = values.tobytes()
    return text(name) + shape + struct.pack("<BI", kind, len(raw)) + raw


def _variables(
    weights: Mapping[str, Tensor],
) -> Iterator[tuple[str, np.ndarray, int]]:  # type: ignore[type-arg]
    for stack in ("encoder", "decoder"):
        yield f"{stack}/num_heads", np.array(1, dtype=np.int16), 2
        yield f"{stack}/position_encodings/encodings", *_f32(weights, f"{stack}.embed_positions")
        yield f"{stack}/layer_norm/gamma", *_f32(weights, f"{stack}.layer_norm")
        yield f"{stack}/layer_norm/beta", *_f32(weights, f"{stack}.layer_norm", "bias")
        numbers = {name.split(".")[2] for name in weights if name.startswith(f"{stack}.layers.")}
        for number in sorted(numbers):
            yield from _layer(weights, stack, number)
    yield "decoder/embeddings/weight", *_f32(weights, "decoder.embed_tokens")
    for part in ("conv1", "conv2"):
        yield f"encoder/{part}/weight", *_f32(weights, f"encoder.{part}")
        yield f"encoder/{part}/bias", *_f32(weights, f"encoder.{part}", "bias")


def _layer(
    weights: Mapping[str, Tensor], stack: str, number: str
) -> Iterator[tuple[str, np.ndarray, int]]:  # type: ignore[type-arg]
    for module, parts in LAYER.items():
        names = [f"{stack}.layers.{number}.{part}" for part in parts]
        if f"{names[0]}.weight" not in weights:
            continue  # an encoder has no cross-attention
        kinds = ("gamma", "beta") if "norm" in module else ("weight", "bias")
        rows = [weights[f"{name}.weight"] for name in names]
        zeros = [torch.zeros(row.shape[0]) for row in rows]
        biases = [weights.get(f"{n}.bias", z) for n, z in zip(names, zeros, strict=True)]
        at = f"{stack}/layer_{number}/{module}"
        yield f"{at}/{kinds[0]}", torch.cat(rows).numpy(), 0
        yield f"{at}/{kinds[1]}", torch.cat(biases).numpy(), 0


def _f32(
    weights: Mapping[str, Tensor], name: str, parameter: str = "weight"
) -> tuple[np.ndarray, int]:  # type: ignore[type-arg]
    return weights[f"{name}.{parameter}"].numpy(), 0

"""A Whisper that CTranslate2 converted, under the names and in the shapes of the original.

What it fused (queries, keys and values in one matrix) is told apart again by rows, in place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from mesh.errors import BadModelFile, UnsupportedModel
from runtime.formats.gguf import TensorInfo

SPEC: Final = "WhisperSpec"
HEAD_DIM: Final = 64  # of every Whisper
ENGLISH_VOCABULARY: Final = 51_864  # the English models have one token less, and other ids
_PARAMETERS: Final = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias"}
_ENDS: Final = {
    "encoder/conv1": "encoder.conv1",
    "encoder/conv2": "encoder.conv2",
    "encoder/layer_norm": "encoder.layer_norm",
    "decoder/layer_norm": "decoder.layer_norm",
    "decoder/embeddings": "decoder.embed_tokens",
    "encoder/position_encodings/encodings": "encoder.embed_positions.weight",
    "decoder/position_encodings/encodings": "decoder.embed_positions.weight",
}
# Below a layer: the module there, and the rows of it that are told apart.
_SELF: Final = "self_attention/"
_CROSS: Final = "attention/"
_LAYER: Final[Mapping[str, tuple[str, ...]]] = {
    f"{_SELF}linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    f"{_SELF}linear_1": ("self_attn.out_proj",),
    f"{_SELF}layer_norm": ("self_attn_layer_norm",),
    f"{_CROSS}linear_0": ("encoder_attn.q_proj",),
    f"{_CROSS}linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    f"{_CROSS}linear_2": ("encoder_attn.out_proj",),
    f"{_CROSS}layer_norm": ("encoder_attn_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
    "ffn/layer_norm": ("final_layer_norm",),
}
_IN_LAYER: Final = re.compile(r"(encoder|decoder)/layer_(\d{1,4})/(.+)/(\w+)")


def original_tensors(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The tensors under transformers' names. Raises BadModelFile for one that fits nowhere."""
    return {new.name: new for info in tensors.values() for new in _originals(info)}


def original_config(tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json as transformers would have it, from shapes: the converted one has no sizes.

    `tensors` are under the original names. Raises BadModelFile, UnsupportedModel.
    """
    vocabulary, hidden = _shape(tensors, "decoder.embed_tokens.weight", 2)
    start = 50_257 if vocabulary == ENGLISH_VOCABULARY else 50_258
    if vocabulary <= start or hidden % HEAD_DIM:
        raise UnsupportedModel(f"a Whisper of {vocabulary} tokens and width {hidden} is not known")
    sizes: dict[str, Any] = {
        "model_type": "whisper",
        "d_model": hidden,
        "vocab_size": vocabulary,
        "num_mel_bins": _shape(tensors, "encoder.conv1.weight", 3)[1],
        "max_source_positions": _shape(tensors, "encoder.embed_positions.weight", 2)[0],
        "max_target_positions": _shape(tensors, "decoder.embed_positions.weight", 2)[0],
        "decoder_start_token_id": start,
        "eos_token_id": start - 1,
        "suppress_tokens": config.get("suppress_ids"),
        "begin_suppress_tokens": config.get("suppress_ids_begin"),
    }
    for stack in ("encoder", "decoder"):
        numbers = {name.split(".")[2] for name in tensors if name.startswith(f"{stack}.layers.")}
        sizes[f"{stack}_layers"] = len(numbers)
        sizes[f"{stack}_attention_heads"] = hidden // HEAD_DIM
        sizes[f"{stack}_ffn_dim"] = _shape(tensors, f"{stack}.layers.0.fc1.weight", 2)[0]
    return sizes


def _originals(info: TensorInfo) -> Iterator[TensorInfo]:
    if info.name in _ENDS:
        yield replace(info, name=_ENDS[info.name])
        return
    module, _, last = info.name.rpartition("/")
    if module in _ENDS and last in _PARAMETERS:
        yield replace(info, name=f"{_ENDS[module]}.{_PARAMETERS[last]}")
        return
    found = _IN_LAYER.fullmatch(info.name)
    if found is None or found[3] not in _LAYER or found[4] not in _PARAMETERS:
        raise BadModelFile(f"a converted Whisper has no tensor {info.name!r:.80}")
    stack, number, part, parameter = found.groups()
    names = _LAYER[part]
    for piece, name in zip(_rows(info, len(names)), names, strict=True):
        original = f"{stack}.layers.{number}.{name}.{_PARAMETERS[parameter]}"
        if not original.endswith("k_proj.bias"):  # always zero: the original has none
            yield replace(piece, name=original)


def _rows(info: TensorInfo, parts: int) -> Iterator[TensorInfo]:
    """`info` cut into so many parts of equally many rows."""
    rows, rest = divmod(info.shape[0], parts)
    if rest:
        raise BadModelFile(f"{info.name!r:.80} of {info.shape[0]} rows is not {parts} in one")
    size_bytes = info.size_bytes // parts
    for part in range(parts):
        offset = info.offset + part * size_bytes
        yield replace(info, shape=(rows, *info.shape[1:]), offset=offset, size_bytes=size_bytes)


def _shape(tensors: Mapping[str, TensorInfo], name: str, dims: int) -> tuple[int, ...]:
    info = tensors.get(name)
    if info is None or len(info.shape) != dims:
        raise BadModelFile(f"a converted Whisper has a tensor {name} of {dims} dims")
    return info.shape

"""Models of well-known shapes, made here: their sizes are what counts, and not what they say.

The weights are small random numbers from a seed, the same in each layer, so that what devices
compute together can be held against what one computes alone.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from runtime.formats.safetensors_folder import CONFIG, SINGLE

SEED: Final = 11
SCALE: Final = 0.02  # of the weights, as BERT and GPT-2 begin
CONTEXT: Final = 512
VOCABULARY: Final = 1024  # rows of it are read one by one; the head is no part of a pass

Tensors = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Shape:
    """A model to be made: as many layers as wanted, of `layers` that the original has."""

    name: str
    layers: int
    hidden: int
    heads: int
    ffn: int
    config: Mapping[str, Any]
    layer: Tensors  # of one layer, `{}` standing for its number
    ends: Tensors = field(default_factory=dict)

    def write(self, folder: Path, layers: int) -> Path:
        """The model with its first `layers` layers, as a folder of its own."""
        path = folder / f"{self.name}-{layers}"
        path.mkdir()
        count = {key: layers for key, value in self.config.items() if value is None}
        (path / CONFIG).write_text(json.dumps({**self.config, **count}))
        shapes = {**self.ends}
        for index in range(layers):
            shapes |= {name.format(index): shape for name, shape in self.layer.items()}
        made = {name: _numbers(name, shape) for name, shape in self.ends.items()}
        made |= {name: _numbers(name, shape) for name, shape in self.layer.items()}
        with (path / SINGLE).open("wb") as file:
            file.write(_header(shapes))
            for index_name, original in _originals(self, layers):
                assert index_name in shapes, "in the order of the header"
                file.write(made[original].data)
        return path


def _originals(shape: Shape, layers: int) -> Iterator[tuple[str, str]]:
    """Each tensor's name, and under which it was made."""
    yield from ((name, name) for name in shape.ends)
    for index in range(layers):
        yield from ((name.format(index), name) for name in shape.layer)


def _numbers(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Weights as a model has them before its training; norms that change nothing."""
    is_norm = "norm" in name.lower() or ".ln_" in name or name.startswith("ln_")
    if is_norm:
        return np.full(shape, name.endswith("weight"), np.float32)
    rng = np.random.default_rng([SEED, len(name)])
    return rng.standard_normal(shape, np.float32) * np.float32(SCALE)


def _header(shapes: Tensors) -> bytes:
    entries, offset = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _mapped(prefix: str, maps: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    """Linear maps [out, in] with their biases."""
    named: dict[str, tuple[int, ...]] = {}
    for name, (rows, columns) in maps.items():
        named |= {f"{prefix}{name}.weight": (rows, columns), f"{prefix}{name}.bias": (rows,)}
    return named


def _norms(prefix: str, names: tuple[str, ...], size: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}{name}.{kind}": (size,) for name in names for kind in ("weight", "bias")}


def _bert_large() -> Shape:
    hidden, ffn, prefix = 1024, 4096, "encoder.layer.{}."
    square = ("attention.self.query", "attention.self.key", "attention.self.value")
    maps = {name: (hidden, hidden) for name in (*square, "attention.output.dense")}
    maps |= {"intermediate.dense": (ffn, hidden), "output.dense": (hidden, ffn)}
    norms = ("attention.output.LayerNorm", "output.LayerNorm")
    return Shape(
        name="bert-large",
        layers=24,
        hidden=hidden,
        heads=16,
        ffn=ffn,
        config={
            "model_type": "bert",
            "hidden_size": hidden,
            "num_attention_heads": 16,
            "intermediate_size": ffn,
            "max_position_embeddings": CONTEXT,
            "vocab_size": VOCABULARY,
            "num_hidden_layers": None,
        },
        layer=_mapped(prefix, maps) | _norms(prefix, norms, hidden),
        ends={
            "embeddings.word_embeddings.weight": (VOCABULARY, hidden),
            "embeddings.position_embeddings.weight": (CONTEXT, hidden),
            "embeddings.token_type_embeddings.weight": (2, hidden),
            **_norms("embeddings.", ("LayerNorm",), hidden),
        },
    )


def _distilbert() -> Shape:
    hidden, ffn, prefix = 768, 3072, "transformer.layer.{}."
    square = ("q_lin", "k_lin", "v_lin", "out_lin")
    maps = {f"attention.{name}": (hidden, hidden) for name in square}
    maps |= {"ffn.lin1": (ffn, hidden), "ffn.lin2": (hidden, ffn)}
    norms = ("sa_layer_norm", "output_layer_norm")
    return Shape(
        name="distilbert",
        layers=6,
        hidden=hidden,
        heads=12,
        ffn=ffn,
        config={
            "model_type": "distilbert",
            "dim": hidden,
            "n_heads": 12,
            "hidden_dim": ffn,
            "max_position_embeddings": CONTEXT,
            "vocab_size": VOCABULARY,
            "n_layers": None,
        },
        layer=_mapped(prefix, maps) | _norms(prefix, norms, hidden),
        ends={
            "embeddings.word_embeddings.weight": (VOCABULARY, hidden),
            "embeddings.position_embeddings.weight": (CONTEXT, hidden),
            **_norms("embeddings.", ("LayerNorm",), hidden),
        },
    )


def _gpt2_large() -> Shape:
    """Its matrices are stored the other way round, [in, out]."""
    hidden, prefix = 1280, "h.{}."
    weights = {
        "attn.c_attn": (hidden, 3 * hidden),
        "attn.c_proj": (hidden, hidden),
        "mlp.c_fc": (hidden, 4 * hidden),
        "mlp.c_proj": (4 * hidden, hidden),
    }
    layer: dict[str, tuple[int, ...]] = {}
    for name, (rows, columns) in weights.items():
        layer[f"{prefix}{name}.weight"] = (rows, columns)
        layer[f"{prefix}{name}.bias"] = (columns,)
    return Shape(
        name="gpt2-large",
        layers=36,
        hidden=hidden,
        heads=20,
        ffn=4 * hidden,
        config={
            "model_type": "gpt2",
            "n_embd": hidden,
            "n_head": 20,
            "n_positions": CONTEXT,
            "vocab_size": VOCABULARY,
            "n_layer": None,
        },
        layer=layer | _norms(prefix, ("ln_1", "ln_2"), hidden),
        ends={
            "wte.weight": (VOCABULARY, hidden),
            "wpe.weight": (CONTEXT, hidden),
            **_norms("", ("ln_f",), hidden),
        },
    )


SHAPES: Final = {one.name: one for one in (_bert_large(), _gpt2_large(), _distilbert())}

"""What may stand behind an encoder's last layer: a word for each mask, a class, or nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from runtime.models.encoder_config import nonlinearity
from runtime.models.metadata import Metadata
from runtime.models.seq2seq_names import Places, dense, norm
from runtime.models.seq2seq_spec import ExitSpec, Output, Seq2SeqSpec
from runtime.models.spec import Activation, TensorPlace

CLASSIFIER: Final = "classifier"


@dataclass(frozen=True, slots=True)
class ExitNames:
    """Of one family. `words` is the embedding, which the masked head uses unless it has its own."""

    words: str
    masked_transform: str
    masked_norm: str
    masked_weight: str
    masked_bias: str
    classes_transform: str
    classes_nonlinearity: Activation


def read_exit(names: ExitNames, config: Metadata, tensors: frozenset[str]) -> ExitSpec:
    """Which of them the checkpoint has, judged by its tensors."""
    if names.masked_bias in tensors:
        transform = nonlinearity(config.text("hidden_act", config.text("activation", "gelu")))
        vocabulary = config.count("vocab_size")
        return ExitSpec(Output.MASKED, vocabulary, transform=transform, normed=True, biased=True)
    if f"{CLASSIFIER}.weight" in tensors:
        transform = names.classes_nonlinearity
        return ExitSpec(Output.CLASSES, _labels(config), transform=transform, biased=True)
    return ExitSpec(Output.HIDDEN)


def exit_places(names: ExitNames, spec: Seq2SeqSpec, tensors: frozenset[str]) -> Places:
    hidden, outputs = spec.hidden_size, spec.exit.outputs
    match spec.exit.output:
        case Output.MASKED:
            weight = names.masked_weight if names.masked_weight in tensors else names.words
            return (
                *dense(names.masked_transform, "transform", hidden, hidden),
                *norm(spec, names.masked_norm, "norm"),
                TensorPlace(weight, (outputs, hidden), "output"),
                TensorPlace(names.masked_bias, (outputs,), "output.bias"),
            )
        case Output.CLASSES:
            return (
                *dense(names.classes_transform, "transform", hidden, hidden),
                TensorPlace(f"{CLASSIFIER}.weight", (outputs, hidden), "output"),
                TensorPlace(f"{CLASSIFIER}.bias", (outputs,), "output.bias"),
            )
        case _:
            return ()


def _labels(config: Metadata) -> int:
    """config.json lists the labels; where it does not, there are two."""
    listed = config.entries.get("id2label")
    return len(listed) if isinstance(listed, dict) and listed else config.count("num_labels", 2)

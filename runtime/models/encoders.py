"""The families of encoders and encoder-decoders that we have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mesh.errors import BadModelFile, UnsupportedModel
from runtime.models import bart, bert, distilbert, t5, whisper
from runtime.models.metadata import Metadata
from runtime.models.seq2seq_names import Seq2SeqFamily

ENCODERS: Final[Mapping[str, Seq2SeqFamily]] = {
    family.architecture: family
    for family in (bart.FAMILY, bert.FAMILY, distilbert.FAMILY, t5.FAMILY, whisper.FAMILY)
}


def encoder_family_of(config: Metadata) -> Seq2SeqFamily:
    """By config.json's model_type; raises UnsupportedModel for one we do not have."""
    kind = config.entries.get("model_type")
    if not isinstance(kind, str):
        raise BadModelFile("config.json does not say its model_type; is it a model's folder?")
    family = ENCODERS.get(kind)
    if family is None:
        known = ", ".join(sorted(ENCODERS))
        raise UnsupportedModel(f"model_type {kind!r:.80} is no encoder we know; known: {known}")
    return family

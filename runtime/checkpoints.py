"""Any model that we can open: a decoder, an encoder, or an encoder with a decoder."""

from __future__ import annotations

from pathlib import Path

from mesh.errors import UnsupportedModel
from runtime.compute.precision import Precision
from runtime.formats.json_files import read_object
from runtime.formats.safetensors_folder import CONFIG
from runtime.models import FOLDER_FAMILIES
from runtime.models.encoders import ENCODERS
from runtime.seq2seq.folder import CONVERTED, open_folder
from runtime.seq2seq.weights import Seq2SeqCheckpoint
from runtime.weights import Checkpoint

Model = Checkpoint | Seq2SeqCheckpoint


def open_model(path: Path, precision: Precision = Precision.AUTO) -> Model:
    """A GGUF file, or a folder as Hugging Face or CTranslate2 lays it out. Reads headers only.

    Raises ModelNotFound, BadModelFile or UnsupportedModel.
    """
    config = read_object(path / CONFIG) if path.is_dir() else None
    if config is None:
        return Checkpoint.open(path, precision)
    kind = config.get("model_type")
    known = sorted({*FOLDER_FAMILIES, *ENCODERS})
    if isinstance(kind, str) and kind not in known:
        raise UnsupportedModel(f"model_type {kind!r:.80} is not known; known: {', '.join(known)}")
    is_converted = "model_type" not in config and (path / CONVERTED).is_file()
    if is_converted or (isinstance(kind, str) and kind in ENCODERS):
        return Seq2SeqCheckpoint(open_folder(path), precision)
    return Checkpoint.open(path, precision)

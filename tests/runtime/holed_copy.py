"""A model with holes for all that one device does not read."""

from __future__ import annotations

from pathlib import Path

from planner.plan import Span
from runtime.checkpoints import Model, open_model
from runtime.compute.precision import Precision
from runtime.cut import WHOLE, Cut
from runtime.seq2seq.folder import open_folder
from runtime.seq2seq.weights import Seq2SeqCheckpoint


def holed(folder: Path, copy: Path, span: Span) -> Seq2SeqCheckpoint:
    copy.mkdir()
    checkpoint = Seq2SeqCheckpoint(open_folder(folder))
    _write(checkpoint, folder, copy, span, WHOLE)
    return Seq2SeqCheckpoint(open_folder(copy))


def holed_share(path: Path, copy: Path, span: Span, cut: Cut, precision: Precision) -> Model:
    """Of any model, a file or a folder."""
    copy.mkdir()
    checkpoint = open_model(path, precision)
    folder = path if path.is_dir() else path.parent
    _write(checkpoint, folder, copy, span, cut)
    return open_model(copy if path.is_dir() else copy / path.name, precision)


def _write(checkpoint: Model, folder: Path, copy: Path, span: Span, cut: Cut) -> None:
    for name, size_bytes in checkpoint.file.files().items():
        with (copy / name).open("wb") as file:
            file.truncate(size_bytes)
    for part in checkpoint.ranges_of(span, cut):
        with (folder / part.file).open("rb") as whole, (copy / part.file).open("r+b") as holes:
            whole.seek(part.offset)
            holes.seek(part.offset)
            holes.write(whole.read(part.size_bytes))

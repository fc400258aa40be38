"""A model's folder with holes for all that one stage does not read."""

from __future__ import annotations

from pathlib import Path

from planner.plan import Span
from runtime.seq2seq.folder import open_folder
from runtime.seq2seq.weights import Seq2SeqCheckpoint


def holed(folder: Path, copy: Path, span: Span) -> Seq2SeqCheckpoint:
    copy.mkdir()
    for source in folder.iterdir():
        if source.is_file():
            (copy / source.name).write_bytes(bytes(source.stat().st_size))
    for part in Seq2SeqCheckpoint(open_folder(folder)).ranges_of(span):
        with (folder / part.file).open("rb") as whole, (copy / part.file).open("r+b") as holes:
            whole.seek(part.offset)
            holes.seek(part.offset)
            holes.write(whole.read(part.size_bytes))
    return Seq2SeqCheckpoint(open_folder(copy))

"""Whether shares make up what they are shares of: asked by who plans, and by who is told a plan."""

from __future__ import annotations

from collections.abc import Sequence

from mesh.errors import PlanError
from planner.plan import ROW_UNITS, Share, Span, Split, Stage
from planner.profile import Cuttable, ModelProfile

CUT = (Split.HYBRID, Split.TENSOR)  # in these, heads and columns are cut


def check_shares(stage: Stage, model: ModelProfile) -> None:
    """Raises PlanError unless each head, column and row of the stage's layers is in one share, and
    each share has some of all.
    """
    layers, shares = stage.layers, stage.shares
    if not 0 <= layers.first < layers.last <= len(model.layers):
        raise PlanError(
            f"a stage has some of the model's {len(model.layers)} layers, not those from "
            f"{layers.first} up to {layers.last}; plan again"
        )
    if not shares or len({share.device for share in shares}) != len(shares):
        raise _wrong(stage, f"has {len(shares)} shares; each is of a device of its own")
    if (stage.split is Split.WHOLE) != (len(shares) == 1) or stage.tiles < 1:
        raise _wrong(
            stage, f"is split as {stage.split!s} among {len(shares)}, in {stage.tiles} tiles"
        )
    _check_rows(stage)
    if stage.split in CUT:
        _check_cut(stage, model)
    elif any(share.heads is not None or share.columns is not None for share in shares):
        raise _wrong(stage, f"cuts heads or columns, though it is split as {stage.split!s}")


def check_head(head: Sequence[Share], model: ModelProfile) -> None:
    """Raises PlanError unless each row of the vocabulary is in one share, and each share has some.

    No shares at all are fine: the last stage's lead has all rows.
    """
    if not head:
        return
    if len({share.device for share in head}) != len(head):
        raise PlanError("a share of the head is of a device of its own; plan again")
    spans = [share.vocab for share in head]
    if len(head) == 1 and spans[0] is None:
        return
    if fault := _fault(spans, model.vocabulary):
        raise PlanError(f"rows of the vocabulary: {fault}; plan again")


def _check_rows(stage: Stage) -> None:
    """The devices whose rows a plan does not say have equally many; it says all or none."""
    rows = [share.rows for share in stage.shares]
    known = sorted(
        (span for span in rows if span is not None), key=lambda span: (span.first, span.last)
    )
    if known:  # in any order: of rows alone, the lead has the last ones
        fault = _fault(known if len(known) == len(rows) else rows, ROW_UNITS, least=0)
        if fault:
            raise _wrong(stage, f"shares rows so: {fault}")


def _check_cut(stage: Stage, model: ModelProfile) -> None:
    first = model.cut_of(0)
    if first is None:
        raise _wrong(stage, f"is split as {stage.split!s}, and nobody knows how its layers are cut")
    heads = [share.heads for share in stage.shares]
    columns = [share.columns for share in stage.shares]
    for what, spans, count in (("heads", heads, first.heads), ("columns", columns, first.columns)):
        if fault := _fault(spans, count):
            raise _wrong(stage, f"shares {what} so: {fault}")
    for index in range(stage.layers.first, stage.layers.last):
        kind = model.cut_of(index) or first
        if fault := _lost(heads, first.heads, kind.heads) or _lost(
            columns, first.columns, kind.columns
        ):
            raise _wrong(stage, f"has layers with {_sizes(kind)}, of which {fault}")


def _fault(spans: Sequence[Span | None], count: int, least: int = 1) -> str | None:
    """Why these do not make up 0..count one after the other, or None."""
    end = 0
    for index, span in enumerate(spans):
        if span is None:
            return f"share {index} does not say which"
        if span.first != end or _length(span) < least:
            return f"share {index} has those from {span.first} up to {span.last}, after {end}"
        end = span.last
    return None if end == count else f"they end at {end} of {count}"


def _lost(spans: Sequence[Span | None], count: int, here: int) -> str | None:
    for index, span in enumerate(spans):
        if span is not None and not _length(span.scaled(count, here)):
            return f"share {index} would have none"
    return None


def _sizes(kind: Cuttable) -> str:
    return f"{kind.heads} heads and {kind.columns} columns"


def _wrong(stage: Stage, fault: str) -> PlanError:
    return PlanError(f"the stage of layers {stage.layers} {fault}; plan again")


def _length(span: Span) -> int:
    """Negative for a span that goes backwards, of which `len` would raise."""
    return span.last - span.first

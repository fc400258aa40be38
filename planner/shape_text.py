"""How a plan's devices share the work, as people read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mesh.ids import PeerId
from planner.plan import Share, Span, Split, Stage, Wire
from planner.profile import Cluster
from planner.words import list_text, names_text

MAX_NAMED = 4  # devices of a group; the others are counted, since a plan has to fit a message


def is_plain(stages: Sequence[Stage], head: Sequence[Share]) -> bool:
    """Whether it is one device or a pipeline of some, as it always was."""
    in_chunks = len(stages) > 1 and any(stage.tiles > 1 for stage in stages)
    return not head and not in_chunks and all(len(stage.shares) == 1 for stage in stages)


def shape_text(stages: Sequence[Stage], head: Sequence[Share], cluster: Cluster) -> str:
    """Such as "heads and columns over laptop and desktop, 6 + 10 heads, 2 tiles, fp16 on the wire".

    Without a capital, to stand within a sentence.
    """
    if all(len(stage.shares) == 1 for stage in stages):
        text = _pipeline_text(stages, cluster)
    else:
        text = "; then ".join(_stage_text(stage, cluster, many=len(stages) > 1) for stage in stages)
    if head:
        names = _names(cluster, head)
        text += f", the vocabulary over {names}, {_parts_text([share.vocab for share in head])}"
    return text


def brief_text(stages: Sequence[Stage], head: Sequence[Share], names: Mapping[PeerId, str]) -> str:
    """The same in a table, such as "laptop 0-8 > desktop + pi 9-17 10+6 heads, fp16"."""
    parts = []
    for stage in stages:
        first, last = stage.layers.first, stage.layers.last - 1
        devices = " + ".join(names.get(one.device, one.device.short) for one in stage.shares)
        words = [f"{devices} {first}-{last}" if last > first else f"{devices} {first}"]
        if stage.split is not Split.WHOLE:
            words += [_brief_cut(stage), stage.wire.value]
            if stage.tiles > 1:
                words.insert(2, f"{stage.tiles} tiles")
        parts.append(", ".join(words))
    text = " > ".join(parts)
    chunks = max((stage.tiles for stage in stages if stage.split is Split.WHOLE), default=1)
    if len(stages) > 1 and chunks > 1:
        text += f", {chunks} chunks"
    return f"{text}, vocabulary {_dense([one.vocab for one in head])} %" if head else text


def _brief_cut(stage: Stage) -> str:
    if stage.split is Split.SEQUENCE:
        return f"{_dense([share.rows for share in stage.shares])} % rows"
    counts = "+".join(str(len(share.heads or Span(0, 0))) for share in stage.shares)
    return f"{counts} heads" + (", summed up" if stage.split is Split.TENSOR else "")


def _dense(spans: Sequence[Span | None]) -> str:
    return _parts_text(spans).removesuffix(" %").replace(" ", "")


def _pipeline_text(stages: Sequence[Stage], cluster: Cluster) -> str:
    if len(stages) == 1:
        return f"all layers on {names_text(cluster, [stages[0].lead])}"
    counts = " + ".join(str(len(stage.layers)) for stage in stages)
    names = _names(cluster, [stage.shares[0] for stage in stages])
    text = f"{counts} layers on {names}"
    chunks = max(stage.tiles for stage in stages)
    return f"{text}, prompts in {chunks} chunks" if chunks > 1 else text


def _stage_text(stage: Stage, cluster: Cluster, *, many: bool) -> str:
    names = _names(cluster, stage.shares)
    of_layers = f" of layers {stage.layers}" if many else ""
    if len(stage.shares) == 1:
        return f"layers {stage.layers} on {names}"
    match stage.split:
        case Split.SEQUENCE:
            parts = [f"rows{of_layers} over {names}", _parts_text([s.rows for s in stage.shares])]
        case Split.TENSOR:
            parts = [f"heads and columns{of_layers} over {names}, summed up by all"]
            parts.append(_heads_text(stage.shares))
        case _:
            parts = [f"heads and columns{of_layers} over {names}", _heads_text(stage.shares)]
    if stage.tiles > 1:
        parts.append(f"{stage.tiles} tiles")
    if stage.wire is not Wire.FP32:
        parts.append(f"{stage.wire} on the wire")
    return ", ".join(part for part in parts if part)


def _names(cluster: Cluster, shares: Sequence[Share]) -> str:
    """Such as "laptop, desktop, pi and 3 more"."""
    names = [cluster.name_of(share.device) for share in shares]
    if len(names) > MAX_NAMED:
        names = [*names[: MAX_NAMED - 1], f"{len(names) - MAX_NAMED + 1} more"]
    return list_text(names)


def _heads_text(shares: Sequence[Share]) -> str:
    counts = [len(share.heads) for share in shares if share.heads is not None]
    return " + ".join(map(str, counts)) + " heads" if counts else ""


def _parts_text(spans: Sequence[Span | None]) -> str:
    """Such as "60 + 40 %"."""
    counts = [len(span) for span in spans if span is not None]
    total = max(1, sum(counts))
    return " + ".join(f"{100 * count / total:.0f}" for count in counts) + " %"

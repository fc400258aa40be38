"""A stage of whatever model it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.plan import Span
from runtime.checkpoints import Model
from runtime.post import Computing
from runtime.stage import Stage
from runtime.weights import Checkpoint


def stage_of(model: Model, span: Span, layers: Mapping[int, Any], head: Any) -> Computing:
    """A stage of what `load_layer` and `load_head` of that very model returned; `head` is None but
    where the span ends the model.
    """
    if isinstance(model, Checkpoint):
        return Stage(model, span, layers, head)
    from runtime.seq2seq.stage import Seq2SeqStage  # most devices run decoders only

    return Seq2SeqStage(model, span, layers, head)

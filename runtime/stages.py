"""A stage of whatever model it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from planner.plan import Span
from runtime.checkpoints import Model
from runtime.compute.torch_device import CPU
from runtime.post import Computing
from runtime.stage import Stage
from runtime.weights import Checkpoint


def stage_of(
    model: Model, span: Span, layers: Mapping[int, Any], head: Any, device: torch.device = CPU
) -> Computing:
    """A stage of what `load_layer` and `load_head` of that very model returned; `head` is None but
    where the span ends the model. All are on `device`.
    """
    if isinstance(model, Checkpoint):
        return Stage(model, span, layers, head, device)
    from runtime.seq2seq.stage import Seq2SeqStage  # most devices run decoders only

    return Seq2SeqStage(model, span, layers, head, device)

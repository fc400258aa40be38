"""The planner's figures for memory against what the runtime really takes."""

from __future__ import annotations

import pytest
import torch

from planner.memory import KV_SLACK_TOKENS, layer_bytes
from planner.plan import Capacity, Span
from runtime.kv_cache import SessionCache
from runtime.turns import MAX_STEP_ROWS
from runtime.weights import Checkpoint


@pytest.mark.parametrize("tokens", [1, 300, 512, 513, 1500, 4096])
def test_caches_never_take_more_than_was_planned(gemma: Checkpoint, tokens: int) -> None:
    spec, profile = gemma.spec, gemma.profile()
    cache = SessionCache(spec, Span(0, len(spec.layers)), context=4096)
    step = torch.zeros(spec.kv_heads, MAX_STEP_ROWS, spec.head_dim)
    for layer in cache.layers:
        for first in range(0, tokens, MAX_STEP_ROWS):
            part = step[:, : min(MAX_STEP_ROWS, tokens - first)]
            layer.append(first, part, part)
    planned = sum(
        layer_bytes(layer, Capacity(1, 4096)) - layer.weight_bytes for layer in profile.layers
    )
    assert cache.size_bytes <= planned


def test_the_slack_is_what_a_windowed_cache_keeps_beside_its_window(gemma: Checkpoint) -> None:
    spec = gemma.spec
    window = spec.layers[0].window
    assert window is not None
    cache = SessionCache(spec, Span(0, 1), context=spec.context).layers[0]
    step = torch.zeros(spec.kv_heads, MAX_STEP_ROWS, spec.head_dim)
    largest = 0
    for first in range(0, 8 * MAX_STEP_ROWS, MAX_STEP_ROWS):
        cache.append(first, step, step)
        largest = max(largest, cache.size_bytes // spec.kv_bytes_per_token)
    assert window < largest <= window + KV_SLACK_TOKENS

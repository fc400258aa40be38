"""Caches: what a token sees is what it would see if nothing were ever dropped or taken back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import GenerationFailed
from planner.plan import Span
from runtime.kv_cache import GROWTH_TOKENS, REWIND_TOKENS, LayerCache, SessionCache
from tests.runtime.whole_model import WholeModel

KV_HEADS, HEAD_DIM = 2, 4


def rows(position: int, count: int, version: int = 0) -> torch.Tensor:
    """[K, S, D] that tell each position, and each time it was computed, from all others."""
    numbers = torch.arange(position, position + count, dtype=torch.float32) + version / 1000
    return numbers[None, :, None].expand(KV_HEADS, count, HEAD_DIM).contiguous()


def make(window: int | None, context: int = 10_000) -> LayerCache:
    return LayerCache(KV_HEADS, HEAD_DIM, window, context)


def fill(cache: LayerCache, end: int, step: int = 1) -> None:
    for position in range(cache.end, end, step):
        count = min(step, end - position)
        cache.append(position, rows(position, count), -rows(position, count))


@pytest.mark.parametrize("window", [None, 1, 8, 300])
@given(steps=st.lists(st.tuples(st.integers(1, 700), st.integers(0, 700)), max_size=12))
@settings(deadline=None, max_examples=50)
def test_sees_what_it_would_see_if_nothing_were_dropped(
    window: int | None, steps: list[tuple[int, int]]
) -> None:
    """Steps of any length, each after going back as far as is promised, or less."""
    cache = make(window, context=20_000)
    held = torch.empty(0)
    furthest = last_start = 0
    for version, (count, back) in enumerate(steps):
        reach = max(0, min(furthest - REWIND_TOKENS, last_start))
        position = max(min(reach, cache.end), cache.end - back)
        cache.truncate(position)
        new = rows(position, count, version)
        held = torch.cat([held[:position], new[0, :, 0]])
        keys, values, first = cache.append(position, new, -new)
        assert first == (0 if window is None else max(0, position - window + 1))
        assert keys.shape == (KV_HEADS, position + count - first, HEAD_DIM)
        assert torch.equal(keys[1, :, 3], held[first:])
        assert torch.equal(values[0, :, 0], -held[first:])
        furthest, last_start = max(furthest, cache.end), position


def test_a_windowed_layer_stops_growing() -> None:
    cache = make(window=512, context=32_768)
    most = 0
    for position in range(0, 3000):
        cache.append(position, rows(position, 1), rows(position, 1))
        most = max(most, cache.size_bytes)
    token_bytes = 2 * KV_HEADS * HEAD_DIM * 4
    assert most <= (512 + REWIND_TOKENS + GROWTH_TOKENS) * token_bytes
    fill(cache, 9000, step=512)
    assert cache.size_bytes <= (512 + REWIND_TOKENS + GROWTH_TOKENS) * token_bytes


def test_a_full_layer_grows_up_to_the_context() -> None:
    cache = make(None, context=600)
    assert cache.size_bytes == 0
    fill(cache, 1)
    token_bytes = 2 * KV_HEADS * HEAD_DIM * 4
    assert cache.size_bytes == GROWTH_TOKENS * token_bytes
    fill(cache, 600)
    assert cache.size_bytes == 600 * token_bytes
    with pytest.raises(GenerationFailed, match="context of 600 tokens is full"):
        cache.append(600, rows(600, 1), rows(600, 1))


def test_goes_back_as_far_as_promised_and_no_further() -> None:
    cache = make(window=8)
    fill(cache, 5000)
    cache.truncate(5000 - REWIND_TOKENS)
    assert cache.end == 5000 - REWIND_TOKENS
    fill(cache, 5000)
    with pytest.raises(GenerationFailed, match="replay the session"):
        cache.truncate(1000)
    assert cache.end == 5000  # and nothing is lost
    cache.truncate(5001)
    assert cache.end == 5000


def test_a_step_longer_than_the_slack_can_be_taken_back() -> None:
    cache = make(window=8)
    fill(cache, 3000)
    fill(cache, 3000 + 3 * REWIND_TOKENS, step=3 * REWIND_TOKENS)
    cache.truncate(3000)
    keys, _, first = cache.append(3000, rows(3000, 1), rows(3000, 1))
    assert (first, keys.shape[1]) == (2993, 8)


def test_a_gap_is_refused() -> None:
    cache = make(None)
    fill(cache, 3)
    with pytest.raises(GenerationFailed, match="position 3, got 5"):
        cache.append(5, rows(5, 1), rows(5, 1))
    with pytest.raises(GenerationFailed, match="position 3, got 2"):
        cache.append(2, rows(2, 1), rows(2, 1))


def test_a_session_cache_is_its_layers(tiny: WholeModel) -> None:
    cache = SessionCache(tiny.spec, Span(1, 4), context=64)
    assert [layer.window for layer in cache.layers] == [None, 8, None]
    assert cache.size_bytes == 0
    for layer in cache.layers:
        layer.append(0, torch.zeros(1, 5, 16), torch.zeros(1, 5, 16))
    assert cache.size_bytes == sum(layer.size_bytes for layer in cache.layers) == 3 * 64 * 16 * 8
    cache.truncate(2)
    assert [layer.end for layer in cache.layers] == [2, 2, 2]


def test_a_step_sent_twice_gives_the_same_answer(tiny: WholeModel) -> None:
    tokens = [2, *range(266, 306)]
    cache = tiny.new_cache()
    tiny.prefill(tokens, cache)
    once = tiny.logits([300], len(tokens), cache)
    cache.truncate(len(tokens))
    assert torch.equal(tiny.logits([300], len(tokens), cache), once)
    cache.truncate(20)
    again = tiny.prefill(tokens, tiny.new_cache())
    assert torch.allclose(tiny.logits(tokens[20:], 20, cache), again, atol=1e-5)

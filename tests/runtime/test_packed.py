"""Packed weights give what plain ones give, with any rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.compute import packed
from runtime.compute.packed import can_pack, pack, product


@pytest.mark.skipif(not can_pack(), reason="this torch, or this processor, packs no weights")
@settings(deadline=None)
@given(st.integers(0, 70), st.integers(1, 70), st.integers(1, 70), st.booleans())
def test_the_same_as_with_plain_weights(
    count: int, rows: int, columns: int, is_biased: bool
) -> None:
    torch.manual_seed(count)
    weight, x = torch.randn(rows, columns), torch.randn(count, columns)
    bias = torch.randn(rows) if is_biased else None
    made = pack(weight)
    assert made.is_mkldnn
    assert made.nbytes == weight.nbytes, "the planner counts four bytes a weight"
    assert torch.equal(made.to_dense(), weight)
    torch.testing.assert_close(product(x, made, bias), product(x, weight, bias))


def test_where_it_cannot_be_done_weights_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "can_pack", lambda: False)
    weight, x = torch.randn(3, 4), torch.randn(2, 4)
    assert pack(weight) is weight
    assert torch.equal(product(x, weight), x @ weight.T)

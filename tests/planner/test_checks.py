"""Shares that do not make up their stage, whoever planned them, and what is said of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import PlanError
from mesh.ids import ModelId, PeerId
from planner.checks import check_head, check_shares
from planner.plan import ROW_UNITS, Share, Span, Split, Stage
from planner.profile import Cuttable, LayerProfile, ModelProfile

HEADS, COLUMNS, VOCABULARY = 6, 100, 1000
LAYERS = Span(0, 3)
WIDE = Cuttable(HEADS, 3, 64, COLUMNS, 256, 32, 10, 6, 40, 2, 32, 7)
NARROW = replace(WIDE, heads=2, kv_heads=2, columns=40)


def peer(number: int) -> PeerId:
    return PeerId(f"{number:064x}")


def model(*kinds: int) -> ModelProfile:
    layers = tuple(LayerProfile(1, 1, None, cut=kind) for kind in kinds)
    return ModelProfile(
        ModelId("a" * 64), "toy", layers, 10, 64, VOCABULARY, 100, cuts=(WIDE, NARROW)
    )


MODEL = model(0, 0, 0)


def stage(heads: list[int], columns: list[int], layers: Span = LAYERS) -> Stage:
    """Cut at these marks."""
    pairs = zip(_spans(heads), _spans(columns), strict=True)
    shares = tuple(Share(peer(n), heads=h, columns=c) for n, (h, c) in enumerate(pairs))
    return Stage(layers, shares, Split.HYBRID)


def _spans(marks: list[int]) -> list[Span]:
    return [Span(first, last) for first, last in zip(marks, marks[1:], strict=False)]


def marks(count: int, shares: int) -> st.SearchStrategy[list[int]]:
    inner = st.sets(st.integers(1, count - 1), min_size=shares - 1, max_size=shares - 1)
    return inner.map(lambda found: [0, *sorted(found), count])


@given(st.data())
def test_shares_that_make_up_their_stage_pass(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, HEADS))
    made = stage(data.draw(marks(HEADS, count)), data.draw(marks(COLUMNS, count)))
    rows = [n * ROW_UNITS // count for n in range(count + 1)]
    shares = zip(made.shares, _spans(rows), strict=True)
    with_rows = tuple(replace(share, rows=span) for share, span in shares)
    for split in (Split.HYBRID, Split.TENSOR):
        check_shares(replace(made, split=split), MODEL)
        check_shares(replace(made, split=split, shares=with_rows), MODEL)
    check_shares(Stage(Span(0, 3), (Share(peer(0)),)), MODEL)
    whole = tuple(Share(share.device, rows=share.rows) for share in with_rows)
    check_shares(Stage(Span(0, 3), whole, Split.SEQUENCE), MODEL)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (stage([0, 3, 5], [0, 50, 100]), "shares heads so: they end at 5 of 6"),
        (stage([0, 3, 7], [0, 50, 100]), "shares heads so: they end at 7 of 6"),
        (stage([0, 3, 3, 6], [0, 50, 60, 100]), "share 1 has those from 3 up to 3, after 3"),
        (stage([0, 4, 2, 6], [0, 50, 60, 100]), "share 1 has those from 4 up to 2, after 4"),
        (
            stage([0, 3, 6], [0, 100, 100]),
            "shares columns so: share 1 has those from 100 up to 100",
        ),
        (stage([1, 3, 6], [0, 50, 100]), "share 0 has those from 1 up to 3, after 0"),
        (stage([-1, 3, 6], [0, 50, 100]), "share 0 has those from -1 up to 3, after 0"),
        (stage([0, 3, 6], [0, 50, 100], Span(1, 9)), "the model's 3 layers, not those from 1 up"),
        (stage([0, 3, 6], [0, 50, 100], Span(2, 2)), "the model's 3 layers, not those from 2 up"),
        (stage([0, 3, 6], [0, 50, 100], Span(-1, 2)), "not those from -1 up to 2"),
        (Stage(Span(0, 3), ()), "has 0 shares"),
        (Stage(Span(0, 3), (Share(peer(1)), Share(peer(1)))), "each is of a device of its own"),
        (Stage(Span(0, 3), (Share(peer(1)), Share(peer(2)))), "split as whole among 2"),
        (replace(stage([0, 3, 6], [0, 50, 100]), tiles=0), "among 2, in 0 tiles"),
        (replace(stage([0, 3, 6], [0, 50, 100]), split=Split.SEQUENCE), "cuts heads or columns"),
        (Stage(Span(0, 3), (Share(peer(1)), Share(peer(2))), Split.TENSOR), "does not say which"),
        (
            Stage(
                Span(0, 3),
                (Share(peer(1), rows=Span(0, 500)), Share(peer(2), rows=Span(500, 1000))),
                Split.SEQUENCE,
            ),
            f"shares rows so: they end at 1000 of {ROW_UNITS}",
        ),
        (
            Stage(
                Span(0, 3),
                (Share(peer(1), rows=Span(0, ROW_UNITS)), Share(peer(2))),
                Split.SEQUENCE,
            ),
            "shares rows so: share 1 does not say which",
        ),
    ],
)
def test_shares_that_do_not_are_named(wrong: Stage, text: str) -> None:
    with pytest.raises(PlanError, match=text):
        check_shares(wrong, MODEL)


def test_a_stack_with_fewer_heads_has_some_for_each() -> None:
    """A BART may have 6 heads in its encoder and 2 in its decoder."""
    both = model(0, 0, 1)
    check_shares(stage([0, 3, 6], [0, 30, 100]), both)
    with pytest.raises(PlanError, match="2 heads and 40 columns, of which share 0 would have none"):
        check_shares(stage([0, 1, 6], [0, 30, 100]), both)
    check_shares(stage([0, 1, 6], [0, 30, 100], Span(0, 2)), both)


def test_a_model_of_which_nobody_knows_how_it_is_cut_is_held_whole() -> None:
    unknown = replace(MODEL, cuts=())
    check_shares(Stage(Span(0, 3), (Share(peer(0)),)), unknown)
    with pytest.raises(PlanError, match="nobody knows how its layers are cut"):
        check_shares(stage([0, 3, 6], [0, 50, 100]), unknown)


@pytest.mark.parametrize(
    ("spans", "text"),
    [
        ([Span(0, 500), Span(500, 999)], "they end at 999 of 1000"),
        ([Span(0, 500), Span(501, 1000)], "share 1 has those from 501 up to 1000, after 500"),
        ([Span(0, 1000), Span(1000, 1000)], "share 1 has those from 1000 up to 1000"),
        ([Span(0, 500), None], "share 1 does not say which"),
    ],
)
def test_rows_of_the_vocabulary_that_are_nobodys(spans: list[Span | None], text: str) -> None:
    head = tuple(Share(peer(n), vocab=span) for n, span in enumerate(spans))
    with pytest.raises(PlanError, match=f"rows of the vocabulary: {text}"):
        check_head(head, MODEL)


def test_a_head_that_is_whole_or_cut_once_passes() -> None:
    check_head((), MODEL)
    check_head((Share(peer(0)),), MODEL)
    check_head((Share(peer(0), vocab=Span(0, 9)), Share(peer(1), vocab=Span(9, 1000))), MODEL)
    twice = (Share(peer(0), vocab=Span(0, 9)), Share(peer(0), vocab=Span(9, 1000)))
    with pytest.raises(PlanError, match="a device of its own"):
        check_head(twice, MODEL)


@given(st.integers(1, 64), st.integers(1, 300), st.data())
def test_neighbours_stay_neighbours_in_a_layer_of_another_size(
    count: int, to: int, data: st.DataObject
) -> None:
    mark = data.draw(st.integers(0, count))
    left, right = (span.scaled(count, to) for span in (Span(0, mark), Span(mark, count)))
    assert (left.first, left.last, right.last) == (0, right.first, to)
    assert Span(0, mark).scaled(count, count) == Span(0, mark)

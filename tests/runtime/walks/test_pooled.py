"""However a stage that ends an encoder is shared, its vector is that of one device, and each other
device sends one row for it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from planner.plan import ROW_UNITS, Span, Split, Wire
from runtime.cut import WHOLE, Cut, cut_of
from runtime.formats.safetensors_folder import POOLING
from runtime.sampling import Sampling
from runtime.seq2seq.folder import open_folder
from runtime.seq2seq.pooling import Pooling, PoolingKind
from runtime.seq2seq.reader import column
from runtime.seq2seq.stage import Seq2SeqStage
from runtime.seq2seq.weights import Seq2SeqCheckpoint
from runtime.stage import Slice
from runtime.walks import numbers
from runtime.walks.collect import collect
from runtime.walks.rows import owners_of, tiles_of
from runtime.walks.shared import Shared
from runtime.walks.turn import PASS_NUMBERS, Piece, TurnExchange
from runtime.walks.wanted import of_all

pytest.importorskip("transformers")
from tests.runtime.chain import Chain
from tests.runtime.random_encoders import VOCABULARY, write_random
from tests.runtime.room import peer
from tests.runtime.walks.plans import group, grouped
from tests.runtime.walks.together import exchanges, session, together

LONG = torch.randint(3, VOCABULARY, (45,), generator=torch.Generator().manual_seed(3)).tolist()
KINDS = [
    *(Pooling(kind, normalised=False) for kind in PoolingKind),
    Pooling(PoolingKind.MEAN, normalised=True),
]
PARTS = [(1, 1), (1, 2, 4), (1000, 1, 1), (1, 1000, 1), (2, 1, 1, 3)]  # some without any rows


def close(found: Tensor | None, expected: Tensor) -> bool:
    """Within 1e-5, relatively."""
    assert found is not None
    apart = float((found - expected).abs().max())
    return found.shape == expected.shape and apart <= 1e-5 * float(expected.abs().max())


def watched(ends: Sequence[TurnExchange]) -> list[tuple[int, Piece]]:
    """Fills with the pieces of each device that belong to the end of a pass."""
    sent: list[tuple[int, Piece]] = []
    for end in ends:

        def post(pieces: Sequence[Piece], me: int = end.me, through=end.post) -> None:
            ended = [one for one in pieces if one.number % PASS_NUMBERS == numbers.COLLECTED]
            sent.extend((me, one) for one in ended)
            through(pieces)

        end.post = post
    return sent


# --- the end alone ------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(1, 30),
    st.lists(st.integers(0, ROW_UNITS), min_size=1, max_size=3),
    st.integers(1, 3),
    st.booleans(),
)
def test_the_end_is_that_of_all_rows(
    pooling: Pooling, rows: int, marks: list[int], tiles: int, everywhere: bool
) -> None:
    units = [Span(*pair) for pair in pairwise([0, *sorted(marks), ROW_UNITS])]
    cut = [owners_of(tile, units) for tile in tiles_of(rows, tiles)]
    owned = [list(of) for of in zip(*cut, strict=True)]  # by device
    hidden = torch.randn(rows, 8, generator=torch.Generator().manual_seed(rows)) + 1
    own = [torch.cat([hidden[span.first : span.last] for span in spans]) for spans in owned]
    ends = exchanges(len(units))
    for end in ends:
        end.start_pass()
    sent = watched(ends)
    found = together(
        [
            partial(collect, end, mine, owned, pooling.wanted, everywhere=everywhere)
            for end, mine in zip(ends, own, strict=True)
        ]
    )
    expected = of_all(hidden, pooling.wanted)
    assert expected.shape == (1, 8)
    for one, vector in enumerate(found):
        assert close(vector, expected) if everywhere or not one else vector is None
    assert all(len(piece.rows) == 1 and len(own[origin]) for origin, piece in sent)
    routes = [(origin, piece.to) for origin, piece in sent]
    assert len(routes) == len(set(routes))


# --- whole walks --------------------------------------------------------------------------------


@cache
def encoder_of(pooling: Pooling) -> Seq2SeqCheckpoint:
    folder = Path(mkdtemp()) / "model"
    write_random("bert", folder)
    modules = [{"type": "x.Pooling", "path": "1_Pooling"}]
    modules += [{"type": "x.Normalize", "path": "2"}] if pooling.normalised else []
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / POOLING).parent.mkdir()
    (folder / POOLING).write_text(json.dumps({"pooling_mode": pooling.kind}))
    return Seq2SeqCheckpoint(open_folder(folder))


def stage_of(checkpoint: Seq2SeqCheckpoint, cut: Cut, *, leads: bool) -> Seq2SeqStage:
    span = Span(0, checkpoint.spec.layers)
    sections = {index: checkpoint.load_layer(index, cut=cut) for index in range(span.last)}
    stage = Seq2SeqStage(checkpoint, span, sections, checkpoint.load_head() if leads else None)
    stage.open(session(1), Sampling(), checkpoint.spec.context)
    return stage


@pytest.mark.parametrize("parts", PARTS, ids=str)
@pytest.mark.parametrize(
    ("split", "tiles"),
    [
        (Split.HYBRID, 1),
        (Split.HYBRID, 3),
        (Split.TENSOR, 1),
        (Split.SEQUENCE, 1),
        (Split.SEQUENCE, 2),
    ],
)
@pytest.mark.parametrize("pooling", KINDS, ids=lambda one: f"{one.kind}-{one.normalised}")
def test_a_vector_is_that_of_one_device(
    pooling: Pooling, split: Split, tiles: int, parts: tuple[int, ...]
) -> None:
    checkpoint = encoder_of(pooling)
    spec, count = checkpoint.spec, len(parts)
    shared = group(
        Span(0, spec.layers),
        tuple(range(count)),
        split,
        heads=spec.encoder.heads,
        columns=spec.encoder.ffn_size,
        parts=parts,
        tiles=tiles,
    )
    plan = grouped(checkpoint, shared)
    stages = [
        stage_of(checkpoint, cut_of(plan, peer(one)).of_layers, leads=not one)
        for one in range(count)
    ]
    ends = exchanges(count, Wire.FP32)
    sent = watched(ends)
    asked = Slice(session(1), 0, column(LONG), choose=True, is_source=True)
    found = together(
        [
            partial(stage.turn, [asked], Shared(shared, end))
            for stage, end in zip(stages, ends, strict=True)
        ]
    )
    assert found[1:] == [[None]] * (count - 1)
    assert close(found[0][0], Chain.of(checkpoint).vector(column(LONG)))
    assert all((piece.to, len(piece.rows)) == (0, 1) for _, piece in sent)
    assert len({origin for origin, _ in sent}) == len(sent)
    if split is not Split.TENSOR and pooling.kind is not PoolingKind.FIRST and sum(parts) < 10:
        assert len(sent) == count - 1


def test_rows_of_which_nobody_asks_one_stay_whole() -> None:
    """Stages before the last send on what they have, and `encode` by itself tells all rows."""
    checkpoint = encoder_of(KINDS[0])
    stage = stage_of(checkpoint, WHOLE, leads=True)
    with torch.inference_mode():
        assert len(stage.encode(column(LONG))) == len(LONG)

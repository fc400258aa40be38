"""What a device keeps when the next plan cuts a model's layers elsewhere."""

from __future__ import annotations

from dataclasses import replace
from typing import NoReturn

import pytest

from mesh.errors import PlanError
from mesh.ids import Epoch, ModelId, PeerId, PlanId
from planner.plan import Capacity, Job, Plan, Prediction, Share, Span, Split, Stage
from runtime.cut import WHOLE, Cut, cut_of
from runtime.holdings import Holdings
from runtime.worker import Worker
from tests.runtime.whole_model import WholeModel

LAYERS = Span(0, 4)
LEFT = Cut(Span(0, 2), Span(0, 96), vocab=Span(0, 100))
RIGHT = Cut(Span(2, 4), Span(96, 128), closing_bias=False, vocab=Span(0, 0))


def never() -> NoReturn:
    pytest.fail("there is room")


async def test_another_cut_of_the_same_model_reloads_what_differs(tiny: WholeModel) -> None:
    worker, model = Worker(1), tiny.checkpoint
    holdings = Holdings(worker, 1 << 30)
    await holdings.load(model, LAYERS, 0, never, LEFT)
    held = holdings.models[model.model_id]
    before = dict(held.blocks)
    left_bytes = held.size_bytes
    assert 0 < left_bytes < sum(layer.weight_bytes for layer in held.profile.layers)
    # The same share, with other rows of the head: no layer comes anew.
    more = replace(LEFT, vocab=Span(0, 200))
    await holdings.load(model, LAYERS, 0, never, more)
    assert held.blocks == before
    assert set(held.heads) == {Span(0, 100), Span(0, 200)}
    # While both plans are there, so are both cuts.
    await holdings.load(model, Span(1, 4), 0, never, RIGHT)
    assert set(held.blocks) == before.keys() | {(i, RIGHT.of_layers) for i in (1, 2, 3)}
    holdings.release(model.model_id, Span(1, 4), RIGHT)
    assert set(held.blocks) == {(i, RIGHT.of_layers) for i in (1, 2, 3)}
    assert not held.heads, "the head is others'"
    assert held.layers == (1, 2, 3)
    worker.close()


async def test_the_old_cut_makes_room_where_both_do_not_fit(tiny: WholeModel) -> None:
    worker, model = Worker(1), tiny.checkpoint
    profile = model.profile()
    layers_bytes = sum(layer.weight_bytes for layer in profile.layers)
    holdings = Holdings(worker, layers_bytes + profile.head_bytes)
    await holdings.load(model, LAYERS, 0, never)
    asked = []
    await holdings.load(model, LAYERS, 0, lambda: asked.append(1), LEFT)
    assert asked == [1]
    held = holdings.models[model.model_id]
    assert set(held.blocks) == {(index, LEFT.of_layers) for index in range(4)}
    assert holdings.size_bytes < layers_bytes
    worker.close()


async def test_a_share_of_nothing_changes_nothing(tiny: WholeModel) -> None:
    worker, model = Worker(1), tiny.checkpoint
    holdings = Holdings(worker, 1 << 30)
    await holdings.load(model, LAYERS, 0, never)
    before = holdings.size_bytes
    with pytest.raises(PlanError, match="a share has at least one of the 4 heads"):
        await holdings.load(model, LAYERS, 0, never, Cut(Span(4, 5), Span(0, 1)))
    assert holdings.size_bytes == before
    worker.close()


async def test_a_device_with_rows_of_the_head_alone_holds_just_these(tiny: WholeModel) -> None:
    worker, model = Worker(1), tiny.checkpoint
    holdings = Holdings(worker, 1 << 30)
    await holdings.load(model, Span(0, 0), 0, never, Cut(vocab=Span(5, 60)))
    held = holdings.models[model.model_id]
    assert (held.layers, held.has_head) == ((), True)
    assert held.heads[Span(5, 60)].output.rows == 55
    worker.close()


# --- from a plan ----------------------------------------------------------------------------------


def peer(number: int) -> PeerId:
    return PeerId(f"{number:064x}")


def plan(*stages: Stage, head: tuple[Share, ...] = ()) -> Plan:
    return Plan(
        Epoch(1, peer(0)),
        PlanId.new(),
        ModelId("a" * 64),
        "toy",
        Job.RUN,
        stages,
        Capacity(1, 10),
        "",
        Prediction(1.0, 1.0, 1, ()),
        head,
    )


CUT_STAGE = Stage(
    Span(2, 4),
    (
        Share(peer(1), Span(0, 3), Span(0, 50), rows=Span(0, 512)),
        Share(peer(2), Span(3, 4), Span(50, 100), rows=Span(512, 1024)),
    ),
    Split.HYBRID,
)
PIPELINE = Stage(Span(0, 2), (Share(peer(0)),))


def test_one_share_adds_the_biases_and_its_device_has_the_head() -> None:
    made = plan(PIPELINE, CUT_STAGE)
    assert cut_of(made, peer(0)) == replace(WHOLE, vocab=Span(0, 0))
    assert cut_of(made, peer(1)) == Cut(Span(0, 3), Span(0, 50))
    assert cut_of(made, peer(2)) == Cut(
        Span(3, 4), Span(50, 100), closing_bias=False, vocab=Span(0, 0)
    )


def test_devices_that_share_rows_alone_have_all_weights_and_biases() -> None:
    shares = (Share(peer(1), rows=Span(0, 1)), Share(peer(2), rows=Span(1, 1024)))
    made = plan(Stage(Span(0, 4), shares, Split.SEQUENCE))
    assert cut_of(made, peer(1)) == WHOLE
    assert cut_of(made, peer(2)).of_layers == WHOLE


def test_rows_of_the_vocabulary_lie_where_the_plan_says() -> None:
    head = (Share(peer(2), vocab=Span(0, 30)), Share(peer(5), vocab=Span(30, 90)))
    made = plan(PIPELINE, CUT_STAGE, head=head)
    assert cut_of(made, peer(2)).vocab == Span(0, 30)
    assert cut_of(made, peer(5)) == Cut(vocab=Span(30, 90))
    assert not cut_of(made, peer(1)).has_head(ends=True)

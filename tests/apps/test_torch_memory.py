"""Weights that take more room on an accelerator than plans, made for processors, count for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from apps.planning.profiles import Profiles
from apps.settings import MEMORY_SHARE, usable_memory_bytes
from mesh.errors import PlanError
from planner.memory import held_bytes
from planner.plan import Capacity, Span
from runtime.compute.precision import Precision
from runtime.holdings import Holdings
from runtime.weights import Checkpoint
from runtime.worker import Worker
from tests.apps.desk import LAYERS, Desk, planned, tiny_checkpoints, wish_for
from tests.runtime.one_device import META

ALL, NO_CACHES = Span(0, LAYERS), Capacity(0, 0)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Checkpoint]:
    return tiny_checkpoints(tmp_path_factory.mktemp("models"), 2)


def extra_bytes(model: Checkpoint) -> int:
    """What its weights weigh more there than on a processor."""
    here, planned_for = model.profile(META), model.profile()
    return held_bytes(here, ALL, NO_CACHES) - held_bytes(planned_for, ALL, NO_CACHES)


@pytest.mark.parametrize("short", [False, True], ids=["enough", "a byte short"])
async def test_a_plan_that_fits_a_processor_alone_is_refused(
    models: list[Checkpoint], short: bool
) -> None:
    plan = planned(models[0], 1)
    needed = dict(plan.predicted.memory_bytes)[plan.stages[0].lead]
    memory_bytes = needed + extra_bytes(models[0]) - short
    with Desk.of(models, memory_bytes=memory_bytes) as desk:
        desk.holdings.device = META
        if short:
            with pytest.raises(PlanError, match="MB may be used"):
                await desk.prepare(plan, wish_for(models[0], plan))
            assert desk.holdings.size_bytes == 0
        else:
            await desk.prepare(plan, wish_for(models[0], plan))
            assert desk.holdings.size_bytes == held_bytes(models[0].profile(META), ALL, NO_CACHES)


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP32])
def test_memory_is_offered_as_plans_count(models: list[Checkpoint], precision: Precision) -> None:
    model, worker = models[0].at(precision), Worker(1)
    profiles = Profiles(
        node=cast(Any, None),
        links=cast(Any, None),
        library=cast(Any, None),
        worker=worker,
        folder=Path(),
        name="",
        threads=1,
        holdings=Holdings(worker, held_bytes(model.profile(META), ALL, NO_CACHES), META),
    )
    # As much as holds the model exactly holds it exactly, whatever a weight weighs.
    planned_bytes = held_bytes(model.profile(), ALL, NO_CACHES)
    assert profiles._memory_for(model) == planned_bytes
    assert (extra_bytes(model) == 0) == (precision is Precision.FP32)
    worker.close()


def test_an_accelerators_own_memory_is_the_limit() -> None:
    assert usable_memory_bytes(8 << 30) == int((8 << 30) * MEMORY_SHARE)

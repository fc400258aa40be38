"""The cost model, against sums done by hand."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from mesh.errors import PlanError
from planner.cost import fits, network_s, objective_s, predict
from planner.memory import KV_SLACK_TOKENS, layer_bytes
from planner.network import FRAME_OVERHEAD_BYTES, hidden_bytes
from planner.plan import Capacity
from planner.profile import Cluster, LayerProfile, LinkProfile
from planner.request import EXPECTED_NEW_TOKENS, PREFILL_TOKENS, Request
from tests.planner.homes import MB, device, gemma, lan, model, peer, pipeline

ONE = Capacity(1, 1000)


def test_one_device_takes_its_layers_and_its_head_and_no_wire() -> None:
    laptop = device(0, layer_s=2e-3, head_s=7e-3, scratch_bytes=3 * MB)
    predicted = predict(pipeline((laptop, 0, 6)), lan(laptop), model(), ONE)
    assert predicted.decode_s == pytest.approx(6 * 2e-3 + 7e-3)
    assert predicted.prefill_s == pytest.approx(6 * 80e-3 + 7e-3)  # the head: one token only
    assert predicted.wire_bytes_per_token == 0
    assert predicted.memory_bytes == ((peer(0), 60 * MB + 20 * MB + 6 * 1000 * 1000 + 3 * MB),)


def test_two_devices_add_a_hop_there_and_the_token_back() -> None:
    laptop, pi = device(0, layer_s=1e-3), device(1, layer_s=4e-3, head_s=9e-3)
    links = (
        LinkProfile(peer(0), peer(1), 4e-3, 1e6),
        LinkProfile(peer(1), peer(0), 10e-3, 1e5),  # the way back is slower
    )
    predicted = predict(
        pipeline((laptop, 0, 4), (pi, 4, 6)), Cluster((laptop, pi), links), model(), ONE
    )
    row_bytes = 640 * 4
    there_s, back_s = 2e-3 + (row_bytes + 150) / 1e6, 5e-3 + 154 / 1e5
    assert predicted.decode_s == pytest.approx(4e-3 + 8e-3 + 9e-3 + there_s + back_s)
    page_s = 2e-3 + (512 * row_bytes + 6 * 150) / 1e6  # 102 rows a frame
    assert predicted.prefill_s == pytest.approx(40 * 12e-3 + 9e-3 + page_s + back_s)
    assert predicted.wire_bytes_per_token == row_bytes + 150 + 154
    assert dict(predicted.memory_bytes) == {
        peer(0): 4 * (10 * MB + 10**6),
        peer(1): 2 * (10 * MB + 10**6) + 20 * MB,
    }


def test_the_objective_weighs_a_prompt_and_its_answer() -> None:
    laptop = device(0)
    predicted = predict(pipeline((laptop, 0, 6)), lan(laptop), model(), ONE)
    assert objective_s(predicted, Request()) == pytest.approx(
        predicted.prefill_s + EXPECTED_NEW_TOKENS * predicted.decode_s
    )


@pytest.mark.parametrize(
    ("window", "context", "tokens"),
    [
        (None, 32_768, 32_768),
        (512, 32_768, 512 + KV_SLACK_TOKENS),
        (512, 700, 700),
        (4096, 4096, 4096),
    ],
)
def test_a_window_bounds_the_cache(window: int | None, context: int, tokens: int) -> None:
    layer = LayerProfile(5, 2048, window)
    assert layer_bytes(layer, Capacity(3, context)) == 5 + 3 * 2048 * tokens


@pytest.mark.parametrize(("tokens", "frames"), [(1, 1), (102, 1), (103, 2), (512, 6)])
def test_a_frame_carries_256_kib_of_whole_rows(tokens: int, frames: int) -> None:
    assert hidden_bytes(model(), tokens) == tokens * 2560 + frames * FRAME_OVERHEAD_BYTES


def test_a_row_larger_than_a_frame_goes_alone() -> None:
    wide = replace(model(), hidden_size=100_000)
    assert hidden_bytes(wide, 3) == 3 * 400_000 + 3 * FRAME_OVERHEAD_BYTES


def test_a_link_nobody_measured_cannot_be_used() -> None:
    laptop, pi = device(0), device(1)
    stages = pipeline((laptop, 0, 3), (pi, 3, 6))
    apart = Cluster((laptop, pi), (LinkProfile(peer(0), peer(1), 1e-3, 1e7),))  # no way back
    predicted = predict(stages, apart, model(), ONE)
    assert predicted.decode_s == predicted.prefill_s == inf
    assert not fits(predicted, apart)


@pytest.mark.parametrize(
    ("round_trip_s", "bytes_per_s"),
    [(1e-3, 0.0), (1e-3, -1.0), (float("nan"), 1e6), (1e-3, float("nan")), (-1.0, 1e6)],
)
def test_a_link_with_nonsense_numbers_cannot_be_used(
    round_trip_s: float, bytes_per_s: float
) -> None:
    home = lan(device(0), device(1), round_trip_s=round_trip_s, bytes_per_s=bytes_per_s)
    stages = pipeline((device(0), 0, 3), (device(1), 3, 6))
    assert network_s(stages, home, model(), 1) == inf


def test_it_fits_to_the_last_byte() -> None:
    needed = 60 * MB + 20 * MB + 6 * 10**6
    for spare, holds in ((0, True), (-1, False)):
        home = lan(device(0, memory_bytes=needed + spare))
        predicted = predict(pipeline((home.devices[0], 0, 6)), home, model(), ONE)
        assert fits(predicted, home) is holds


def test_a_stranger_in_a_placement_is_refused() -> None:
    with pytest.raises(PlanError, match="devices of the cluster"):
        predict(pipeline((device(1), 0, 6)), lan(device(0)), model(), ONE)


def test_the_constants_describe_one_request() -> None:
    assert (PREFILL_TOKENS, EXPECTED_NEW_TOKENS) == (512, 128)


def test_gemma_weighs_what_its_file_says() -> None:
    laptop = device(0)
    predicted = predict(pipeline((laptop, 0, 18)), lan(laptop), gemma(), Capacity(4, 32_768))
    weights = 18 * 22_300_000 + 671 * MB
    caches = 4 * 2048 * (3 * 32_768 + 15 * (512 + KV_SLACK_TOKENS))
    assert predicted.memory_bytes == ((peer(0), weights + caches),)

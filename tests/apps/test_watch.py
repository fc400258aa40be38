"""Predicted against measured: what is said of it, and how it looks."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from apps.planning.comparison import compared, measured_as_dict
from apps.watch import efforts
from planner.cost import predict
from planner.plan import Capacity, Plan
from planner.profile import Stacks
from planner.request import request_of
from runtime.efforts import Measured, PlanEfforts
from tests.planner.homes import at_mbit, bert, board, peer, plan

DECODER = bert(12, Stacks.DECODER)
HOME = at_mbit(500, board(0), board(1))
NAMES = {peer(0): "laptop", peer(1): "desktop"}


def two_stages() -> Plan:
    made = plan(DECODER, (HOME.devices[0], 0, 5), (HOME.devices[1], 5, 12))
    predicted = predict(made.stages, HOME, DECODER, Capacity(1, 512), request=request_of(DECODER))
    return replace(made, predicted=predicted)


def measured(made: Plan, stage: int, times: float, *, rows: float = 200) -> PlanEfforts:
    """So many times what was predicted."""
    prefill, decode = (
        made.predicted.forecasts[stage].prefill,
        made.predicted.forecasts[stage].decode,
    )
    prompts, tokens = (
        Measured(
            turns=9,
            rows=some,
            conversations=1,
            compute_s=times * of.compute_s / passes,
            wire_s=times * of.wire_s / passes,
            wait_s=times * of.wait_s / passes,
            sent_bytes=4096,
            received_bytes=4,
        )
        for of, passes, some in ((prefill, 512, rows), (decode, 1, 1))
    )
    return PlanEfforts(made.plan_id, prompts, tokens)


def shown(body: dict[str, Any], *, color: bool = False) -> str:
    out = StringIO()
    console = Console(
        file=out, width=110, force_terminal=color, color_system="standard" if color else None
    )
    console.print(efforts(body))
    return out.getvalue()


def test_each_share_has_a_row_with_both() -> None:
    made = two_stages()
    told = {peer(n): measured(made, n, 1.0) for n in (0, 1)}
    body = compared(made, told, NAMES)
    assert [(row["name"], row["layers"]) for row in body["rows"]] == [
        ("laptop", [0, 5]),
        ("desktop", [5, 12]),
    ]
    for row in body["rows"]:
        for kind in ("prefill", "decode"):
            one = row[kind]
            for effort in ("compute_ms", "wire_ms", "wait_ms"):
                assert one["measured"][effort] == pytest.approx(one["predicted"][effort])
            assert one["measured"]["sent_kb"] == pytest.approx(4.096)
    for kind, predicted_s in (
        ("prefill", made.predicted.prefill_s),
        ("decode", made.predicted.decode_s),
    ):
        assert body[kind]["measured_ms"] == pytest.approx(predicted_s * 1e3)
        assert body[kind]["predicted_ms"] == pytest.approx(predicted_s * 1e3)


def test_a_device_that_does_not_answer_leaves_its_row_empty() -> None:
    made = two_stages()
    body = compared(made, {peer(0): measured(made, 0, 1.0)}, {peer(0): "laptop"})
    assert body["rows"][1]["decode"]["measured"] is None
    assert body["decode"]["measured_ms"] is None
    text = shown({"models": [body]})
    assert peer(1).short in text


@pytest.mark.parametrize(
    ("times", "rows", "colored"),
    [(1.1, 200, "green"), (1.3, 200, "red"), (0.7, 200, "red"), (1.3, 20, "dim")],
)
def test_a_wrong_prediction_is_coloured(times: float, rows: float, colored: str) -> None:
    """Not that of a prompt which is much shorter than the predicted one."""
    made = two_stages()
    told = {peer(n): measured(made, n, times, rows=rows) for n in (0, 1)}
    body = compared(made, told, NAMES)
    body["decode"] = None
    codes = {"green": "\x1b[32m", "red": "\x1b[1;31m", "dim": "\x1b[2m"}
    for row in shown({"models": [body]}, color=True).splitlines():
        if "laptop" in row:
            assert f"{codes[colored]} {times:.2f}x" in row


def test_an_encoder_has_no_tokens() -> None:
    made = replace(two_stages(), predicted=replace(two_stages().predicted, decode_s=0.0))
    body = compared(made, {}, NAMES)
    assert body["decode"] is None
    assert "a token of an answer" not in shown({"models": [body]})


def test_nothing_runs_yet() -> None:
    assert "potluck run" in shown({"models": []})


def test_what_one_device_measured_is_plain() -> None:
    made = two_stages()
    one = measured_as_dict(measured(made, 0, 1.0))
    assert one["plan_id"] == made.plan_id
    assert one["decode"]["turns"] == 9
    assert measured_as_dict(PlanEfforts(made.plan_id, None, None))["prefill"] is None

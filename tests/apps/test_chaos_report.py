"""What runs write becomes figures; what got worse is said; docs/reliability.md is what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from apps.chaos.case import Case
from apps.chaos.command import run_faults
from apps.chaos.faults import FAULTS
from apps.chaos.figures import fold, got_worse, merged, percentile, read_lines
from apps.chaos.nightly import steps
from apps.chaos.numbered import numbered_tests, numbers_in
from apps.chaos.promises import PROMISES
from apps.chaos.report import FIGURES, ROOT, page
from apps.chaos.runs import Asked
from apps.chaos.vitals import Vitals, drift, leaks
from mesh.errors import ConfigError


def run(seed: int, fault: str = "kill", **changed: Any) -> dict[str, Any]:
    """A line as a run writes it."""
    return {
        **{"fault": fault, "seed": seed, "date": "2026-11-22T01:02:03+00:00", "machine": "m"},
        **{"model": "gemma", "devices": 5, "at_token": 3, "leader_lost": False},
        **{"detect_ms": 200.0 + seed, "elect_ms": None, "plan_ms": 90.0, "resume_ms": 500.0},
        **{"heal_ms": 2000.0, "tokens_equal": True, "error_ms": None, "replayed_tokens": 7},
        **{"suspicions": 0, "deaths": 0, "refused": 0, "notes": {}, "wrong": []},
        **changed,
    }


@pytest.mark.parametrize(
    ("quantile", "expected"), [(0.5, 50), (0.95, 95), (0.99, 99), (1.0, 100), (0.001, 1)]
)
def test_a_percentile_is_the_least_value_that_so_many_are_not_above(
    quantile: float, expected: int
) -> None:
    assert percentile(range(100, 0, -1), quantile) == expected
    assert percentile([7.0], quantile) == 7.0


def test_runs_of_a_fault_become_one_line_and_the_soak_stays_as_it_is() -> None:
    soak = {"fault": "soak", "seed": 1, "wrong": []}
    kill, told = fold([run(seed) for seed in range(100)] + [soak])
    assert told == soak
    assert (kill["runs"], kill["tokens_equal"], kill["wrong"], kill["devices"]) == (
        100,
        100,
        0,
        [5],
    )
    expected = {"n": 100, "p50": 249.0, "p95": 294.0, "p99": 298.0, "max": 299.0}
    assert kill["detect_ms"] == expected
    assert "elect_ms" not in kill
    assert kill["replayed_tokens"] == 700


def test_a_fault_that_was_not_run_again_keeps_its_figures() -> None:
    old, new = fold([run(1), run(1, "stop")]), fold([run(2)])
    assert [(line["fault"], line["detect_ms"]["max"]) for line in merged(old, new)] == [
        ("kill", 202.0),
        ("stop", 201.0),
    ]


@pytest.mark.parametrize(
    ("changed", "worse"),
    [
        ({}, 0),
        ({"resume_ms": 590.0}, 0),  # within a fifth
        ({"plan_ms": 180.0}, 0),  # twice as long, but below what is noise
        ({"resume_ms": 650.0}, 2),  # p50 and p95
        ({"deaths": 1, "wrong": ["a device was held dead"]}, 2),
        ({"resume_ms": 300.0}, 0),
    ],
)
def test_a_fifth_worse_fails_the_night(changed: dict[str, Any], worse: int) -> None:
    before, now = [run(seed) for seed in range(5)], [run(seed, **changed) for seed in range(5)]
    assert len(list(got_worse(fold(before), fold(now)))) == worse


def test_what_is_no_record_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    for text in ("{", "[1]\n", '{"what": 1}\n'):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"runs\.jsonl"):
            read_lines([path])
    with pytest.raises(ConfigError, match="nowhere"):
        read_lines([tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("doc", "numbers"),
    [
        ("Reliability test 19: no certificate.", {19}),
        ("Tests 8 and 9 of the design's 26: loss.", {8, 9}),
        ("Tests 19 to 21, and test 3.", {3, 19, 20, 21}),
        ("Test 5 times as slow.", set()),
        ("Test 99.", set()),
        ("Nothing of the kind.", set()),
    ],
)
def test_a_docstring_tells_its_numbers(doc: str, numbers: set[int]) -> None:
    assert numbers_in(doc) == numbers


def test_every_number_has_a_promise_and_every_fault_a_number() -> None:
    assert [promise.number for promise in PROMISES] == list(range(1, 27))
    used = {fault for promise in PROMISES for fault in promise.faults}
    assert used <= {*FAULTS, "soak", "siege"}
    assert {*FAULTS} - used == {"lossy", "slow-link"}  # for the soak, and for their own figures


def test_the_page_is_what_the_figures_and_the_tests_say() -> None:
    """`make reliability` writes it anew."""
    lines = read_lines([FIGURES])
    assert [json.loads(text) for text in FIGURES.read_text().splitlines()] == merged(lines, [])
    assert (ROOT / "docs/reliability.md").read_text() == page(lines, numbered_tests(ROOT))


def test_a_missed_target_says_so() -> None:
    told = page(fold([run(seed, resume_ms=3500.0) for seed in range(3)]), {1: ["tests/a.py::test"]})
    (row,) = [line for line in told.splitlines() if line.startswith("| 1 |")]
    assert "next token p95 3,500 (**missed**, <= 3000)" in row
    assert "seen by all p99 202" in row
    assert "`tests/a.py`::test" in row


def test_what_never_falls_again_is_a_leak() -> None:
    quiet = [Vitals(1000, 20 + n % 3, 5, 30) for n in range(8)]
    assert leaks(quiet) == []
    assert drift(quiet) == 0
    growing = [Vitals(1000 + 10 * n, 20 + n, 5, 30 - n) for n in range(8)]
    assert len(leaks(growing)) == 1
    assert "files" in leaks(growing)[0]
    assert drift(growing) == pytest.approx(0.0597, abs=0.001)


def test_the_same_seed_is_the_same_accident() -> None:
    cases = [Case.of(seed) for seed in range(50)]
    assert cases == [Case.of(seed) for seed in range(50)]
    assert all(len({case.owner, case.victim, case.second}) == 3 for case in cases)
    assert {case.devices for case in cases} == {3, 4, 5}


def test_the_night_has_every_fault_and_a_part_of_it_has_a_part_of_each(tmp_path: Path) -> None:
    whole = {step.name: step.command for step in steps(tmp_path, 1.0)}
    assert {*FAULTS, "seeds", "fuzz", "crowds", "siege", "soak", "figures"} == whole.keys()
    assert whole["kill"][5:7] == ("--runs", "50")
    assert "1000" in whole["crowds"]
    part = {step.name: step.command for step in steps(tmp_path, 0.001)}
    assert part.keys() == whole.keys()
    assert part["kill"][5:7] == ("--runs", "1")
    assert "1" not in part["crowds"], "a crowd of one is none"


def test_a_fault_that_there_is_not_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="no fault is called 'earthquake'.*unplug"):
        run_faults(Asked(("kill", "earthquake"), range(1)), None, print)
    with pytest.raises(ConfigError, match="busy takes"):
        run_faults(Asked(("busy",), range(1), devices=3), None, print)
    with pytest.raises(ConfigError, match="nothing beside it"):
        run_faults(Asked(("soak", "kill"), range(1)), None, print)

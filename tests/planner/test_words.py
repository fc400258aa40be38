"""Numbers as people read them."""

from __future__ import annotations

import pytest

from planner.plan import Capacity
from planner.words import held_text, lacking_text, list_text, names_text, size_text, time_text
from tests.planner.homes import MB, device, lan, peer


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 kB"),
        (4_000, "4 kB"),
        (999_999, "1 MB"),
        (12_500_000, "12.5 MB"),
        (99_960_000, "100 MB"),
        (720 * MB, "720 MB"),
        (999_600_000, "1 GB"),
        (1_283_000_000, "1.28 GB"),
        (1_234_000 * MB, "1234 GB"),
    ],
)
def test_sizes(size_bytes: int, text: str) -> None:
    assert size_text(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.00021, "0.21 ms"), (0.0382, "38.2 ms"), (0.41, "410 ms"), (1.24, "1.24 s"), (125, "125 s")],
)
def test_times(seconds: float, text: str) -> None:
    assert time_text(seconds) == text


@pytest.mark.parametrize(
    ("held", "text"),
    [
        ((4, 8192), "all 4 conversations"),
        ((2, 8192), "only 2 of the 4 conversations asked for"),
        (
            (1, 2048),
            "only 1 conversation of 2048 tokens, not the 4 conversations of 8192 tokens asked for",
        ),
    ],
)
def test_how_much_of_the_wish_is_held(held: tuple[int, int], text: str) -> None:
    assert held_text(Capacity(*held), Capacity(4, 8192)) == text


def test_a_shortage_is_rounded_up_to_what_can_be_typed() -> None:
    home = lan(*(device(number) for number in range(4)))
    assert lacking_text({peer(0): 1, peer(1): 2 * MB}, home) == "1 MB on laptop and 2 MB on desktop"
    all_short = {peer(number): 5 * MB for number in range(4)}
    assert lacking_text(all_short, home) == "20 MB on 4 devices together"


def test_names_in_a_row() -> None:
    home = lan(*(device(number) for number in range(3)))
    assert names_text(home, [peer(0), peer(1), peer(2)]) == "laptop, desktop and pi"
    assert names_text(home, [peer(9)]) == peer(9).short  # gone
    assert list_text(["one"]) == "one"

"""Waiting for what others send: in the worker's thread, and never for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from mesh.errors import GenerationFailed, ProtocolError, StaleEpoch
from runtime.chores import Chores
from runtime.mailbox import Mailbox

LONG_S = 30.0


def waiting(mailbox: Mailbox[int, str], key: int, happen: Callable[[], None]) -> str:
    """What a thread gets that waits for `key` while something happens."""
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(mailbox.take, key, LONG_S)
        happen()
        return taken.result(LONG_S)


def test_a_letter_comes_before_or_while_it_is_waited_for() -> None:
    mailbox: Mailbox[int, str] = Mailbox(4, 100)
    mailbox.put(1, "early", 5)
    assert mailbox.take(1, 0.0) == "early"
    assert waiting(mailbox, 2, lambda: mailbox.put(2, "late", 4)) == "late"


def test_nothing_comes() -> None:
    mailbox: Mailbox[int, str] = Mailbox(4, 100)
    with pytest.raises(GenerationFailed, match="sent nothing"):
        mailbox.take(1, 0.0)


def test_whoever_waits_hears_that_it_is_over() -> None:
    mailbox: Mailbox[int, str] = Mailbox(4, 100)
    with pytest.raises(StaleEpoch, match="gone"):
        waiting(mailbox, 1, lambda: mailbox.abandon(StaleEpoch("gone")))
    mailbox.put(1, "too late", 8)
    with pytest.raises(StaleEpoch, match="gone"):
        mailbox.take(1, LONG_S)


def test_whoever_waits_sleeps_until_all_of_one_list_is_here() -> None:
    mailbox: Mailbox[int, str] = Mailbox(8, 100)
    mailbox.put(1, "one", 3)
    notified: list[int] = []
    asleep = threading.Event()
    wake, sleep = mailbox._changed.notify_all, mailbox._wait
    mailbox._changed.notify_all = lambda: (notified.append(len(mailbox._letters)), wake())
    mailbox._wait = lambda *times: (asleep.set(), sleep(*times))
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(mailbox.wait, [[1, 2, 3], [4, 5]], LONG_S)
        assert asleep.wait(LONG_S)
        for key in (9, 4, 3, 5):
            assert not notified
            mailbox.put(key, "letter", 3)
        assert found.result(LONG_S) == 1
    assert notified == [5], "once, by the last"
    assert mailbox.wait([[7], [3, 9], [4]], 0.0) == 1, "the first that is whole"


def test_an_error_in_place_of_a_letter() -> None:
    mailbox: Mailbox[int, str] = Mailbox(4, 100)
    with pytest.raises(GenerationFailed, match="garbage"):
        waiting(mailbox, 1, lambda: mailbox.fail(1, GenerationFailed("garbage")))
    mailbox.put(1, "again", 5)
    assert mailbox.take(1, 0.0) == "again"


def test_a_flood_that_nobody_reads() -> None:
    mailbox: Mailbox[int, str] = Mailbox(2, 100)
    mailbox.put(1, "a", 50)
    with pytest.raises(ProtocolError, match="twice"):
        mailbox.put(1, "b", 1)
    with pytest.raises(ProtocolError, match="100 bytes"):
        mailbox.put(2, "b", 51)
    mailbox.put(2, "b", 50)
    with pytest.raises(ProtocolError, match="2 parts"):
        mailbox.put(3, "c", 0)
    mailbox.discard(lambda key: key == 1)
    mailbox.put(3, "c", 50)


def test_chores_are_done_while_somebody_waits() -> None:
    """Or two devices that need each other would both wait."""
    chores, done = Chores(), threading.Event()
    mailbox: Mailbox[int, str] = Mailbox(4, 100, chores)

    def happen() -> None:
        chores.add(done.set)
        assert done.wait(LONG_S)
        mailbox.put(1, "then", 4)

    assert waiting(mailbox, 1, happen) == "then"


def test_a_chore_may_bring_the_very_letter() -> None:
    chores = Chores()
    mailbox: Mailbox[int, str] = Mailbox(4, 100, chores)
    chores.add(lambda: mailbox.put(1, "own", 3))
    assert mailbox.take(1, LONG_S) == "own"

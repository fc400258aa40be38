"""A log that a peer cannot fill."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from apps.logs import LogLimit
from mesh.errors import ProtocolError
from mesh.ids import PeerId
from mesh.limits import MAX_LOG_LINES_PER_S
from mesh.messages import Notice
from mesh.requests import Requests

log = logging.getLogger("tests.logs")


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.lines: list[str] = []
        self.limit = LogLimit(lambda: self.now_s)
        self.addFilter(self.limit)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def kept() -> Iterator[Kept]:
    handler = Kept()
    root = logging.getLogger()
    root.addHandler(handler)
    yield handler
    root.removeHandler(handler)


def test_one_cause_gets_so_many_lines_a_second_and_the_rest_is_counted(kept: Kept) -> None:
    for second in range(3):
        kept.now_s = float(second)
        for number in range(1000):
            log.warning("a frame of %d bytes", number)
    assert len(kept.lines) == 3 * MAX_LOG_LINES_PER_S
    left_out = 1000 - MAX_LOG_LINES_PER_S
    assert kept.lines[MAX_LOG_LINES_PER_S].endswith(f"(and {left_out} such lines were left out)")
    assert kept.lines[1] == "a frame of 1 bytes"


def test_another_cause_is_heard_in_the_middle_of_a_flood(kept: Kept) -> None:
    for number in range(1000):
        log.warning("flood %d", number)
    log.warning("the disk is full")
    assert kept.lines[-1] == "the disk is full"
    assert len(kept.lines) == MAX_LOG_LINES_PER_S + 1


def test_what_is_remembered_does_not_grow_with_what_is_said(kept: Kept) -> None:
    for number in range(1000):
        log.warning(f"written anew each time: {number}")  # noqa: G004 (as libraries do)
    assert len(kept.limit._causes) == 1


async def test_a_notice_of_garbage_is_a_line_and_no_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def send(peer: PeerId, data: bytes) -> None:
        raise AssertionError("nobody asked")

    async def handler(peer: PeerId, body: object) -> None:
        raise ProtocolError("StepFailed is a list of 4 fields")

    requests = Requests(PeerId("a" * 64), send)
    requests.on_notice("session.step_failed", handler)
    await requests.take_notice(PeerId("b" * 64), Notice("session.step_failed", [1]))
    (record,) = caplog.records
    assert record.exc_info is None
    assert "bbbbbbbb" in record.getMessage()
    assert "a list of 4 fields" in record.getMessage()

"""Complaints: what goes wrong in the pipeline here, and who hears of it.

The owner of a session hears that a step failed, and decides whether to try again; whoever plans
hears of a device that computes wrongly.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from mesh.errors import PotluckError, ProtocolError, StaleEpoch
from mesh.ids import PeerId
from planner.plan import Plan
from runtime.post import Post
from runtime.session_messages import OpenSession, StepFailed
from runtime.turns import Waiting
from runtime.work import Work

_log = logging.getLogger(__name__)

Report = Callable[[PeerId, StepFailed], None]
Blame = Callable[[Plan, PeerId, str], None]


class Complaints:
    """`report` and `blame` as `Pipeline` was given them; they must not raise."""

    def __init__(self, report: Report, blame: Blame) -> None:
        self._report = report
        self._blame = blame

    def fail(self, opened: OpenSession, reason: str, *, lost: bool = False) -> None:
        """Tells a session's owner that a step failed here; with `lost`, that its plan is over."""
        self._report(opened.owner, StepFailed(opened.plan, opened.session, reason, lost))

    def give_up(self, post: Post, step: Waiting, error: Exception) -> None:
        """A step could not be computed: its owner hears why, unless it has closed meanwhile."""
        if not isinstance(error, PotluckError):  # exhausted memory, a bad operand, a bug
            _log.error("a step at %d failed", step.header.position, exc_info=error)
        conversation = post.conversations.get(step.header.session)
        if conversation is not None:
            words = str(error) if isinstance(error, PotluckError) else repr(error)
            self.fail(conversation.opened, words, lost=isinstance(error, StaleEpoch))

    def is_wrong(self, work: Work, peer: PeerId, error: ProtocolError) -> bool:
        """See `Work.is_wrong`; whoever plans hears of it."""
        is_wrong = work.is_wrong(peer, error)
        if is_wrong:
            self._blame(work.post.plan, peer, str(error))
        return is_wrong

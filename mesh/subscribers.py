"""Who wants to hear what happens in the mesh."""

from __future__ import annotations

import logging
from collections.abc import Callable

from mesh.events import Event

Listener = Callable[[Event], None]

_log = logging.getLogger(__name__)


class Subscribers:
    """Calls everybody with each event, in order; a listener may add or remove any."""

    def __init__(self) -> None:
        self._subscribers: list[Listener] = []

    def add(self, listener: Listener) -> Callable[[], None]:
        """The returned function takes it off again."""
        self._subscribers.append(listener)
        return lambda: self._subscribers.remove(listener)

    def tell(self, event: Event) -> None:
        for listener in tuple(self._subscribers):
            try:
                listener(event)
            except Exception:  # a listener's bug must not take the node down; logged in full
                _log.exception("a subscriber failed on %r", event)

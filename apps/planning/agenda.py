"""The agenda: of all that the leader could plan, what comes next, and what it may ask for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from apps.planning.ledger import Entry, Ledger
from apps.planning.messages import Wish
from mesh.ids import ModelId
from mesh.membership import View


@dataclass(frozen=True, slots=True)
class Task:
    """A model to be planned, and why."""

    wish: Wish
    reason: str
    idle_s: float  # since the model was last used; 0 where somebody waits for it
    may_ask: bool  # whether other models may have to make room
    is_urgent: bool = False  # its sessions wait, or will: what is known of the devices must do

    @property
    def model(self) -> ModelId:
        return self.wish.model.model


def next_task(
    ledger: Ledger,
    waiting: Sequence[Wish],
    view: View,
    now_s: float,
    failures: Mapping[ModelId, int],
    passed: Collection[ModelId],
) -> Task | None:
    """None where all is well. `waiting` are wishes that no plan serves, in the order of asking;
    `passed` are the models that were tried in vain.

    Broken plans come first, and those of a device that is about to go, those used last before the
    others; then what is asked for; then plans that might be better with a device that joined. Of
    the first two, what failed lets others go before it.
    """
    ranked: list[tuple[tuple[float, ...], Task]] = []
    for entry in ledger.entries:
        reason = ledger.why(entry, view)
        if reason is None:
            continue
        task = _anew(entry, reason, waiting, now_s, ledger, ledger.is_whole(entry, view.epoch))
        is_late = entry.is_leaving or not task.is_urgent
        ranked.append(((is_late, failures.get(task.model, 0), 0, task.idle_s), task))
    urgent = {task.model for _, task in ranked if task.is_urgent}
    for place, wish in enumerate(waiting):
        model = wish.model.model
        if model not in urgent:
            task = _wanted(wish, ledger.find(model), ledger, view)
            ranked.append(((False, failures.get(model, 0), 1, place), task))
    ranked = [one for one in ranked if one[1].model not in passed]
    return min(ranked, key=lambda one: one[0])[1] if ranked else None


def _anew(
    entry: Entry,
    reason: str,
    waiting: Sequence[Wish],
    now_s: float,
    ledger: Ledger,
    is_whole: bool,
) -> Task:
    """Another plan for a model that is in force, with the room that those who wait for it want."""
    wish, idle_s = entry.wish, entry.idle_s(now_s)
    for other in waiting:
        if other.model.is_held_like(wish.model):
            wish, idle_s = wish.with_room_of(other), 0.0
    is_urgent = not (is_whole or entry.is_lapsed) or bool(ledger.parts_of(entry))
    return Task(wish, reason, idle_s, may_ask=not is_whole, is_urgent=is_urgent)


def _wanted(wish: Wish, entry: Entry | None, ledger: Ledger, view: View) -> Task:
    """The first plan for a model, or one with more room, or in another precision."""
    is_alike = entry is not None and entry.wish.model.is_held_like(wish.model)
    is_more = is_alike and entry is not None and ledger.is_whole(entry, view.epoch)
    room = entry.wish if entry is not None and is_alike else None
    reason = f"{wish.model.name} is wanted"
    return Task(wish.with_room_of(room), reason, 0.0, may_ask=not is_more)

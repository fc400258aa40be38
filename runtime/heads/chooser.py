"""Who chooses tokens at the end of the last stage: the head here, or all its shares together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mesh.errors import GenerationFailed
from planner.plan import Span
from runtime.chosen import Chosen
from runtime.drawing import NOT_FINITE, Known
from runtime.heads.question import Choice, Tell, Want, decided, draw, merged, tell, want
from runtime.models.head import Head


class Chooser(Protocol):
    """In the worker's thread."""

    def choose(self, hidden: Tensor, choices: Sequence[Choice]) -> list[Chosen]:
        """A token for each of the final hidden rows [C, hidden]. Raises GenerationFailed where
        logits are not finite or a choice is of another model, StaleEpoch where a device is lost.
        """


class WholeHead:
    """All of the vocabulary is here."""

    def __init__(self, head: Head) -> None:
        self._head = head

    def choose(self, hidden: Tensor, choices: Sequence[Choice]) -> list[Chosen]:
        logits = self._head.logits(hidden).cpu()  # [C, V]
        return [draw(row, one) for row, one in zip(logits, choices, strict=True)]


@dataclass(frozen=True, slots=True)
class HeadShare:
    """Some rows of the vocabulary, with the norm before them, on the torch device `device`."""

    head: Head
    span: Span
    device: torch.device

    @torch.inference_mode()
    def tell(self, hidden: Tensor, wanted: Sequence[Want]) -> list[Tell | None]:
        """Of final hidden rows [C, hidden], what is wanted of each within the span; None for one
        whose logits are not finite. For the worker's thread.
        """
        logits = self.head.logits(hidden.to(self.device)).cpu().numpy()  # [C, len(span)]
        return [tell(row, self.span, one) for row, one in zip(logits, wanted, strict=True)]


Others = Callable[[Tensor, Sequence[Want]], Callable[[], dict[Span, list[Tell]]]]


class SplitHead:
    """Several devices have the vocabulary, this one perhaps a part of it."""

    def __init__(self, spans: Sequence[Span], own: HeadShare | None, others: Others) -> None:
        """`spans` are all shares, in the order of their ids. `others` asks all but this device, and
        returns what waits for their answers.
        """
        self._spans = spans
        self._vocabulary = spans[-1].last
        self._own = own
        self._others = others

    def choose(self, hidden: Tensor, choices: Sequence[Choice]) -> list[Chosen]:
        hidden = hidden.cpu()
        wanted = [want(choice) for choice in choices]
        knowns = self._ask(hidden, wanted)
        chosen = [decided(known, one) for known, one in zip(knowns, choices, strict=True)]
        unsure = [index for index, one in enumerate(chosen) if one is None]
        if unsure:  # the token lies between the candidates, or more of them are needed
            everything = [wanted[index].everything(self._vocabulary) for index in unsure]
            for index, known in zip(unsure, self._ask(hidden[unsure], everything), strict=True):
                chosen[index] = decided(known, choices[index])
        sure = [one for one in chosen if one is not None]
        assert len(sure) == len(choices), "all logits decide"
        return sure

    def _ask(self, hidden: Tensor, wanted: Sequence[Want]) -> list[Known]:
        """The others compute while this device does."""
        answers = self._others(hidden, wanted)
        told: dict[Span, list[Tell]] = {}
        if self._own is not None:
            span = self._own.span
            told[span] = _finite(self._own.tell(hidden, [one.within(span) for one in wanted]))
        told |= answers()
        return [
            merged([told[span][index] for span in self._spans], one, self._vocabulary)
            for index, one in enumerate(wanted)
        ]


def _finite(tells: Sequence[Tell | None]) -> list[Tell]:
    finite = [one for one in tells if one is not None]
    if len(finite) < len(tells):
        raise GenerationFailed(NOT_FINITE)
    return finite

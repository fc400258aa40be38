"""Chains: the work on each tile of a pass, of which one goes on while the pieces of another travel.

A chain is a generator that says what it needs before it can go on: pieces that other devices send,
and marks that other chains here set. The worker always goes on with the chain that has come least
far of those that can; so tiles take turns, and the wire has something to do while it computes.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from runtime.walks.exchange import Exchange, Key


@dataclass(frozen=True, slots=True)
class Needs:
    """What a chain waits for."""

    pieces: tuple[Key, ...] = ()
    marks: tuple[Hashable, ...] = ()


Chain = Generator[Needs, None, Tensor]


@dataclass(slots=True)
class Marks:
    """What the chains of a pass have got done, for one another."""

    done: set[Hashable] = field(default_factory=set)

    def set(self, mark: Hashable) -> None:
        self.done.add(mark)


def interleave(chains: Sequence[Chain], exchange: Exchange, marks: Marks) -> list[Tensor]:
    """Runs all to their ends; what each returned. Raises what `Exchange.take` does."""
    results: dict[int, Tensor] = {}
    needs: dict[int, Needs] = {}
    steps = [0] * len(chains)

    def go_on(index: int) -> None:
        try:
            needs[index] = next(chains[index])
            steps[index] += 1
        except StopIteration as end:
            needs.pop(index, None)
            results[index] = end.value

    for index in range(len(chains)):
        go_on(index)
    while needs:
        able = [index for index in needs if marks.done.issuperset(needs[index].marks)]
        assert able, "chains that wait for one another never end"
        able.sort(key=lambda one: (steps[one], one))
        go_on(able[exchange.wait([needs[index].pieces for index in able])])
    return [results[index] for index in range(len(chains))]

"""A transfer: pieces of one model from all members that have them, several at once, until what is
wanted is here.

A damaged piece is asked of another device, and the one it came from is named. A source that
vanishes, stalls or refuses gives its pieces back to the others. What has come stays.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from apps.models.messages import HaveReply, SourceBytes, TransferState
from apps.models.pace import Pace
from apps.models.patience import Patience
from apps.models.piece_queue import PieceQueue
from apps.models.source import Source
from apps.timeline import Timeline
from mesh.errors import LinkError, ModelError, ProtocolError
from mesh.ids import Address, PeerId
from mesh.limits import MAX_DAMAGED_PIECES, MAX_PIECE_SOURCES
from mesh.transport import Dials
from runtime.stored.partial import PartialModel

LOOK_INTERVAL_S = 2.0  # between two looks at who has what
ASIDE_S = 5.0  # a source that failed is not asked again for so long
SAVE_INTERVAL_S = 2.0  # of a transfer, is what a crash may cost


@dataclass(frozen=True, slots=True)
class Holder:
    """A member that has some of the model, and which pieces."""

    peer: PeerId
    name: str
    address: Address
    have: HaveReply


Look = Callable[[], Awaitable[list[Holder]]]


class _Want:
    """One caller's pieces."""

    def __init__(self, pieces: Sequence[int]) -> None:
        self.missing = set(pieces)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Transfer:
    """For one partial model; runs while anything of it is wanted."""

    def __init__(
        self, partial: PartialModel, look: Look, dialer: Dials, timeline: Timeline
    ) -> None:
        """`look` asks the members who has pieces of this very manifest."""
        self.partial = partial
        self._look = look
        self._dialer = dialer
        self._timeline = timeline
        self._queue = PieceQueue(len(partial.manifest))
        self._wants: list[_Want] = []
        self._sources: dict[PeerId, Source] = {}  # everyone that gave something
        self._aside: dict[PeerId, float] = {}  # until when a source is not asked
        self._changed = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._patience = Patience(partial, self._queue)
        self._unsaved_bytes, self._saved_s = 0, 0.0
        self._done_bytes = self._wanted_bytes = 0
        self._pace = Pace(0.0)

    @property
    def state(self) -> TransferState | None:
        """None while nothing is wanted."""
        if not self._wants:
            return None
        return TransferState(
            self.partial.about.name,
            self.partial.model,
            self._done_bytes,
            self._wanted_bytes,
            self._pace.bytes_per_s(asyncio.get_running_loop().time()),
            tuple(
                SourceBytes(source.peer, source.size_bytes, source.damaged)
                for source in self._sources.values()
            ),
        )

    @property
    def given(self) -> Counter[str]:
        """Bytes that came from each device, by name, since this process began."""
        return Counter({source.name: source.size_bytes for source in self._sources.values()})

    async def bring(self, pieces: Iterable[int]) -> None:
        """Returns when all of these are here and right; they go before what is wanted already.

        Raises WeightsMissing when no member can give them now, DiskFull or ModelError when the
        disk refuses. What has come is kept in any case.
        """
        missing = self.partial.missing(pieces)
        if not missing:
            return
        await asyncio.to_thread(self.partial.check_space, missing)
        missing = self.partial.missing(missing)  # some may have come for somebody else meanwhile
        if not missing:
            return
        want = _Want(missing)
        self._start(want)
        try:
            await want.done
        finally:
            self._wants.remove(want)
            if want.done.done() and not want.done.cancelled():
                want.done.exception()  # seen, also where this caller was cancelled first
            others = set().union(*(one.missing for one in self._wants))
            self._queue.unwant(want.missing - others)
            self._notify()

    def _start(self, want: _Want) -> None:
        now_s = asyncio.get_running_loop().time()
        size = self.partial.manifest.size_of
        if not self._wants:
            self._aside = {}
            self._done_bytes = self._wanted_bytes = 0
            self._pace = Pace(now_s)
            self._patience.begin(now_s)
        known = set().union(*(one.missing for one in self._wants))
        self._wanted_bytes += sum(size(index) for index in want.missing - known)
        self._wants.append(want)
        self._queue.want(sorted(want.missing))
        self._notify()
        if self._running is None or self._running.done():
            # Ends by itself when nothing is wanted any more, and then holds no error.
            self._running = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Ends at once; whoever waits gets a CancelledError."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
        await self._save_quietly()

    @property
    def _is_wanted(self) -> bool:
        return any(not want.done.done() for want in self._wants)

    async def _run(self) -> None:
        try:
            while self._is_wanted:
                try:
                    await self._serve_wants()
                except* ModelError as group:
                    self._fail(_first(group))
                await self._save_quietly()
        finally:
            for want in self._wants:
                want.done.cancel()

    async def _serve_wants(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            drawing: dict[PeerId, asyncio.Task[None]] = {}
            while self._is_wanted:
                await self._find_sources(drawing, tasks)
                await self._wait(LOOK_INTERVAL_S)
                if asyncio.get_running_loop().time() - self._saved_s >= SAVE_INTERVAL_S:
                    await self._save()
                if self._wants:
                    self._patience.check(self._sources.values())
            for task in drawing.values():
                task.cancel()

    async def _find_sources(
        self, drawing: dict[PeerId, asyncio.Task[None]], tasks: asyncio.TaskGroup
    ) -> None:
        for peer in [peer for peer, task in drawing.items() if task.done()]:
            del drawing[peer]
        holders = await self._look()
        now_s = asyncio.get_running_loop().time()
        self._patience.looked([holder.have for holder in holders], now_s)
        for holder in holders:
            if holder.have.pending or self._aside.get(holder.peer, 0.0) > now_s:
                continue
            if holder.peer not in drawing and len(drawing) >= MAX_PIECE_SOURCES:
                continue
            self._queue.offer(holder.peer, holder.have.runs)
            if holder.peer not in drawing:
                source = self._sources.setdefault(
                    holder.peer, Source(holder.peer, holder.name, holder.address)
                )
                source.address = holder.address
                drawing[holder.peer] = tasks.create_task(self._draw(source))
        self._notify()

    async def _draw(self, source: Source) -> None:
        """One source until it fails; what it was asked for is then others' to bring."""
        try:
            await source.draw(
                self._dialer,
                self.partial,
                self._queue,
                self._wait,
                self._on_piece,
                self._on_damaged,
            )
        except (LinkError, ProtocolError) as error:
            aside_s = math.inf if source.damaged >= MAX_DAMAGED_PIECES else ASIDE_S
            self._aside[source.peer] = asyncio.get_running_loop().time() + aside_s
            self._timeline.note(
                "source-lost",
                f"{source.name} gives no more of {self.partial.about.name}: {error}",
                peer=str(source.peer),
            )
        finally:
            self._queue.withdraw(source.peer)
            source.reset()
            self._notify()

    def _on_piece(self, source: Source, index: int) -> None:
        now_s = asyncio.get_running_loop().time()
        size = self.partial.manifest.size_of(index)
        self._patience.progressed(now_s)
        self._done_bytes += size
        self._unsaved_bytes += size
        self._pace.add(size, now_s)
        for want in self._wants:
            want.missing.discard(index)
            if not want.missing and not want.done.done():
                want.done.set_result(None)

    def _on_damaged(self, source: Source, index: int) -> None:
        self._timeline.note(
            "damaged-piece",
            f"{source.name} gave a damaged piece of {self.partial.about.name} (number {index}); "
            "it is asked of another device. The disk or the file there may be failing",
            peer=str(source.peer),
            piece=index,
        )
        self._notify()

    async def _wait(self, timeout_s: float = LOOK_INTERVAL_S) -> None:
        """Until something changed: a want, a source, a piece given back."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            pass  # time for another look all the same

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _fail(self, error: ModelError) -> None:
        for want in self._wants:
            if not want.done.done():
                want.done.set_exception(error)

    async def _save(self) -> None:
        self._saved_s = asyncio.get_running_loop().time()
        if unsaved_bytes := self._unsaved_bytes:
            await asyncio.to_thread(self.partial.save)
            self._unsaved_bytes -= unsaved_bytes

    async def _save_quietly(self) -> None:
        """At the end. A disk that refuses costs these pieces again after a crash, nothing more."""
        try:
            await self._save()
        except ModelError as error:
            self._timeline.note("trouble", str(error))


def _first(group: BaseExceptionGroup[ModelError]) -> ModelError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, ModelError)
    return error

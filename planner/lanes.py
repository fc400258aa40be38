"""A group at work, simulated: compute threads, chains of work on them, and the wire in between.

Each device has one compute thread. Its chains take turns on it as `runtime.walks.chains` lets
them: of those that can go on, the one that has come least far. What a link carries it carries in
order, out of a device one piece after the other, and into a device as well. Sending and receiving
cost processor time, which the compute thread loses where both share a core.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from heapq import heappop, heappush
from math import inf

from mesh.ids import PeerId
from planner.network import Links, is_usable
from planner.profile import DeviceProfile, LinkProfile, WireCost

Key = Hashable  # a piece that was sent, or a mark that a chain of the same device has set

HANDOFF_S = 31e-6  # from the loop that receives to the thread that computes, measured

# Where nobody measured it: of TLS websockets on a core of a small server, 256 KiB a frame.
TYPICAL_WIRE = WireCost(1.2e-9, 60e-6, 1.3e-9, 60e-6, own_core=False)


@dataclass(frozen=True, slots=True)
class Piece:
    """What a chunk sends when it is done."""

    to: int
    key: Key
    size_bytes: int
    frames: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Work of a chain that nothing interrupts: it waits for what it needs, computes, and sends."""

    compute_s: float
    needs: tuple[Key, ...] = ()
    pieces: tuple[Piece, ...] = ()
    marks: tuple[Key, ...] = ()  # set when it is done, for other chains of the same device
    layer: int = 0


Chain = Sequence[Chunk]
Program = Sequence[Chain]  # of one device


@dataclass(frozen=True, slots=True)
class Wires:
    """The links and costs of a group, devices by their index."""

    bytes_per_s: tuple[tuple[float, ...], ...]  # from, to
    latency_s: tuple[tuple[float, ...], ...]
    burst_s: tuple[tuple[float, ...], ...]  # what a link that was idle carries at once
    costs: tuple[WireCost, ...]

    @property
    def is_whole(self) -> bool:
        """Whether every link was measured."""
        return all(speed > 0 for row in self.bytes_per_s for speed in row)


def wires_of(devices: Sequence[DeviceProfile], links: Links) -> Wires:
    """A link that nobody measured carries nothing."""

    def speed(link: LinkProfile) -> float:
        return link.bytes_per_s

    def latency_s(link: LinkProfile) -> float:
        return link.round_trip_s / 2 + HANDOFF_S

    def burst_s(link: LinkProfile) -> float:
        return link.burst_bytes / link.bytes_per_s

    def table(of: Callable[[LinkProfile], float], own: float) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(number(a, b, of, own) for b in ids) for a in ids)

    def number(
        source: PeerId, target: PeerId, of: Callable[[LinkProfile], float], own: float
    ) -> float:
        link = links.get((source, target))
        if source == target:
            return own
        return of(link) if link is not None and is_usable(link) else 0.0

    ids = [device.device for device in devices]
    costs = tuple(device.wire or TYPICAL_WIRE for device in devices)
    return Wires(table(speed, inf), table(latency_s, 0.0), table(burst_s, 0.0), costs)


@dataclass(frozen=True, slots=True)
class Busy:
    """What keeps a device busy: it computes a chunk, or its link carries a piece."""

    device: int
    on_wire: bool
    first_s: float
    last_s: float


def finish_s(
    programs: Sequence[Program], wires: Wires, layers: int, trace: list[Busy] | None = None
) -> list[list[float]]:
    """When each device has done the last chunk of each layer: [device][layer], from 0 on.

    A device that never gets what it needs stays at infinity. All that happens meanwhile is added
    to `trace`.
    """
    simulation = _Simulation(programs, wires, layers, trace)
    simulation.run()
    return simulation.finished


class _Happens(Enum):
    """To a piece, or, when it is done, to a chunk."""

    DONE = 1
    LEFT = 2
    COME = 3


@dataclass(slots=True)
class _Device:
    program: Program
    next_chunk: list[int]  # of each chain
    left: list[int]  # chunks of each layer that are not done
    have: set[Key] = field(default_factory=set)
    chunk: Chunk | None = None  # under way
    began_s: float = 0.0
    lost_s: float = 0.0  # of it, to sending and receiving
    # When its link has carried all so far, in each direction, were it never ahead by a burst.
    out_free_s: float = 0.0
    in_free_s: float = 0.0
    sending_until_s: float = 0.0  # its processor, with the wire
    reading_until_s: float = 0.0


class _Simulation:
    """Events in the order of their time: a chunk is done, a piece has left, a piece is there."""

    def __init__(
        self,
        programs: Sequence[Program],
        wires: Wires,
        layers: int,
        trace: list[Busy] | None,
    ) -> None:
        self.finished = [[inf] * layers for _ in programs]
        self._trace = trace
        self._wires = wires
        self._devices = [
            _Device(program, [0] * len(program), _counts(program, layers)) for program in programs
        ]
        # When, in what order among those of one moment, what, and to which device and piece.
        self._events: list[tuple[float, int, _Happens, int, Piece | None, float]] = []
        self._count = 0

    def run(self) -> None:
        for index in range(len(self._devices)):
            self._go_on(index, 0.0)
        events = self._events
        while events:
            now_s, _, happens, index, piece, seconds = heappop(events)
            if happens is _Happens.DONE:
                self._done(index, now_s)
            elif piece is not None:
                (self._left if happens is _Happens.LEFT else self._come)(
                    index, piece, seconds, now_s
                )

    def _done(self, index: int, now_s: float) -> None:
        """A chunk; where sending or receiving took of its time, later by that."""
        device = self._devices[index]
        if device.lost_s > 0:
            self._at(now_s + device.lost_s, _Happens.DONE, index)
            device.lost_s = 0.0
            return
        chunk, device.chunk = device.chunk, None
        assert chunk is not None, "what is done was under way"
        if self._trace is not None:
            self._trace.append(Busy(index, False, device.began_s, now_s))
        device.have.update(chunk.marks)
        device.left[chunk.layer] -= 1
        if not device.left[chunk.layer]:
            self.finished[index][chunk.layer] = now_s
        spent_s = 0.0
        for piece in chunk.pieces:
            spent_s += self._send(index, piece, now_s)
        self._go_on(index, now_s)
        if device.chunk is not None and not self._wires.costs[index].own_core:
            device.lost_s += spent_s

    def _send(self, index: int, piece: Piece, now_s: float) -> float:
        """Puts a piece on its way; the processor time that it takes here."""
        device, wires, to = self._devices[index], self._wires, piece.to
        cost = wires.costs[index]
        spent_s = piece.size_bytes * cost.send_s_per_byte + piece.frames * cost.send_s_per_frame
        # Frame by frame: the first leaves while others are still made.
        ready_s = device.sending_until_s
        if ready_s < now_s:
            ready_s = now_s
        made_s = device.sending_until_s = ready_s + spent_s
        begin_s = ready_s + spent_s / piece.frames
        if begin_s < device.out_free_s:
            begin_s = device.out_free_s
        free_s = begin_s + piece.size_bytes / wires.bytes_per_s[index][to]
        if free_s < made_s:
            free_s = made_s
        device.out_free_s = free_s
        left_s = free_s - wires.burst_s[index][to]
        if left_s < made_s:
            left_s = made_s
        if self._trace is not None:
            self._trace.append(Busy(index, True, min(begin_s, left_s), left_s))
        self._at(left_s, _Happens.LEFT, index, piece, begin_s)
        return spent_s

    def _left(self, origin: int, piece: Piece, began_s: float, now_s: float) -> None:
        """A piece has left; it is there at once, but for others that go to the same device. The
        last of its frames is read when all others have been.
        """
        wires, to = self._wires, piece.to
        device, cost = self._devices[to], wires.costs[to]
        spent_s = piece.size_bytes * cost.receive_s_per_byte
        spent_s += piece.frames * cost.receive_s_per_frame
        free_s = device.in_free_s
        if free_s < began_s:
            free_s = began_s
        free_s += piece.size_bytes / wires.bytes_per_s[origin][to]
        device.in_free_s = free_s
        there_s = free_s - wires.burst_s[origin][to]
        if there_s < now_s:
            there_s = now_s
        there_s += wires.latency_s[origin][to] + spent_s / piece.frames
        read_s = device.reading_until_s + spent_s
        if read_s < there_s:
            read_s = there_s
        device.reading_until_s = read_s
        self._at(read_s, _Happens.COME, to, piece, spent_s)

    def _come(self, index: int, piece: Piece, spent_s: float, now_s: float) -> None:
        """A piece can be computed with."""
        device = self._devices[index]
        device.have.add(piece.key)
        if device.chunk is None:
            self._go_on(index, now_s)
        elif not self._wires.costs[index].own_core:
            device.lost_s += spent_s

    def _go_on(self, index: int, now_s: float) -> None:
        """With the chain that has come least far of those that can."""
        device = self._devices[index]
        best, fewest = -1, 0
        for number, chain in enumerate(device.program):
            step = device.next_chunk[number]
            if step == len(chain) or (best >= 0 and fewest <= step):
                continue
            if device.have.issuperset(chain[step].needs):
                best, fewest = number, step
        if best >= 0:
            chunk = device.chunk = device.program[best][fewest]
            device.began_s = now_s
            device.next_chunk[best] = fewest + 1
            self._at(now_s + chunk.compute_s, _Happens.DONE, index)

    def _at(
        self,
        at_s: float,
        happens: _Happens,
        index: int,
        piece: Piece | None = None,
        seconds: float = 0.0,
    ) -> None:
        self._count += 1
        heappush(self._events, (at_s, self._count, happens, index, piece, seconds))


def _counts(program: Program, layers: int) -> list[int]:
    counts = [0] * layers
    for chain in program:
        for chunk in chain:
            counts[chunk.layer] += 1
    return counts

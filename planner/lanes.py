"""A group at work, simulated: compute threads, chains of work on them, and the wire in between.

Each device has one compute thread. Its chains take turns on it as `runtime.walks.chains` lets
them: of those that can go on, the one that has come least far. What a link carries it carries in
order, out of a device one piece after the other, and into a device as well. Sending and receiving
cost processor time, which the compute thread loses where both share a core.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf

from mesh.ids import PeerId
from planner.network import Links, is_usable
from planner.profile import DeviceProfile, WireCost

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
    costs: tuple[WireCost, ...]

    @property
    def is_whole(self) -> bool:
        """Whether every link was measured."""
        return all(speed > 0 for row in self.bytes_per_s for speed in row)


def wires_of(devices: Sequence[DeviceProfile], links: Links) -> Wires:
    """A link that nobody measured carries nothing."""

    def number(source: PeerId, target: PeerId, *, speed: bool) -> float:
        link = links.get((source, target))
        if source == target:
            return inf if speed else 0.0
        if link is None or not is_usable(link):
            return 0.0
        return link.bytes_per_s if speed else link.round_trip_s / 2 + HANDOFF_S

    ids = [device.device for device in devices]
    speeds = tuple(tuple(number(a, b, speed=True) for b in ids) for a in ids)
    latencies = tuple(tuple(number(a, b, speed=False) for b in ids) for a in ids)
    costs = tuple(device.wire or TYPICAL_WIRE for device in devices)
    return Wires(speeds, latencies, costs)


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


@dataclass(slots=True)
class _Device:
    program: Program
    next_chunk: list[int]  # of each chain
    left: list[int]  # chunks of each layer that are not done
    have: set[Key] = field(default_factory=set)
    chunk: Chunk | None = None  # under way
    began_s: float = 0.0
    lost_s: float = 0.0  # of it, to sending and receiving
    out_free_s: float = 0.0  # its link, in each direction
    in_free_s: float = 0.0
    sending_until_s: float = 0.0  # its processor, with the wire
    reading_until_s: float = 0.0


class _Simulation:
    """Events in the order of their time: a chunk is done, a piece is there."""

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
        self._events: list[tuple[float, int, int, Key | None, float]] = []
        self._count = 0

    def run(self) -> None:
        for index in range(len(self._devices)):
            self._go_on(index, 0.0)
        while self._events:
            now_s, _, index, key, cost_s = heappop(self._events)
            device = self._devices[index]
            if key is not None:
                device.have.add(key)
                if device.chunk is None:
                    self._go_on(index, now_s)
                elif not self._wires.costs[index].own_core:
                    device.lost_s += cost_s
            elif device.lost_s > 0:
                self._event(now_s + device.lost_s, index)
                device.lost_s = 0.0
            else:
                self._done(index, now_s)

    def _done(self, index: int, now_s: float) -> None:
        device = self._devices[index]
        chunk, device.chunk = device.chunk, None
        assert chunk is not None, "what is done was under way"
        if self._trace is not None:
            self._trace.append(Busy(index, False, device.began_s, now_s))
        device.have.update(chunk.marks)
        device.left[chunk.layer] -= 1
        if not device.left[chunk.layer]:
            self.finished[index][chunk.layer] = now_s
        spent_s = sum(self._send(index, piece, now_s) for piece in chunk.pieces)
        self._go_on(index, now_s)
        if device.chunk is not None and not self._wires.costs[index].own_core:
            device.lost_s += spent_s

    def _send(self, index: int, piece: Piece, now_s: float) -> float:
        """Puts a piece on its way; the processor time that it takes here."""
        sender, receiver, wires = self._devices[index], self._devices[piece.to], self._wires
        cost, theirs = wires.costs[index], wires.costs[piece.to]
        out_s = piece.size_bytes * cost.send_s_per_byte + piece.frames * cost.send_s_per_frame
        in_s = piece.size_bytes * theirs.receive_s_per_byte
        in_s += piece.frames * theirs.receive_s_per_frame
        # Frame by frame: the first leaves while others are still made, and the last is read when
        # all others have been.
        ready_s = max(sender.sending_until_s, now_s)
        sender.sending_until_s = ready_s + out_s
        wire_s = piece.size_bytes / wires.bytes_per_s[index][piece.to]
        begin_s = max(sender.out_free_s, ready_s + out_s / piece.frames)
        sender.out_free_s = max(begin_s + wire_s, sender.sending_until_s)
        if self._trace is not None:
            self._trace.append(Busy(index, True, begin_s, sender.out_free_s))
        receiver.in_free_s = max(sender.out_free_s, receiver.in_free_s + wire_s)
        there_s = receiver.in_free_s + wires.latency_s[index][piece.to]
        receiver.reading_until_s = max(
            receiver.reading_until_s + in_s, there_s + in_s / piece.frames
        )
        self._event(receiver.reading_until_s, piece.to, piece.key, in_s)
        return out_s

    def _go_on(self, index: int, now_s: float) -> None:
        """With the chain that has come least far of those that can."""
        device = self._devices[index]
        best: int | None = None
        for number, chain in enumerate(device.program):
            step = device.next_chunk[number]
            if step == len(chain) or (best is not None and device.next_chunk[best] <= step):
                continue
            if device.have.issuperset(chain[step].needs):
                best = number
        if best is not None:
            device.chunk = device.program[best][device.next_chunk[best]]
            device.began_s = now_s
            device.next_chunk[best] += 1
            self._event(now_s + device.chunk.compute_s, index)

    def _event(self, at_s: float, index: int, key: Key | None = None, cost_s: float = 0.0) -> None:
        self._count += 1
        heappush(self._events, (at_s, self._count, index, key, cost_s))


def _counts(program: Program, layers: int) -> list[int]:
    counts = [0] * layers
    for chain in program:
        for chunk in chain:
            counts[chunk.layer] += 1
    return counts

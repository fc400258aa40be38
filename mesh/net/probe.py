"""What a tensor link can carry, measured through that very link: latency, then bytes per second;
and what both take of the processor.
"""

from __future__ import annotations

import asyncio
import time
from statistics import median
from typing import NamedTuple

from mesh.ids import Epoch, PlanId, SessionId
from mesh.limits import MAX_PROBE_BYTES, PROBE_BUDGET_S, TENSOR_TILE_BYTES
from mesh.net.send_stream import SendStream
from mesh.tensor_frame import DType, FrameHeader, Kind

_ECHOES = 5
_BURSTS = 3
_BURST_BYTES = TENSOR_TILE_BYTES // 2  # the most that is looked for
_PAUSE_S = 0.05  # for whatever shapes a link to be ready for a burst again


class LinkMeasure(NamedTuple):
    """`frame_s` and `byte_s` are seconds of the processor, of the thread alone that sends: others
    may compute meanwhile.
    """

    round_trip_s: float
    bytes_per_s: float
    frame_s: float
    byte_s: float
    burst_bytes: float = 0.0  # that go through at once, after a pause


async def measure_stream(stream: SendStream) -> LinkMeasure:
    """Sends probes that the receiver only acknowledges; no more than MAX_PROBE_BYTES of them."""
    await _echo(stream)  # what only the first takes
    began_s = time.thread_time()
    round_trip_s = min([await _echo(stream) for _ in range(_ECHOES)])
    frame_s = (time.thread_time() - began_s) / _ECHOES
    began_s = time.thread_time()
    bytes_per_s, frames = await _speed(stream, round_trip_s)
    spent_s = time.thread_time() - began_s - frames * frame_s
    byte_s = max(0.0, spent_s) / (frames * TENSOR_TILE_BYTES)
    burst_bytes = await _burst(stream, bytes_per_s)
    return LinkMeasure(round_trip_s, bytes_per_s, frame_s, byte_s, burst_bytes)


async def _echo(stream: SendStream) -> float:
    clock = asyncio.get_running_loop().time
    began_s = clock()
    await stream.arrived(await stream.put(_header(stream, 1), memoryview(b"\0")))
    return clock() - began_s


async def _speed(stream: SendStream, round_trip_s: float) -> tuple[float, int]:
    """Bytes a second, and how many tiles were sent to know it.

    A first tile opens TCP's window, and is the whole answer on a link that it keeps busy.
    """
    payload = memoryview(bytes(TENSOR_TILE_BYTES))
    first_s = await _timed(stream, payload, 1)
    most = (MAX_PROBE_BYTES - 2 * _BURSTS * _BURST_BYTES) // len(payload) - 1
    tiles = min(most, int(PROBE_BUDGET_S / first_s))
    took_s = await _timed(stream, payload, tiles) if tiles > 1 else first_s
    sent = tiles + 1 if tiles > 1 else 1
    # The last acknowledgement comes half a round trip late, the first byte as much.
    return max(tiles, 1) * len(payload) / max(took_s - round_trip_s, took_s / 2), sent


async def _burst(stream: SendStream, bytes_per_s: float) -> float:
    """What goes through at once after a pause, as a shaper lets it: the second of two messages then
    takes longer than the first. The median of a few, for much else makes a message late.
    """
    took_s = _BURST_BYTES / bytes_per_s
    if 4 * _BURSTS * took_s > PROBE_BUDGET_S:
        return 0.0  # on a link so slow it would be little beside all else
    payload, ahead_s = memoryview(bytes(_BURST_BYTES)), []
    for _ in range(_BURSTS):
        await asyncio.sleep(min(2 * took_s, _PAUSE_S))
        first_s = await _timed(stream, payload, 1)
        ahead_s.append(await _timed(stream, payload, 1) - first_s)
    return min(max(0.0, median(ahead_s)) * bytes_per_s, _BURST_BYTES)


async def _timed(stream: SendStream, payload: memoryview, tiles: int) -> float:
    clock = asyncio.get_running_loop().time
    header = _header(stream, len(payload))
    began_s, last = clock(), 0
    for _ in range(tiles):
        last = await stream.put(header, payload)
    await stream.arrived(last)
    return clock() - began_s


def _header(stream: SendStream, width: int) -> FrameHeader:
    return FrameHeader(
        epoch=Epoch(0, stream.peer),
        plan=PlanId("0" * 32),
        session=SessionId("0" * 32),
        kind=Kind.PROBE,
        dtype=DType.UINT8,
        choose=False,
        position=0,
        rows=1,
        row=0,
        tile_rows=1,
        width=width,
    )

"""Devices as processes of this machine: real daemons on loopback, to be watched and to be killed.

The demo, the chaos runs and the end-to-end tests all stand on it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apps.client import Client, SocketFactory
from mesh.errors import PotluckError

START_TIMEOUT_S = 60.0  # importing torch from a cold disk on a slow machine
STOP_TIMEOUT_S = 10.0
MAX_LINE_BYTES = 1 << 20  # an event line with a long reason

Event = dict[str, Any]


class DeviceFailed(PotluckError):
    """A daemon did not start, or ended when it should not have; the text is its own."""


@dataclass(slots=True)
class Device:
    """One daemon. Its events arrive as JSON lines, stamped by the clock that all of them share."""

    name: str
    home: Path
    options: Sequence[str] = ()
    interface: str = "lo"
    launcher: Sequence[str] = ()  # put before the command: `ip netns exec NAME`, a cgroup, ...
    socket_factory: SocketFactory | None = None  # for a device in a namespace of its own
    events: list[Event] = field(default_factory=list)
    device_id: str = ""
    api_port: int = 0
    _process: asyncio.subprocess.Process | None = None
    _reader: asyncio.Task[None] | None = None
    _grown: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Starts the daemon and waits until it is up. Raises DeviceFailed with what it said."""
        command: tuple[str, ...] = (
            *(*self.launcher, sys.executable, "-m", "apps.cli", "up", "--json"),
            *("--name", self.name, "--home", str(self.home), "--interface", self.interface),
            *("--device", "cpu"),  # an accelerator of this machine is not to be shared by several
            *self.options,
        )
        self._add({"event": "starting", "at_s": time.monotonic()})
        self._process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
            limit=MAX_LINE_BYTES,
        )
        first = len(self.events)
        # Reads until the process ends; `stop` and `kill` wait for it.
        self._reader = asyncio.create_task(self._read(self._process))
        event = await self.wait_event(
            lambda event: event["event"] in ("up", "ended"), after=first, timeout_s=START_TIMEOUT_S
        )
        if event["event"] == "ended":
            raise DeviceFailed(f"{self.name} did not start: {event['text']}")
        self.device_id, self.api_port = event["id"], event["api_port"]

    async def join(self, code: str) -> None:
        """`potluck join CODE`. Raises DeviceFailed with what it said."""
        process = await asyncio.create_subprocess_exec(
            *(*self.launcher, sys.executable, "-m", "apps.cli", "join", code),
            *("--home", str(self.home), "--interface", self.interface),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await process.communicate()
        if process.returncode != 0:
            raise DeviceFailed(f"{self.name} did not join: {said.decode(errors='replace')}")

    async def kill(self) -> float:
        """SIGKILL, as when the plug is pulled on the process; returns the time of it."""
        assert self._process is not None
        at_s = time.monotonic()
        self._process.send_signal(signal.SIGKILL)
        await self._ended()
        return at_s

    async def stop(self) -> None:
        """SIGTERM; SIGKILL if it does not listen. Fine for one that has ended already."""
        if not self.running:
            return
        assert self._process is not None
        self._process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
        await self._ended()

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def client(self) -> Client:
        return Client(self.api_port, self.socket_factory)

    async def wait_event(
        self, wanted: Callable[[Event], bool], *, after: int = 0, timeout_s: float
    ) -> Event:
        """The first event after number `after` that is wanted. Raises TimeoutError."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    for event in self.events[after:]:
                        if wanted(event):
                            return event
                    after = len(self.events)
                    self._grown.clear()
                    await self._grown.wait()
        except TimeoutError:
            tail = "; ".join(str(event.get("text", event["event"])) for event in self.events[-5:])
            raise TimeoutError(
                f"{self.name}: not within {timeout_s:.0f} s; last said: {tail}"
            ) from None

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        errors = asyncio.ensure_future(process.stderr.read())
        async for line in process.stdout:
            self._add(json.loads(line))
        text = (await errors).decode(errors="replace").strip()
        await process.wait()
        self._add({"event": "ended", "text": text, "at_s": time.monotonic()})

    def _add(self, event: Event) -> None:
        self.events.append(event)
        self._grown.set()

    async def _ended(self) -> None:
        assert self._reader is not None
        await self._reader

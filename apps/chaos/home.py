"""A home of real daemons on this machine, all of one mesh, to which things are going to happen."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from apps.bench.lan import Lan
from apps.chaos.case import TOKENS
from apps.chaos.equipment import Equipment, SmallDisk, WallClock
from apps.local_mesh import Device
from apps.measure import Generation, generate
from mesh.config import StateFolder
from mesh.trust import MeshSecret

MEET_TIMEOUT_S = 60.0
POLL_S = 0.05  # between two looks at whether the home has settled


class Home:
    """A mesh of `count` daemons that have met."""

    def __init__(
        self,
        devices: list[Device],
        lan: Lan | None = None,
        disks: Collection[SmallDisk] = (),
        clocks: Collection[WallClock] = (),
    ) -> None:
        self.devices = devices
        self.lan = lan
        self.disks = tuple(disks)  # one a device, where the home is equipped with them
        self.clocks = tuple(clocks)
        self._undisturbed: dict[tuple[str, str], Generation] = {}

    @classmethod
    @asynccontextmanager
    async def of(
        cls,
        count: int,
        memory: str,
        *,
        equipment: Equipment = Equipment(),  # noqa: B008 (a frozen value)
        sessions: int = 4,
        context: int = 32768,
    ) -> AsyncIterator[Home]:
        """Devices start, meet, and are stopped in the end. Raises OSError or RuntimeError where the
        machine refuses the equipment, DeviceFailed for a daemon that does not start.
        """
        async with AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="potluck-")))
            lan = stack.enter_context(Lan(count)) if equipment.network else None
            disks, clocks = [], []
            for index in range(count):
                (folder / str(index)).mkdir(mode=0o700)
                if equipment.disks:
                    disks.append(SmallDisk(folder / str(index)))
                    stack.callback(disks[-1].remove)
                if equipment.clocks:
                    clocks.append(WallClock(folder / f"{index}.clock"))
            if clocks:
                clocks[0].jump_to_1970()  # one device does not know the time
            options = (
                *("--memory", memory, "--sessions", str(sessions), "--context", str(context)),
                *("--port", "0", "--api-port", "0"),
            )
            secret = MeshSecret.new()
            devices = []
            for index in range(count):
                secret.save(StateFolder.open(folder / str(index)))
                devices.append(
                    Device(
                        f"device{index}",
                        folder / str(index),
                        options,
                        "eth0" if lan else "lo",
                        (
                            *(lan.launcher(index) if lan else ()),
                            *(clocks[index].launcher if clocks else ()),
                        ),
                        lan.socket_factory(index) if lan else None,
                    )
                )
            stack.push_async_callback(_stop_all, devices)
            await asyncio.gather(*(device.start() for device in devices))
            home = cls(devices, lan, disks, clocks)
            await home.settled()
            yield home

    async def settled(self, timeout_s: float = MEET_TIMEOUT_S) -> None:
        """Waits until every running device sees all of them alive under one leader.

        Raises TimeoutError with what they see instead.
        """
        running = [device for device in self.devices if device.running]
        ids = {device.device_id for device in running}
        seen: dict[str, Any] = {}
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    for device in running:
                        seen[device.name] = _seen(await mesh_status(device))
                    leaders = {leader for _, leader in seen.values()}
                    met = all(alive == ids for alive, _ in seen.values())
                    if met and len(leaders) == 1 and leaders <= ids:
                        return
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise TimeoutError(f"no one view within {timeout_s:g} s: {seen}") from None

    async def undisturbed(self, model: str, prompt: str, tokens: int = TOKENS) -> Generation:
        """What this prompt gives when nothing happens; generated once."""
        if (model, prompt) not in self._undisturbed:
            self._undisturbed[model, prompt] = await generate(
                self.devices[0], model, prompt, tokens
            )
        return self._undisturbed[model, prompt]

    async def leader(self, asked: Device) -> str | None:
        """The id of whom this device follows."""
        leader: str | None = (await mesh_status(asked))["leader"]
        return leader

    def named(self, device_id: str | None) -> Device | None:
        return next((one for one in self.devices if one.device_id == device_id), None)


async def status_of(device: Device) -> dict[str, Any]:
    async with device.client() as client:
        return await client.get("/potluck/status")


async def mesh_status(device: Device) -> dict[str, Any]:
    body: dict[str, Any] = (await status_of(device))["mesh"]
    return body


def _seen(view: dict[str, Any]) -> tuple[set[str], str | None]:
    return {one["id"] for one in view["members"] if one["health"] == "alive"}, view["leader"]


async def _stop_all(devices: list[Device]) -> None:
    await asyncio.gather(*(device.stop() for device in devices))

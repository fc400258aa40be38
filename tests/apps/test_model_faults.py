"""Transfers between real daemons over a slow link: sources that die or have rotted, a device that
is killed while it pulls.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from apps.bench.lan import why_not
from apps.chaos.equipment import Equipment
from apps.chaos.home import Home
from apps.client import ApiError
from apps.local_mesh import Device
from runtime.stored.layout import files_of, layout_of
from runtime.stored.manifest import Manifest, make_manifest
from runtime.weights import Checkpoint
from tests.apps.test_models_mesh import fetched, get, put
from tests.runtime.tiny_model import write_tiny_gemma

pytestmark = [
    pytest.mark.lan,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("model_faults"),
]

MBIT = 12  # 6 MB take 4 s


@dataclass(frozen=True, slots=True)
class Street:
    """Two devices that have the model whole, and one that has nothing and a slow link."""

    home: Home
    data: bytes
    manifest: Manifest

    @property
    def taker(self) -> Device:
        return self.home.devices[2]

    def copy(self, device: int) -> Path:
        return self.home.devices[device].home / "models/house.gguf"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def street(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Street]:
    if reason := why_not():
        pytest.skip(reason)
    path = write_tiny_gemma(
        tmp_path_factory.mktemp("house") / "house.gguf",
        **{"layers": 6, "hidden": 256, "heads": 8, "head_dim": 32, "ffn": 1024, "seed": 3},
    )
    checkpoint = Checkpoint.open(path)
    manifest = make_manifest(checkpoint.model_id, layout_of(checkpoint), files_of(checkpoint))
    async with asyncio.timeout(90):
        manager = Home.of(3, "500MB", equipment=Equipment(network=True), sessions=1, context=64)
        home = await manager.__aenter__()
    try:
        assert home.lan is not None
        home.lan.shape(2, MBIT, MBIT)
        for device in home.devices[:2]:
            put(device, path)
        yield Street(home, path.read_bytes(), manifest)
    finally:
        await manager.__aexit__(None, None, None)


async def pull(street: Street) -> str:
    """How it came. Raises ApiError in the daemon's words."""
    async with street.taker.client() as client:
        reports = [one async for one in client.stream("/potluck/pull", {"source": "house"})]
    return str(reports[-1]["how"])


async def forget(street: Street) -> None:
    async with street.taker.client() as client:
        with suppress(ApiError):  # whichever test comes first, nothing of it is there yet
            await client.post("/potluck/rm", {"name": "house"})
    assert not street.copy(2).exists()


async def until_under_way(street: Street, share: float) -> None:
    async with asyncio.timeout(30):
        while True:
            for one in (await get(street.taker, "/potluck/transfers"))["transfers"]:
                if one["done_bytes"] > share * street.manifest.size_bytes:
                    return
            await asyncio.sleep(0.05)


async def test_two_devices_give_and_one_of_them_dies(street: Street) -> None:
    pulling = asyncio.create_task(pull(street))
    await until_under_way(street, 0.3)
    await street.home.devices[1].kill()
    async with asyncio.timeout(30):
        assert await pulling == "from the other devices"
    assert street.copy(2).read_bytes() == street.data
    (last,) = [e for e in street.taker.events if e["event"] == "fetched"][-1:]
    assert last["sources"].keys() == {"device0", "device1"}
    await street.home.devices[1].start()
    await street.home.settled()
    await forget(street)


async def test_a_device_that_is_killed_goes_on_with_what_it_had(street: Street) -> None:
    pulling = asyncio.create_task(pull(street))
    await until_under_way(street, 0.75)
    await street.taker.kill()
    with pytest.raises(Exception, match="daemon"):
        await pulling
    assert not street.copy(2).exists(), "half a model was offered"
    await street.taker.start()
    await street.home.settled()
    after = len(street.taker.events)
    body = await get(street.taker, "/potluck/models")
    (entry,) = [model for model in body["models"] if model["name"] == "house"]
    (here,) = [one for one in entry["devices"] if one["device"] == "device2"]
    assert 0 < here["have_bytes"] < street.manifest.size_bytes
    await pull(street)
    assert street.copy(2).read_bytes() == street.data
    again = fetched(street.taker, after)
    assert again == street.manifest.size_bytes - here["have_bytes"]
    await forget(street)


async def test_a_copy_that_rots_is_named_and_its_pieces_come_from_the_other(
    street: Street,
) -> None:
    """Its manifest was made while it was right."""
    await pull(street)  # for which both devices make their manifests
    await forget(street)
    path = street.copy(1)
    stat = path.stat()
    with path.open("r+b") as file:  # in place: the daemon has the file mapped
        for index in range(len(street.manifest)):
            piece = street.manifest.piece(index)
            file.seek(piece.offset + piece.size_bytes // 2)
            file.write(b"\xff\x00\xff")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = len(street.taker.events)
    said: list[str] = []
    for _ in range(5):  # until it is asked at all: on a busy machine the other one may give it all
        assert await pull(street) == "from the other devices"
        assert street.copy(2).read_bytes() == street.data
        said = [e["text"] for e in street.taker.events[after:] if e["event"] == "damaged-piece"]
        if said:
            break
        await forget(street)
    assert said
    assert all("device1 gave a damaged piece of house" in text for text in said)


async def test_without_any_source_the_error_says_what_is_missing(street: Street) -> None:
    await forget(street)
    pulling = asyncio.create_task(pull(street))
    await until_under_way(street, 0.2)
    await asyncio.gather(*(device.kill() for device in street.home.devices[:2]))
    with pytest.raises(ApiError, match=r"no device here (gives|has) .* of house.*is kept"):
        async with asyncio.timeout(40):
            await pulling
    assert not street.copy(2).exists()

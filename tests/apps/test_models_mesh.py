"""Models over a mesh of real daemons, of which only the first has the file on its disk."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from apps.chaos.home import Home
from apps.client import ApiError
from apps.local_mesh import Device
from apps.measure import generate
from apps.planning.profiles import SCRATCH_BYTES
from planner.plan import Span
from runtime.stored.layout import files_of, layout_of, share_of
from runtime.stored.manifest import Manifest, make_manifest
from runtime.text.tokenizer import Tokenizer
from runtime.weights import Checkpoint
from tests.apps.conftest import CONTEXT, SESSIONS, needed_bytes
from tests.apps.test_cli import potluck
from tests.runtime.tiny_model import write_tiny_gemma
from tests.runtime.whole_model import WholeModel

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("models_mesh")]

TOKENS = 12


@dataclass(frozen=True, slots=True)
class House:
    """Three devices; the file is in the first one's folder, called `house`."""

    home: Home
    checkpoint: Checkpoint
    manifest: Manifest

    @property
    def devices(self) -> list[Device]:
        return self.home.devices

    def share_bytes(self, layers: list[int] | None) -> int:
        """What a device with these layers has to get, opening and all."""
        ranges = share_of(self.checkpoint, Span(*layers)) if layers else ()
        pieces = {*self.manifest.pieces_of(ranges), *self.manifest.opening_pieces}
        return sum(map(self.manifest.size_of, pieces))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    path = write_tiny_gemma(
        tmp_path_factory.mktemp("house") / "house.gguf",
        **{"layers": 6, "hidden": 256, "heads": 8, "head_dim": 32, "ffn": 1024, "seed": 3},
    )
    checkpoint = Checkpoint.open(path)
    manifest = make_manifest(checkpoint.model_id, layout_of(checkpoint), files_of(checkpoint))
    memory = SCRATCH_BYTES + (needed_bytes(checkpoint) - SCRATCH_BYTES) * 2 // 3
    async with asyncio.timeout(90):
        manager = Home.of(3, str(memory), sessions=SESSIONS, context=CONTEXT)
        home = await manager.__aenter__()
    try:
        put(home.devices[0], path)
        yield House(home, checkpoint, manifest)
    finally:
        await manager.__aexit__(None, None, None)


def put(device: Device, path: Path) -> None:
    folder = device.home / "models"
    folder.mkdir(exist_ok=True)
    (folder / path.name).write_bytes(path.read_bytes())


def partials(device: Device) -> list[Path]:
    return list((device.home / "models/.partial").glob("*/files/*"))


def fetched(device: Device, after: int = 0) -> int:
    """Bytes of pieces that came from the others."""
    return sum(e["bytes"] for e in device.events[after:] if e["event"] == "fetched")


async def get(device: Device, path: str) -> dict[str, Any]:
    async with device.client() as client:
        return await client.get(path)


async def layers_by_device(device: Device) -> dict[str, list[int]]:
    (plan,) = (await get(device, "/potluck/status"))["plans"]
    return {stage["device"]: stage["layers"] for stage in plan["stages"]}


async def test_a_device_runs_a_model_that_only_another_one_has(house: House) -> None:
    """And each device gets only what its share needs, and the opening."""
    texts = [await generate(device, "house", "the cat", TOKENS) for device in house.devices[::-1]]
    assert len({tuple(text.token_ids) for text in texts}) == 1
    assert len(texts[0].token_ids) == TOKENS
    layers = await layers_by_device(house.devices[0])
    assert len(layers) >= 2
    for device in house.devices[1:]:
        needed = house.share_bytes(layers.get(device.device_id))
        assert needed <= fetched(device) <= needed * 1.05
        assert all(path.stat().st_size == house.manifest.size_bytes for path in partials(device))
    assert fetched(house.devices[0]) == 0


async def test_the_text_is_that_of_the_whole_file(house: House) -> None:
    """Not a single hole was read as a weight."""
    here = await generate(house.devices[1], "house", "the cat", TOKENS)
    prompt = Tokenizer.from_gguf(house.checkpoint.file).encode("the cat")
    assert here.token_ids == WholeModel(house.checkpoint).generate(prompt, TOKENS)[0]


async def test_a_second_run_fetches_nothing(house: House) -> None:
    await generate(house.devices[2], "house", "the hat", TOKENS)
    before = [len(device.events) for device in house.devices]
    await generate(house.devices[2], "house", "the rat", TOKENS)
    for device, after in zip(house.devices, before, strict=True):
        assert not [e for e in device.events[after:] if e["event"] == "fetching"]


async def test_a_restarted_device_still_has_its_share(house: House) -> None:
    await generate(house.devices[0], "house", "the cat", TOKENS)
    layers = await layers_by_device(house.devices[0])
    victim = next(d for d in house.devices[1:] if d.device_id in layers)
    await victim.kill()
    await victim.start()
    after = len(victim.events)
    await house.home.settled()
    await generate(house.devices[0], "house", "the cat", TOKENS)
    again = await layers_by_device(house.devices[0])
    if again.get(victim.device_id) == layers[victim.device_id]:
        assert fetched(victim, after) == 0


async def test_list_shows_who_has_what(house: House) -> None:
    await generate(house.devices[0], "house", "the cat", TOKENS)
    body = await get(house.devices[1], "/potluck/models")
    (entry,) = [model for model in body["models"] if model["name"] == "house"]
    have = {one["device"]: one["have_bytes"] for one in entry["devices"]}
    assert have["device0"] == entry["size_bytes"] == house.manifest.size_bytes
    assert 0 < have["device1"] < entry["size_bytes"]
    done = await asyncio.to_thread(potluck, "list", home=house.devices[1].home)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("house"))
    assert "%" in line
    assert "device0" in line


async def test_ps_shows_what_is_loaded_where(house: House) -> None:
    await generate(house.devices[0], "house", "the cat", TOKENS)
    layers = await layers_by_device(house.devices[0])
    body = await get(house.devices[2], "/potluck/ps")
    for one in body["devices"]:
        held = layers.get(one["id"])
        assert [model["layers"] for model in one["models"]] == (
            [list(range(*held))] if held else []
        )
        assert all(model["model"] == "Tiny Gemma" for model in one["models"])
        assert all(model["size_bytes"] > 0 for model in one["models"])
    done = await asyncio.to_thread(potluck, "ps", home=house.devices[2].home)
    assert done.returncode == 0, done.stderr
    assert "Tiny Gemma" in done.stdout


async def test_what_runs_cannot_be_removed(house: House) -> None:
    await generate(house.devices[0], "house", "the cat", TOKENS)
    layers = await layers_by_device(house.devices[0])
    user = next(device for device in house.devices if device.device_id in layers)
    done = await asyncio.to_thread(potluck, "rm", "house", home=user.home)
    assert done.returncode == 1
    assert "loaded here" in done.stderr
    again = await generate(house.devices[0], "house", "the cat", TOKENS)
    assert len(again.token_ids) == TOKENS


@pytest.mark.parametrize(
    "name", ["nothing", "../device.key", "/etc/passwd", "device.key", ".partial"]
)
async def test_only_a_model_of_the_folder_can_be_removed(house: House, name: str) -> None:
    done = await asyncio.to_thread(potluck, "rm", name, home=house.devices[0].home)
    assert done.returncode == 1
    assert "no model called" in done.stderr
    assert (house.devices[0].home / "device.key").exists()


async def test_a_name_that_no_device_knows(house: House) -> None:
    with pytest.raises(ApiError, match="no model is called 'castle'"):
        await generate(house.devices[1], "castle", "the cat", TOKENS)


async def test_pull_brings_the_rest_from_the_others_and_rm_frees_it(house: House) -> None:
    """A partial model becomes an ordinary one: same bytes, and nothing left beside it."""
    layers = await layers_by_device(house.devices[0])
    puller = house.devices[2] if house.devices[2].device_id not in layers else house.devices[1]
    before = fetched(puller)
    done = await asyncio.to_thread(potluck, "pull", "house", "--json", home=puller.home)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["name"] == "house"
    copy = puller.home / "models/house.gguf"
    assert copy.read_bytes() == house.checkpoint.path.read_bytes()
    assert fetched(puller) == house.manifest.size_bytes
    assert fetched(puller) - before < house.manifest.size_bytes, "what was here came again"
    assert not partials(puller)
    again = await asyncio.to_thread(potluck, "pull", "house", "--json", home=puller.home)
    assert "already" in json.loads(again.stdout)["how"]
    if puller.device_id not in await layers_by_device(house.devices[0]):  # now: plans change
        done = await asyncio.to_thread(potluck, "rm", "house", home=puller.home)
        assert done.returncode == 0, done.stderr
        assert not copy.exists()
    await generate(puller, "house", "the cat", TOKENS)


async def test_a_pull_from_nowhere_is_told_in_words(house: House) -> None:
    for source, words in (("castle", "no model is called"), ("/no/such.gguf", "no model at")):
        done = await asyncio.to_thread(potluck, "pull", source, home=house.devices[1].home)
        assert done.returncode == 1
        assert words in done.stderr
        assert "Traceback" not in done.stderr

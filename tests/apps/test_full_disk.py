"""Reliability test 24 on a real disk that is full: a small tmpfs under one device's folder."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from apps.local_mesh import Device
from apps.measure import generate, generate_and
from mesh.config import StateFolder
from mesh.trust import MeshSecret
from tests.chaos import Home

pytestmark = [pytest.mark.lan, pytest.mark.xdist_group("tiny_mesh")]

OPTIONS = ("--memory", "300MB", "--sessions", "1", "--context", "128", "--port", "0")
TOKENS = 40


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    command = ("mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "none", str(folder))
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(("umount", str(folder)), check=True)


def fill(folder: Path) -> Path:
    """Takes every block that is left."""
    path = folder / "ballast"
    with path.open("wb", buffering=0) as ballast, suppress(OSError):
        while True:
            ballast.write(bytes(4096))
    return path


async def test_a_device_with_a_full_disk_goes_on_and_starts_again(
    small_disk: Path, tmp_path: Path, tiny_path: Path
) -> None:
    secret = MeshSecret.new()
    homes = [small_disk, tmp_path / "other"]
    for home in homes:
        secret.save(StateFolder.open(home))
    devices = [
        Device(f"device{n}", home, (*OPTIONS, "--api-port", "0")) for n, home in enumerate(homes)
    ]
    full, other = devices
    model = str(tiny_path)
    try:
        async with asyncio.timeout(90):
            await asyncio.gather(*(device.start() for device in devices))
            mesh = Home(devices, None)
            await mesh.settled()
            expected = (await generate(full, model, "the cat", TOKENS)).token_ids

            async def run_full() -> None:
                fill(small_disk)

            hurt = await generate_and(full, model, "the cat", TOKENS, 5, run_full)
            assert hurt.token_ids == expected
            await other.kill()  # whoever led: what is left must take a new epoch, on a full disk
            assert (await generate(full, model, "the cat", TOKENS)).token_ids == expected
            await other.start()
            await mesh.settled()
            assert (await generate(other, model, "the cat", TOKENS)).token_ids == expected
            async with full.client() as client:
                assert (await client.get("/potluck/status"))["trouble"] == ""
            assert full.running
            (small_disk / "ballast").unlink()
            await full.stop()
            await full.start()
            await mesh.settled()
    finally:
        await asyncio.gather(*(device.stop() for device in devices))

"""The command as a person types it: what it prints, how it exits, what its errors say."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mesh.config import StateFolder
from mesh.keyring import Keyring
from mesh.trust import MeshSecret
from tests.apps.conftest import TinyMesh

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("tiny_mesh")]


def potluck(
    *words: str, home: Path | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Runs the command without blocking the pipes of the daemons for long."""
    where = ("--home", str(home)) if home else ()
    return subprocess.run(
        [sys.executable, "-m", "apps.cli", *words, *where],
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )


async def on(mesh: TinyMesh, *words: str, device: int = 0) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(potluck, *words, home=mesh.home.devices[device].home)


async def test_run_prints_the_text_and_its_speed(tiny_mesh: TinyMesh) -> None:
    words = ("run", tiny_mesh.model, "the cat", "--max-tokens", "8", "--temperature", "0")
    plain = await on(tiny_mesh, *words)
    assert plain.returncode == 0, plain.stderr
    answer = json.loads((await on(tiny_mesh, *words, "--json")).stdout)
    assert plain.stdout.rstrip("\n") == answer["text"].rstrip("\n")
    assert "tokens/s" in plain.stderr
    assert len(answer["token_ids"]) == 8


async def test_run_reads_its_prompt_from_a_pipe(tiny_mesh: TinyMesh) -> None:
    home = tiny_mesh.owner.home
    words = ("run", tiny_mesh.model, "--max-tokens", "4", "--temperature", "0", "--json")
    done = await asyncio.to_thread(potluck, *words, home=home, input="the cat")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["token_ids"]) == 4


async def test_status_names_every_device_and_the_leader(tiny_mesh: TinyMesh) -> None:
    done = await on(tiny_mesh, "status")
    assert done.returncode == 0, done.stderr
    assert all(f"device{n}" in done.stdout for n in range(3))
    assert done.stdout.count("(leads)") == 1
    body = json.loads((await on(tiny_mesh, "status", "--json")).stdout)
    assert {member["health"] for member in body["mesh"]["members"]} == {"alive"}


async def test_plan_prints_each_way_and_the_reason(tiny_mesh: TinyMesh) -> None:
    done = await on(tiny_mesh, "plan", tiny_mesh.model)
    assert done.returncode == 0, done.stderr
    assert "short by" in done.stdout
    assert "predicted" in done.stdout
    body = json.loads((await on(tiny_mesh, "plan", tiny_mesh.model, "--json")).stdout)
    assert body["candidates"][0]["chosen"]


async def test_plan_draws_who_holds_what_and_when(tiny_mesh: TinyMesh, tmp_path: Path) -> None:
    picture = tmp_path / "plan.png"
    done = await on(tiny_mesh, "plan", tiny_mesh.model, "--png", str(picture))
    assert done.returncode == 0, done.stderr
    drawn = done.stdout.partition("who holds what")[2]
    assert "6 layers" in drawn
    assert "all layers with one token" in drawn
    assert picture.read_bytes().startswith(b"\x89PNG")
    done = await on(tiny_mesh, "plan", tiny_mesh.model, "--png", str(tmp_path / "no" / "plan.png"))
    assert done.returncode == 2
    assert "folder" in done.stderr


async def test_status_watches_what_every_device_measures(tiny_mesh: TinyMesh) -> None:
    words = ("run", tiny_mesh.model, "the cat sat", "--max-tokens", "12", "--json")
    done = await on(tiny_mesh, *words)
    assert done.returncode == 0, done.stderr
    body, text = await watched(tiny_mesh, "--json"), await watched(tiny_mesh)
    (model,) = json.loads(body)["models"]
    assert len(model["rows"]) >= 2  # no device holds all of it
    for row in model["rows"]:
        for kind in ("prefill", "decode"):
            assert row[kind]["predicted"]["compute_ms"] > 0
            assert row[kind]["measured"]["compute_ms"] > 0
        assert row["decode"]["measured"]["wire_ms"] > 0
        assert row["decode"]["measured"]["sent_kb"] > 0
        assert row["name"] in text
    assert model["decode"]["measured_ms"] > 0
    status = json.loads((await on(tiny_mesh, "status", "--json")).stdout)
    assert {one["plan_id"] for one in status["efforts"]} <= {model["plan_id"]}


async def watched(mesh: TinyMesh, *words: str) -> str:
    """The first thing that is shown; then Ctrl-C."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "apps.cli", "status", "--watch", *words),
        *("--home", str(mesh.owner.home)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    end = b"\n" if "--json" in words else b"ratio; ms"
    async with asyncio.timeout(30):
        shown = await process.stdout.readuntil(end)
    process.send_signal(signal.SIGINT)
    _, errors = await process.communicate()
    assert process.returncode == 130, errors
    assert b"Traceback" not in errors
    return shown.decode()


async def test_invite_and_join_bring_a_device_in(tiny_mesh: TinyMesh, tmp_path: Path) -> None:
    code = json.loads((await on(tiny_mesh, "invite", "--long", "--json")).stdout)["code"]
    assert code in (await on(tiny_mesh, "invite", "--long")).stdout
    done = await asyncio.to_thread(
        potluck, "join", code, "--interface", "lo", home=tmp_path / "new"
    )
    assert done.returncode == 0, done.stderr
    assert "The code is right" in done.stdout
    folder = StateFolder.open(tmp_path / "new")
    assert Keyring.load(folder) == Keyring(MeshSecret.from_join_code(code))
    assert folder.secret.stat().st_mode & 0o077 == 0


async def test_an_unreachable_peer_is_said_so(tiny_mesh: TinyMesh, tmp_path: Path) -> None:
    code = json.loads((await on(tiny_mesh, "invite", "--long", "--json")).stdout)["code"]
    done = await asyncio.to_thread(
        potluck, "join", code, "--peer", "127.0.0.1:9", "--interface", "lo", home=tmp_path / "new"
    )
    assert done.returncode == 1
    assert "127.0.0.1:9" in done.stderr


async def test_the_code_of_another_mesh_is_refused_by_its_members(
    tiny_mesh: TinyMesh, tmp_path: Path
) -> None:
    async with tiny_mesh.owner.client() as client:
        status = await client.get("/potluck/status")
    address = next(m["address"] for m in status["mesh"]["members"] if m["address"])
    code = MeshSecret.new().join_code
    done = await asyncio.to_thread(
        potluck, "join", code, "--peer", address, "--interface", "lo", home=tmp_path / "new"
    )
    assert done.returncode == 1
    assert "mesh" in done.stderr
    assert "Traceback" not in done.stderr
    assert Keyring.load(StateFolder.open(tmp_path / "new")) is None


async def test_doctor_sees_the_others_and_a_device_by_its_address(tiny_mesh: TinyMesh) -> None:
    done, asked = await asyncio.gather(  # each listens for some seconds
        on(tiny_mesh, "doctor", "--json"),
        on(tiny_mesh, "doctor", "127.0.0.1:9", "--interface", "lo"),
    )
    body = json.loads(done.stdout)
    found = {one["key"]: one["text"] for one in body["findings"]}
    assert done.returncode == 1
    assert "127.0.0.1" in found["loopback-only"]  # these daemons are for this machine alone
    assert found["meets"] == "this device meets device1 and device2"
    assert body["seen"]["heard"][0]["interface"] == "lo"
    assert asked.returncode == 1
    assert "nobody listens at its port 9" in asked.stdout
    assert "-> there: potluck up" in asked.stdout


async def test_ctrl_c_ends_a_stream_and_frees_its_place(tiny_mesh: TinyMesh) -> None:
    words = ("run", tiny_mesh.model, "the cat", "--max-tokens", "110", "--temperature", "0")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "apps.cli", *words, "--home", str(tiny_mesh.owner.home)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    await process.stdout.read(1)  # it has begun
    process.send_signal(signal.SIGINT)
    _, errors = await process.communicate()
    assert process.returncode in (130, 0)  # 0 if the text was over before the signal came
    assert b"Traceback" not in errors
    async with asyncio.timeout(10), tiny_mesh.owner.client() as client:
        while (await client.get("/potluck/status"))["conversations"]:
            await asyncio.sleep(0.05)


# --- without a mesh ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [("run", "m", "hello"), ("status",), ("plan", "m"), ("invite",), ("rotate",)], ids=str
)
async def test_a_verb_without_a_daemon_says_what_to_type(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    done = potluck(*words, home=tmp_path)
    assert done.returncode == 2
    assert "potluck up" in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_daemon_that_died_is_told_from_one_that_never_was(tmp_path: Path) -> None:
    StateFolder.open(tmp_path).daemon.write_text('{"pid": 1, "api_port": 9}')
    done = potluck("status", home=tmp_path)
    assert done.returncode == 2
    assert "no potluck runs here" in done.stderr


async def test_two_daemons_never_share_a_folder(tiny_mesh: TinyMesh) -> None:
    words = ("up", "--interface", "lo", "--port", "0", "--api-port", "0")
    done = await on(tiny_mesh, *words)
    assert done.returncode == 2
    assert "another potluck runs in" in done.stderr


@pytest.mark.parametrize(
    ("code", "words"),
    [("ABC", "a join code has 30 characters"), ("!" * 30, "never holds")],
)
async def test_a_join_code_that_cannot_be(tmp_path: Path, code: str, words: str) -> None:
    done = potluck("join", code, home=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr


async def test_one_wrong_character_of_a_join_code_is_found(tmp_path: Path) -> None:
    code = MeshSecret.new().join_code
    wrong = code[:7] + ("2" if code[7] != "2" else "3") + code[8:]
    done = potluck("join", wrong, home=tmp_path)
    assert done.returncode == 2
    assert "look at group 2" in done.stderr


async def test_a_device_of_another_mesh_has_to_leave_first(tmp_path: Path) -> None:
    MeshSecret.new().save(StateFolder.open(tmp_path))
    done = potluck("join", MeshSecret.new().join_code, home=tmp_path)
    assert done.returncode == 2
    assert "potluck leave" in done.stderr
    left = potluck("leave", home=tmp_path)
    assert left.returncode == 0
    assert Keyring.load(StateFolder.open(tmp_path)) is None


@pytest.mark.parametrize("option", ["--port", "--api-port"])
async def test_a_port_in_use_is_named(tmp_path: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        other = "--api-port" if option == "--port" else "--port"
        done = potluck(*("up", "--interface", "lo", option, port, other, "0"), home=tmp_path)
    assert done.returncode == 2
    assert port in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--memory", "lots"), "a size is a number and a unit"),
        (("--device", "cuda:99"), "one that is here: "),
        (("--interface", "nosuch0"), "no network interface 'nosuch0'"),
        (("--peer", "kitchen"), "an address is HOST:PORT"),
    ],
    ids=str,
)
async def test_a_bad_setting_is_told_in_words(
    tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    done = potluck("up", *words, home=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr


async def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    folder = StateFolder.open(tmp_path)
    MeshSecret.new().save(folder)
    os.chmod(folder.secret, 0o644)
    done = potluck("up", "--interface", "lo", "--port", "0", "--api-port", "0", home=tmp_path)
    assert done.returncode == 2
    assert "chmod 600" in done.stderr

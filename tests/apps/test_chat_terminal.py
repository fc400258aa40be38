"""`potluck run MODEL` at a terminal: a conversation with a model on real daemons."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.apps.conftest import LAYERS, TinyMesh
from tests.apps.terminal import Terminal
from tests.runtime.chat_model import write_chat_gemma

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("tiny_mesh")]

CTRL_C, CTRL_D = "\x03", "\x04"
OPTIONS = ("--temperature", "0")


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model of this module's mesh, with a template in its file."""
    return write_chat_gemma(tmp_path_factory.mktemp("chat") / "chat.gguf", layers=LAYERS)


async def at_terminal(
    mesh: TinyMesh, talk: Callable[[Terminal], None], *words: str, status: int = 0
) -> None:
    """`talk` begins once the prompt is there, and leaves the command ending."""

    def run() -> None:
        home = ("--home", str(mesh.owner.home))
        with Terminal("run", mesh.model, *OPTIONS, *words, *home) as terminal:
            terminal.until(">>> ")
            talk(terminal)
            assert terminal.end() == status

    await asyncio.to_thread(run)


async def answer(mesh: TinyMesh, *messages: tuple[str, str]) -> str:
    """What the model says after these (role, content), over the API."""
    said = [{"role": role, "content": content} for role, content in messages]
    body: dict[str, Any] = {"model": mesh.model, "messages": said, "temperature": 0}
    async with mesh.owner.client() as client:
        reply = await client.post("/v1/chat/completions", body | {"max_tokens": 8})
    text: str = reply["choices"][0]["message"]["content"]
    return text


def said_after(terminal: Terminal, typed: str) -> str:
    """The answer to a line, without its echo."""
    terminal.type(typed + "\n")
    shown = terminal.until("\n>>> ")
    return shown.partition("\n")[2].removesuffix("\n>>> ")


async def test_a_conversation_keeps_what_was_said_until_a_new_one(tiny_mesh: TinyMesh) -> None:
    first = await answer(tiny_mesh, ("user", "the cat"))
    second = await answer(
        tiny_mesh, ("user", "the cat"), ("assistant", first), ("user", "and then?")
    )
    alone = await answer(tiny_mesh, ("user", "and then?"))
    assert len({first, second, alone}) == 3

    def talk(terminal: Terminal) -> None:
        assert said_after(terminal, "the cat").strip() == first.strip()
        assert said_after(terminal, "and then?").strip() == second.strip()
        assert "new conversation" in said_after(terminal, "/new")
        assert said_after(terminal, "and then?").strip() == alone.strip()
        terminal.type("/bye\n")

    await at_terminal(tiny_mesh, talk, "--max-tokens", "8")


async def test_the_system_is_told_and_what_was_said_is_saved(
    tiny_mesh: TinyMesh, tmp_path: Path
) -> None:
    expected = await answer(tiny_mesh, ("system", "be brief"), ("user", "the\ncat"))
    path = tmp_path / "said.txt"

    def talk(terminal: Terminal) -> None:
        said_after(terminal, "/system be brief")
        terminal.type("the\\\n")
        terminal.until("... ")
        assert said_after(terminal, "cat").strip() == expected.strip()
        assert "Saved" in said_after(terminal, f"/save {path}")
        assert "there already" in said_after(terminal, f"/save {path}")
        assert "cannot be written" in said_after(terminal, f"/save {tmp_path}/no/such/folder")
        assert "There is no command /what" in said_after(terminal, "/what")
        terminal.type(CTRL_D)

    await at_terminal(tiny_mesh, talk, "--max-tokens", "8")
    assert path.read_text() == f"system: be brief\n\nuser: the\ncat\n\nassistant: {expected}\n"


async def test_ctrl_c_stops_the_answer_and_not_the_program(tiny_mesh: TinyMesh) -> None:
    def talk(terminal: Terminal) -> None:
        terminal.type("the cat\n")
        terminal.until("the cat\n")  # its echo; then the answer begins
        terminal.type(CTRL_C)
        terminal.until(">>> ")
        terminal.type("/bye\n")

    await at_terminal(tiny_mesh, talk)
    async with asyncio.timeout(10), tiny_mesh.owner.client() as client:
        while (await client.get("/potluck/status"))["conversations"]:
            await asyncio.sleep(0.05)


async def test_a_full_context_is_told_with_what_to_do(tiny_mesh: TinyMesh) -> None:
    def talk(terminal: Terminal) -> None:
        assert "The context is full" in said_after(terminal, "the cat")
        assert "/new" in said_after(terminal, "and then?")
        said_after(terminal, "/new")
        assert "The context is full" in said_after(terminal, "the cat")
        terminal.type(CTRL_D)

    await at_terminal(tiny_mesh, talk)


async def test_what_is_piped_in_is_answered_line_by_line_without_a_prompt(
    tiny_mesh: TinyMesh,
) -> None:
    first = await answer(tiny_mesh, ("user", "the cat"))
    words = ("run", tiny_mesh.model, "--chat", "--max-tokens", "8", *OPTIONS)
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "apps.cli", *words, "--home", str(tiny_mesh.owner.home)],
        input="the cat\n/new\nthe cat\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{first}\n{first}\n"


async def test_chat_and_json_do_not_go_together(tiny_mesh: TinyMesh) -> None:
    words = ("run", tiny_mesh.model, "--chat", "--json", "--home", str(tiny_mesh.owner.home))
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "apps.cli", *words], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "--json answers once" in done.stderr

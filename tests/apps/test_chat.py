"""A chat whose daemon does what a test says: devices vanish, answers are refused or break off."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from aiohttp import web
from rich.console import Console

from apps import chat as chat_module
from apps.chat import Chat
from apps.client import ApiError
from mesh.errors import ConfigError

Answer = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]
DEADLINE_S = 20.0
CTRL_C = "\x03"
FULL = {"message": "it has 130 tokens", "code": "PromptTooLong", "exit_code": 1}


class Daemon:
    """`answer` answers the chats; the events are what tests note."""

    def __init__(self) -> None:
        self.port = 0
        self.answer: Answer = say("well")
        self.asked: list[dict[str, Any]] = []
        self._events: list[dict[str, Any]] = [{"number": 7, "kind": "up", "fields": {}}]
        self._grown = asyncio.Event()

    def note(self, kind: str, **fields: Any) -> None:
        number = self._events[-1]["number"] + 1
        self._events.append({"number": number, "kind": kind, "fields": fields})
        self._grown.set()

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        return await self.answer(request, body)

    async def events(self, request: web.Request) -> web.Response:
        since = int(request.query.get("since", "0"))
        while not (found := [one for one in self._events if one["number"] > since]):
            self._grown.clear()
            await self._grown.wait()
        return web.json_response({"events": found})

    async def transfers(self, request: web.Request) -> web.Response:
        return web.json_response({"transfers": []})


def chunk(content: str | None, finish_reason: str | None = None) -> bytes:
    delta = {} if content is None else {"content": content}
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


async def begun(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    return response


def say(*pieces: str, finish_reason: str = "stop") -> Answer:
    async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await begun(request)
        for piece in pieces:
            await response.write(chunk(piece))
        await response.write(chunk(None, finish_reason) + b"data: [DONE]\n\n")
        return response

    return answer


async def refuse(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.json_response({"error": FULL}, status=400)


@pytest.fixture
async def daemon(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Daemon]:
    monkeypatch.setattr(chat_module, "QUIET_S", 0.02)
    daemon = Daemon()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", daemon.chat)
    app.router.add_get("/potluck/events", daemon.events)
    app.router.add_get("/potluck/transfers", daemon.transfers)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    daemon.port = runner.addresses[0][1]
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield daemon
    finally:
        await runner.cleanup()


async def talk(daemon: Daemon, *lines: str, is_terminal: bool = True) -> tuple[str, str]:
    """What was shown on standard output, and beside it."""
    out, err = io.StringIO(), io.StringIO()
    typed: Iterator[str] = iter(lines)

    def read(prompt: str) -> str:
        for line in typed:
            if line.endswith(CTRL_C):
                raise KeyboardInterrupt
            return line
        raise EOFError

    chat = Chat(
        daemon.port,
        {"model": "m"},
        Console(file=out, soft_wrap=True, highlight=False),
        Console(file=err, soft_wrap=True, highlight=False),
        is_terminal=is_terminal,
    )
    await asyncio.to_thread(chat.run, read)
    return out.getvalue(), err.getvalue()


async def test_a_lost_device_is_a_pause_and_one_quiet_line(daemon: Daemon) -> None:
    async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await begun(request)
        await response.write(chunk("once "))
        daemon.note("PeerDied", name="kitchen")
        daemon.note("PeerDied", name="attic")
        await asyncio.sleep(0.3)  # the pause
        await response.write(chunk("more") + chunk(None, "stop") + b"data: [DONE]\n\n")
        return response

    daemon.answer = answer
    shown, beside = await talk(daemon, "hello")
    assert "once more\n" in shown
    assert beside.count("is gone") == 1
    assert "kitchen is gone" in beside


async def test_a_device_lost_while_the_answer_goes_on_is_not_mentioned(daemon: Daemon) -> None:
    async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await begun(request)
        daemon.note("PeerDied", name="kitchen")
        for _ in range(40):
            await response.write(chunk("on "))
            await asyncio.sleep(0.005)
        await response.write(chunk(None, "stop") + b"data: [DONE]\n\n")
        return response

    daemon.answer = answer
    _, beside = await talk(daemon, "hello")
    assert "is gone" not in beside


async def test_a_refused_question_is_forgotten_and_the_chat_goes_on(daemon: Daemon) -> None:
    def answer(request: web.Request, body: dict[str, Any]) -> Awaitable[web.StreamResponse]:
        return (refuse if len(daemon.asked) == 1 else say("well"))(request, body)

    daemon.answer = answer
    shown, beside = await talk(daemon, "too long", "short")
    assert "it has 130 tokens. Type /new" in beside
    assert "well" in shown
    assert daemon.asked[1]["messages"] == [{"role": "user", "content": "short"}]


async def test_a_refusal_of_what_is_piped_in_ends_it(daemon: Daemon) -> None:
    daemon.answer = refuse
    with pytest.raises(ApiError, match="130 tokens"):
        await talk(daemon, "too long", "short", is_terminal=False)
    assert len(daemon.asked) == 1


async def test_a_daemon_that_ends_within_an_answer_ends_the_chat(daemon: Daemon) -> None:
    async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await begun(request)
        await response.write(chunk("once "))
        return response

    daemon.answer = answer
    with pytest.raises(ConfigError, match="middle of the answer"):
        await talk(daemon, "hello")


async def test_an_answer_that_fills_the_context_says_so(daemon: Daemon) -> None:
    daemon.answer = say("well", finish_reason="length")
    _, beside = await talk(daemon, "hello")
    assert "The context is full" in beside


async def test_a_message_that_looks_like_markup_is_shown_as_it_is(daemon: Daemon) -> None:
    daemon.answer = say("[bold]a[/bold] [/x]")
    shown, beside = await talk(daemon, "hello", "/[red]")
    assert "[bold]a[/bold] [/x]" in shown
    assert "/[red]" in beside


async def test_system_words_come_first_until_they_are_taken_back(daemon: Daemon) -> None:
    await talk(daemon, "/system be brief", "one", "/system", "two")
    roles = [[message["role"] for message in body["messages"]] for body in daemon.asked]
    assert roles == [["system", "user"], ["user", "assistant", "user"]]


async def test_a_base_model_is_asked_in_a_plain_form(daemon: Daemon) -> None:
    def answer(request: web.Request, body: dict[str, Any]) -> Awaitable[web.StreamResponse]:
        return (say("well") if "chat_template" in body else has_no_form)(request, body)

    async def has_no_form(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        error = {"message": "m has no chat template", "code": "NoTemplate", "exit_code": 1}
        return web.json_response({"error": error}, status=400)

    daemon.answer = answer
    shown, beside = await talk(daemon, "hello", "again")
    assert shown.count("well") == 2
    assert beside.count("is a base model") == 1
    assert daemon.asked[-1]["chat_template"] == "plain"
    assert [one["content"] for one in daemon.asked[-1]["messages"]] == ["hello", "well", "again"]


async def test_ctrl_c_in_the_moment_before_an_answer_begins(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncio's runner forgets an interrupt that comes while it makes ready: it just cancels."""
    runs = asyncio.Runner.run

    def interrupted(runner: asyncio.Runner, work: Any, **how: Any) -> Any:
        monkeypatch.setattr(asyncio.Runner, "run", runs)
        work.close()
        raise asyncio.CancelledError

    monkeypatch.setattr(asyncio.Runner, "run", interrupted)
    shown, beside = await talk(daemon, "hello", "again")
    assert "Stopped." in beside
    assert "well" in shown


async def test_ctrl_c_drops_a_line_that_was_begun(daemon: Daemon) -> None:
    shown, _ = await talk(daemon, "half a line" + CTRL_C, "a whole one")
    assert "well" in shown
    assert [body["messages"][-1]["content"] for body in daemon.asked] == ["a whole one"]

"""`potluck run --chat`: a conversation in the terminal, over the chat API that programs use too."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from apps.chat_input import ReadLine, message
from apps.client import ApiError, Client
from apps.run import until_first
from apps.show import escape
from mesh.errors import ConfigError, PotluckError

PLAIN: Final = "plain"  # the form of a chat with a base model, which has none of its own
QUIET_S = 0.5  # without a token after a device was lost, before that is said
LOST: Final = ("PeerDied", "PeerLeft")  # as the daemon's events call it
COMMANDS: Final = {
    "/new": "begin a new conversation",
    "/system TEXT": "say how the model is to behave, from now on; without a text, nothing",
    "/save FILE": "write the conversation down as text",
    "/bye": "end, as Ctrl-D does",
    "/help": "this",
}


class Chat:
    """One conversation after the other, with one model."""

    def __init__(
        self, port: int, body: dict[str, Any], out: Console, err: Console, *, is_terminal: bool
    ) -> None:
        """`body` is what every request says besides the messages. Where no person sits at a
        terminal, a refusal ends it all.
        """
        self._port = port
        self._body = body
        self._out = out
        self._err = err
        self._is_terminal = is_terminal
        self._system = ""
        self._turns: list[dict[str, str]] = []
        self._said: list[str] = []  # of the answer that is under way

    def run(self, read: ReadLine, first: str | None = None) -> None:
        """Until /bye or the end of the input; Ctrl-C stops an answer, or drops a line.

        Raises ConfigError, and without a terminal what the daemon refuses with.
        """
        if self._is_terminal:
            self._tell("/help shows the commands; Ctrl-C stops an answer, Ctrl-D ends.")
        with asyncio.Runner() as runner:
            if first is not None:
                self._answer(runner, first)
            while True:
                try:
                    if not self._take(runner, message(read)):
                        return
                except KeyboardInterrupt:
                    self._out.print()  # what was typed of this line is dropped
                except EOFError:
                    break
        if self._is_terminal:
            self._out.print()  # the shell's prompt begins a line of its own

    def _take(self, runner: asyncio.Runner, text: str) -> bool:
        """Whether the conversation goes on."""
        if text.startswith("/"):
            command, _, rest = text.partition(" ")
            if command == "/bye":
                return False
            self._obey(command, rest.strip())
        elif text.strip():
            self._answer(runner, text)
        return True

    # --- commands ---------------------------------------------------------------------------------

    def _obey(self, command: str, rest: str) -> None:
        match command:
            case "/new":
                self._turns.clear()
                self._tell("A new conversation begins.")
            case "/system":
                self._system = rest
                self._tell("The model is told so from now on." if rest else "It is told nothing.")
            case "/save":
                self._tell(self._save(rest))
            case "/help":
                for name, what in COMMANDS.items():
                    self._tell(f"{name:13} {what}")
                self._tell('Several lines: end each but the last with \\, or put them in """.')
            case _:
                known = ", ".join(name.split()[0] for name in COMMANDS)
                self._tell(f"There is no command {command}; there are {known}.")

    def _save(self, name: str) -> str:
        """What came of it, in words."""
        if not name:
            return "Say where to: /save FILE"
        path = Path(name).expanduser()
        system = [{"role": "system", "content": self._system}] if self._system else []
        said = [f"{turn['role']}: {turn['content']}\n" for turn in (*system, *self._turns)]
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write("\n".join(said))
        except FileExistsError:
            return f"{path} is there already; give another name."
        except (OSError, ValueError) as error:
            return f"{name} cannot be written: {getattr(error, 'strerror', None) or error}."
        return f"Saved to {path}."

    # --- answers ----------------------------------------------------------------------------------

    def _answer(self, runner: asyncio.Runner, text: str) -> None:
        self._turns.append({"role": "user", "content": text})
        self._said = []
        try:
            ended = runner.run(self._stream())
            if ended == "length" and "max_tokens" not in self._body:
                self._tell(
                    "The context is full, so the answer ends here. /new begins a new "
                    "conversation; `potluck up --context` makes room for longer ones."
                )
        except (KeyboardInterrupt, asyncio.CancelledError):
            # The latter where Ctrl-C came while the runner was about to begin.
            self._out.print()
            self._tell("Stopped.")
        except PotluckError as error:
            if self._takes_a_form(error):
                self._turns.pop()  # asked again
                self._answer(runner, text)
                return
            self._refused(error)
        self._remember()

    def _takes_a_form(self, error: PotluckError) -> bool:
        """Whether a base model can be asked again, in a form that is not its own."""
        if not isinstance(error, ApiError) or error.code != "NoTemplate":
            return False
        if "chat_template" in self._body:
            return False
        self._body = {**self._body, "chat_template": PLAIN}
        self._tell(
            f"{self._body['model']} is a base model: it continues texts and was never taught to "
            f"answer. It is asked in the form {PLAIN!r}; --template names another."
        )
        return True

    def _remember(self) -> None:
        """What was said counts, also where it was stopped; a question without an answer does not,
        since in most models' conversations both take turns.
        """
        if said := "".join(self._said):
            self._turns.append({"role": "assistant", "content": said})
        else:
            self._turns.pop()

    def _refused(self, error: PotluckError) -> None:
        if not self._is_terminal or isinstance(error, ConfigError):
            raise error
        if self._said:
            self._out.print()
        is_full = isinstance(error, ApiError) and error.code == "PromptTooLong"
        advice = ". Type /new to begin a new conversation." if is_full else ""
        self._err.print(f"[red]{escape(str(error))}{advice}[/]")

    async def _stream(self) -> str | None:
        """Why the answer ended."""
        system = [{"role": "system", "content": self._system}] if self._system else []
        body = {**self._body, "messages": [*system, *self._turns], "stream": True}
        ended: str | None = None
        async with Client(self._port) as client:
            before = (await client.get("/potluck/events"))["events"]
            since = before[-1]["number"] if before else 0
            watching = asyncio.create_task(self._watch_losses(client, since))  # cancelled below
            try:
                events = client.stream("/v1/chat/completions", body)
                async with aclosing(events), until_first(client, self._err, body["model"]) as first:
                    async for event in events:
                        choice = event["choices"][0]
                        ended = choice["finish_reason"] or ended
                        if text := choice["delta"].get("content"):
                            first.close()
                            self._said.append(text)
                            self._out.print(text, end="", markup=False)
                            self._out.file.flush()
            finally:
                watching.cancel()
        self._out.print()
        return ended

    async def _watch_losses(self, client: Client, since: int) -> None:
        """A lost device is a pause, and one quiet line that says so; of events after `since`."""
        with suppress(PotluckError):  # the answer itself says what is wrong
            while True:
                body = await client.get("/potluck/events", since=str(since), wait="1")
                for event in body["events"]:
                    since = event["number"]
                    if event["kind"] in LOST and await self._is_quiet():
                        name = event["fields"].get("name", "a device")
                        self._tell(f"\n{name} is gone; the others go on in a moment.")
                        return

    async def _is_quiet(self) -> bool:
        said = len(self._said)
        await asyncio.sleep(QUIET_S)
        return len(self._said) == said

    def _tell(self, text: str) -> None:
        self._err.print(f"[dim]{escape(text)}[/]")

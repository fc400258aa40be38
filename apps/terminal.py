"""What every verb of the command shares: where it prints, the options that all have, its daemon."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console

from mesh.config import FolderLock, StateFolder
from mesh.errors import ConfigError

if TYPE_CHECKING:
    from apps.client import Client

T = TypeVar("T")

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

Home = Annotated[
    Path | None, typer.Option(help="State folder of this device; POTLUCK_HOME otherwise.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def find_daemon(folder: StateFolder) -> int:
    """The API port of the daemon of this state folder. Raises ConfigError when none runs."""
    try:
        record = json.loads(folder.daemon.read_text())
        port = int(record["api_port"])
    except (OSError, ValueError, KeyError, TypeError):
        port = None
    # The file outlives a daemon that was killed; the lock does not.
    if port is None or not FolderLock(folder).is_taken:
        raise ConfigError("no potluck runs here; start it with `potluck up` in another terminal")
    return port


def ask(home: Path | None, call: Callable[[Client], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    """One question to the daemon of this device. Raises ConfigError where none runs."""
    port = find_daemon(StateFolder.open(home))
    from apps.client import Client  # not before there is somebody to ask: a tenth of a second

    async def asking() -> dict[str, Any]:
        async with Client(port) as client:
            return await call(client)

    return awaited(asking())


def awaited(work: Coroutine[Any, Any, T]) -> T:
    """What the work returns, in an event loop of its own."""
    import asyncio  # no verb that only reads the disk waits for it

    return asyncio.run(work)


def print_json(body: dict[str, Any]) -> None:
    print(json.dumps(body))

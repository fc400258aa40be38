"""What every verb of the command shares: where it prints, the options that all have, its daemon."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from apps.client import Client, find_daemon
from mesh.config import StateFolder

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

Home = Annotated[
    Path | None, typer.Option(help="State folder of this device; POTLUCK_HOME otherwise.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def ask(home: Path | None, call: Callable[[Client], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    """One question to the daemon of this device. Raises ConfigError where none runs."""
    port = find_daemon(StateFolder.open(home))

    async def asking() -> dict[str, Any]:
        async with Client(port) as client:
            return await call(client)

    return asyncio.run(asking())


def print_json(body: dict[str, Any]) -> None:
    print(json.dumps(body))

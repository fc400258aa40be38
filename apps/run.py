"""`potluck run`: the text as it comes, and how fast it came."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, aclosing, asynccontextmanager, suppress
from typing import Any

from rich.console import Console

from apps.client import Client
from apps.progress import Shown, show_progress
from mesh.errors import PotluckError

WATCH_INTERVAL_S = 0.5


async def stream_text(
    port: int, body: dict[str, Any], out: Console, err: Console, *, quiet: bool
) -> dict[str, Any]:
    """Streams one completion to `out`; returns text, token ids and times. Raises ApiError."""
    text: list[str] = []
    token_ids: list[int] = []
    finish_reason: str | None = None
    started_s = time.monotonic()
    first_s: float | None = None
    async with Client(port) as client:
        events = client.stream("/v1/completions", {**body, "stream": True})
        shown_first = until_first(client, err, body["model"], quiet=quiet)
        async with aclosing(events), shown_first as shown:
            async for event in events:
                choice = event["choices"][0]
                if first_s is None:
                    first_s = time.monotonic()
                    shown.close()
                text.append(choice["text"])
                token_ids += choice["token_ids"]
                finish_reason = choice["finish_reason"] or finish_reason
                if not quiet:
                    out.print(choice["text"], end="", markup=False)
                    out.file.flush()
    ended_s = time.monotonic()
    if not quiet:
        out.print()
    first_s = ended_s if first_s is None else first_s
    rate = (len(token_ids) - 1) / (ended_s - first_s) if ended_s > first_s else 0.0
    if not quiet:
        err.print(
            f"[dim]{len(token_ids)} tokens, first after {first_s - started_s:.2f} s, "
            f"then {rate:.1f} tokens/s[/]"
        )
    return {
        "text": "".join(text),
        "token_ids": token_ids,
        "finish_reason": finish_reason,
        "first_token_s": first_s - started_s,
        "tokens_per_s": rate,
    }


@asynccontextmanager
async def until_first(
    client: Client, err: Console, model: str, *, quiet: bool = False
) -> AsyncIterator[ExitStack]:
    """Shows how far planning, fetching and loading are, until what it gives is closed."""
    with ExitStack() as shown:
        bar = shown.enter_context(show_progress(err, model, quiet=quiet))
        watching = asyncio.create_task(_watch_transfers(client, bar))
        shown.callback(watching.cancel)
        yield shown


async def _watch_transfers(client: Client, bar: Shown) -> None:
    """Until the first token: which devices still wait for weights, and how far they are."""
    with suppress(PotluckError):  # the answer itself says what is wrong
        while True:
            transfers = (await client.get("/potluck/transfers"))["transfers"]
            done = sum(one["done_bytes"] for one in transfers)
            wanted = sum(one["wanted_bytes"] for one in transfers)
            names = ", ".join(sorted({one["device"] for one in transfers}))
            bar.show(f"weights for {names}" if names else "planning and loading", done, wanted)
            await asyncio.sleep(WATCH_INTERVAL_S)

"""The emulated device's end of `apps.bench.home`: a question a line in, an answer a line out."""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, Final

from mesh.errors import PotluckError

MAX_QUESTION_BYTES: Final = 1 << 20

Answer = Callable[[str, dict[str, Any]], Awaitable[Any]]


async def answer_all(answer: Answer) -> None:
    """Until nobody can ask any more: standard input ends with whoever started this process."""
    reader = asyncio.StreamReader(limit=MAX_QUESTION_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    async for line in reader:
        fields = json.loads(line)
        try:
            say("answer", await answer(fields.pop("do"), fields))
        except Exception as error:  # whoever asked waits for an answer: what failed here is one
            if not isinstance(error, PotluckError):
                traceback.print_exc()
            say("error", str(error) if isinstance(error, PotluckError) else repr(error))


def say(kind: str, what: Any) -> None:
    print(json.dumps({kind: what}), flush=True)

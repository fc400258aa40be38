"""llama.cpp over RPC when one of its workers is killed or falls silent, in turns with Potluck.

    python -m apps.chaos.rival FOLDER [--runs 5] [--out FILE]

FOLDER has its `llama-completion` and `ggml-rpc-server`. They come with no wheel, but the source
package of llama-cpp-python has them: `pip download --no-deps --no-binary :all: llama-cpp-python`,
then, in its vendor/llama.cpp: `cmake -B build -DGGML_RPC=ON -DLLAMA_CURL=OFF` and `cmake --build
build --target ggml-rpc-server llama-completion`; FOLDER is build/bin.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Final

from apps.chaos.case import Case
from apps.chaos.home import Home
from apps.chaos.record import machine
from apps.chaos.runs import MEMORY, run_case
from mesh.errors import ConfigError
from runtime.stored.model_files import DEFAULT_MODEL, cache_dir, default_model

CLIENT, WORKER = "llama-completion", "ggml-rpc-server"
WORKERS: Final = 2
TOKENS: Final = 100
CHARS: Final = 60  # of text, after which the worker is struck
START_S: Final = 2.0
SILENT_S: Final = 15.0  # twice and more what Potluck needs to go on after a silent death
HOW: Final = (
    "llama.cpp from the source package of llama-cpp-python, built here with its RPC backend: "
    "`python -m apps.chaos.rival`. Two workers on loopback and the default model; one of them is "
    "killed, or stopped by SIGSTOP, after 60 characters."
)


@dataclass(frozen=True, slots=True)
class Struck:
    """What became of the client once a worker was struck."""

    status: int | None  # its exit status, a signal's number below 0; None: it still waits
    ended_ms: float | None
    chars_after: int  # of text, from then on

    @property
    def words(self) -> str:
        if self.status is None:
            return f"no token and no error within {SILENT_S:g} s"
        how = f"signal {-self.status}" if self.status < 0 else f"status {self.status}"
        after = f"{self.chars_after} characters later" if self.chars_after else "the text is lost"
        return f"the client ends with {how}, {after}"


async def strike(folder: Path, prompt: str, sign: signal.Signals) -> Struck:
    """One generation over WORKERS workers, the first of which gets the signal."""
    async with _workers(folder) as (workers, ports):
        servers = ",".join(f"127.0.0.1:{port}" for port in ports)
        client = await asyncio.create_subprocess_exec(
            *(str(folder / CLIENT), "-m", str(default_model(cache_dir())), "--rpc", servers),
            *("-ngl", "99", "-p", prompt, "-n", str(TOKENS), "--temp", "0", "-t", "1"),
            *("-no-cnv", "--no-warmup", "--no-display-prompt"),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=DEVNULL,
            env=_env(folder),
        )
        try:
            return await _watched(client, workers[0], sign)
        finally:
            with suppress(ProcessLookupError):
                client.kill()
            await client.wait()


async def _watched(client: Process, worker: Process, sign: signal.Signals) -> Struck:
    assert client.stdout is not None
    chars = 0
    while chars < CHARS:
        data = await client.stdout.read(64)
        if not data:
            raise ConfigError(f"{CLIENT} ended before anything happened; try it by hand")
        chars += len(data)
    worker.send_signal(sign)
    struck_s, after = time.monotonic(), 0
    try:
        async with asyncio.timeout(SILENT_S):
            while data := await client.stdout.read(64):
                after += len(data)
            status = await client.wait()
    except TimeoutError:
        return Struck(None, None, after)
    return Struck(status, (time.monotonic() - struck_s) * 1e3, after)


@asynccontextmanager
async def _workers(folder: Path) -> AsyncIterator[tuple[list[Process], list[int]]]:
    ports = [_free_port() for _ in range(WORKERS)]
    workers = [
        await asyncio.create_subprocess_exec(
            *(str(folder / WORKER), "-p", str(port)),
            stdout=DEVNULL,
            stderr=DEVNULL,
            env=_env(folder),
        )
        for port in ports
    ]
    try:
        await asyncio.sleep(START_S)  # it says nothing that could be waited for
        yield workers, ports
    finally:
        for worker in workers:
            with suppress(ProcessLookupError):
                worker.kill()
            await worker.wait()


async def measure(folder: Path, runs: int) -> dict[str, Any]:
    """The line for the page."""
    killed, silent, ours = [], [], []
    async with Home.of(1 + WORKERS, MEMORY) as home:
        for seed in range(runs):
            case = Case.of(seed, range(1 + WORKERS, 2 + WORKERS))
            killed.append(await strike(folder, case.prompt, signal.SIGKILL))
            silent.append(await strike(folder, case.prompt, signal.SIGSTOP))
            ours.append(await run_case(home, case, DEFAULT_MODEL, "kill"))
            print(killed[-1].words, silent[-1].words, ours[-1].resume_ms, sep="; ", flush=True)
    resumed = [one.resume_ms for one in ours if one.resume_ms is not None]
    return {
        "fault": "rival",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "runs": runs,
        "who": "llama.cpp RPC",
        "killed": sorted({one.words for one in killed}),
        "silent": sorted({one.words for one in silent}),
        "ours_equal": sum(one.tokens_equal for one in ours),
        "ours_resume_ms": median(resumed) if resumed else None,
        "how": HOW,
    }


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


def _env(folder: Path) -> dict[str, str]:
    return {**os.environ, "LD_LIBRARY_PATH": str(folder)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(arguments)
    for name in (CLIENT, WORKER):
        if not (asked.folder / name).is_file():
            print(f"{asked.folder} has no {name}; {(__doc__ or '')}", file=sys.stderr)
            return 2
    line = json.dumps(asyncio.run(measure(asked.folder.resolve(), asked.runs)))
    print(line)
    if asked.out is not None:
        with asked.out.open("a") as file:
            file.write(line + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The engines that are compared, behind one small interface: a prompt in, then tokens out.

Each runs in a process of its own (`python -m apps.bench.contenders NAME MODEL THREADS`), which
answers one command a line: `prefill N`, `decode N`, `many SESSIONS N`, `memory`, `end`.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

CONTEXT = 1024
PROMPT_TOKEN_IDS = (2, 818, 3823, 8864, 37423, 38167, 1024, 506, 31770, 4799)  # English words


class Contender(Protocol):
    """Times are seconds, measured inside the engine's process."""

    def prefill(self, tokens: list[int]) -> float:
        """A new conversation of these tokens, up to the logits of the last one."""

    def decode(self, count: int) -> float:
        """`count` greedy tokens, each fed back alone."""


class Potluck:
    """One stage with all layers, as a device that serves a model alone has it."""

    def __init__(self, model: Path, threads: int) -> None:
        from apps.torch_start import import_torch

        import_torch()
        from planner.plan import Span
        from runtime.compute.team import assemble
        from runtime.stage import Stage
        from runtime.weights import Checkpoint

        assemble(threads)
        checkpoint = Checkpoint.open(model)
        count = len(checkpoint.spec.layers)
        blocks = {index: checkpoint.load_layer(index) for index in range(count)}
        self._stage = Stage(checkpoint, Span(0, count), blocks, checkpoint.load_head())
        self._sessions: list[Any] = []
        self._position = 0
        self._last: list[Any] = []

    def prefill(self, tokens: list[int]) -> float:
        return self._prefill(tokens, 1)

    def decode(self, count: int) -> float:
        from runtime.stage import Slice

        started_s = time.perf_counter()
        for _ in range(count):
            slices = [
                Slice(session, self._position, last, True)
                for session, last in zip(self._sessions, self._last, strict=True)
            ]
            self._last = self._stage.turn(slices)
            self._position += 1
        return time.perf_counter() - started_s

    def many(self, sessions: int, count: int) -> float:
        """`count` tokens for each of so many conversations at once, each with a prompt of 64."""
        self._prefill([PROMPT_TOKEN_IDS[0]] * 64, sessions)
        return self.decode(count)

    def _prefill(self, tokens: list[int], sessions: int) -> float:
        import torch

        from mesh.ids import SessionId
        from runtime.sampling import Sampling
        from runtime.stage import Slice

        for session in self._sessions:
            self._stage.close(session)
        self._sessions = [SessionId.new() for _ in range(sessions)]
        rows = torch.tensor(tokens, dtype=torch.int32).unsqueeze(1)
        self._last = []
        started_s = time.perf_counter()
        for session in self._sessions:
            self._stage.open(session, Sampling(), CONTEXT, places=sessions)
            self._last += self._stage.turn([Slice(session, 0, rows, True)])
        self._position = len(tokens)
        return time.perf_counter() - started_s


class Cyllama:
    """llama.cpp as the ready wheel `cyllama` carries it."""

    def __init__(self, model: Path, threads: int) -> None:
        from cyllama.llama import llama_cpp

        self._api = llama_cpp
        self._model = llama_cpp.LlamaModel(str(model), llama_cpp.LlamaModelParams())
        params = llama_cpp.LlamaContextParams()
        params.n_ctx, params.n_batch, params.n_ubatch = CONTEXT, 512, 512
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        self._context = llama_cpp.LlamaContext(self._model, params)
        self._position = 0

    def prefill(self, tokens: list[int]) -> float:
        self._context.kv_cache_clear()
        self._position = 0
        started_s = time.perf_counter()
        self._eval(tokens)
        return time.perf_counter() - started_s

    def decode(self, count: int) -> float:
        started_s = time.perf_counter()
        for _ in range(count):
            self._eval([PROMPT_TOKEN_IDS[-1]])
        return time.perf_counter() - started_s

    def _eval(self, tokens: list[int]) -> None:
        batch = self._api.LlamaBatch(n_tokens=len(tokens), embd=0, n_seq_max=1)
        batch.set_batch(tokens, self._position, False)  # logits of the last one only
        self._context.decode(batch)
        self._context.synchronize()
        self._position += len(tokens)


class LlamaCppPython:
    """llama.cpp as `llama-cpp-python` was built on this machine."""

    def __init__(self, model: Path, threads: int) -> None:
        import llama_cpp

        self._api = llama_cpp
        self._llama = llama_cpp.Llama(
            str(model),
            n_ctx=CONTEXT,
            n_batch=512,
            n_ubatch=512,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )

    def prefill(self, tokens: list[int]) -> float:
        self._llama.reset()
        started_s = time.perf_counter()
        self._llama.eval(tokens)
        return time.perf_counter() - started_s

    def decode(self, count: int) -> float:
        started_s = time.perf_counter()
        for _ in range(count):
            self._llama.eval([PROMPT_TOKEN_IDS[-1]])
        return time.perf_counter() - started_s


CONTENDERS: dict[str, Callable[[Path, int], Contender]] = {
    "potluck": Potluck,
    "cyllama": Cyllama,
    "llama_cpp": LlamaCppPython,
}


def rivals() -> list[str]:
    """The forms of llama.cpp that are installed here."""
    return [name for name in ("cyllama", "llama_cpp") if importlib.util.find_spec(name)]


def peak_memory_bytes() -> int:
    """The most this process has held so far (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    name, model, threads = sys.argv[1:4]
    contender = CONTENDERS[name](Path(model), int(threads))
    print("ready", flush=True)
    for line in sys.stdin:
        command, *numbers = line.split()
        counts = [int(number) for number in numbers]
        match command:
            case "prefill":
                repeats = -(-counts[0] // len(PROMPT_TOKEN_IDS))
                answer = contender.prefill(list(PROMPT_TOKEN_IDS * repeats)[: counts[0]])
            case "decode":
                answer = contender.decode(counts[0])
            case "many" if isinstance(contender, Potluck):
                answer = contender.many(*counts)
            case "memory":
                answer = float(peak_memory_bytes())
            case _:
                return
        print(answer, flush=True)


if __name__ == "__main__":
    main()

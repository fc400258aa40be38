"""The rival: Megatron's tensor parallelism over `torch.distributed` with gloo.

The very same layers, cut evenly by heads and columns; behind each part a blocking all-reduce of
fp32. A device of `apps.bench.home`: one process on each, asked all at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Final

from apps.bench.answering import answer_all, say
from apps.torch_start import import_torch

import_torch()

import torch  # noqa: E402 - in less time, now
import torch.distributed as dist  # noqa: E402
from torch import Tensor  # noqa: E402

from mesh.errors import ConfigError  # noqa: E402
from planner.plan import Span  # noqa: E402
from runtime.checkpoints import Model, open_model  # noqa: E402
from runtime.compute.precision import Precision  # noqa: E402
from runtime.cut import Cut, decoder_share  # noqa: E402
from runtime.kv_cache import SessionCache  # noqa: E402
from runtime.models.block import Run  # noqa: E402
from runtime.models.encoder_ends import TokenEntry  # noqa: E402
from runtime.weights import Checkpoint  # noqa: E402

PORT: Final = 29400
INTERFACE: Final = "eth0"


class GlooDevice:
    """One rank. Everything here blocks: there is nothing else to do meanwhile."""

    def __init__(self, rank: int, count: int, store: str) -> None:
        """Waits for the others."""
        torch.set_num_threads(1)
        os.environ["GLOO_SOCKET_IFNAME"] = INTERFACE
        dist.init_process_group(
            "gloo", init_method=f"tcp://{store}:{PORT}", rank=rank, world_size=count
        )
        self.rank, self.count = rank, count
        self._models: dict[str, tuple[Model, Cut, list[Any]]] = {}

    async def answer(self, do: str, fields: dict[str, Any]) -> Any:
        """One question. Raises ConfigError for one that is none."""
        match do:
            case "load":
                return self._load(**fields)
            case "pass":
                return self._pass(**fields)
            case "unload":
                self._models.pop(fields["path"], None)
                return None
        raise ConfigError(f"no such question: {do!r}")

    def _load(self, path: str, heads: list[int], columns: list[int]) -> None:
        model = open_model(Path(path), Precision.FP32)
        cut = Cut(Span(*heads), Span(*columns), closing_bias=self.rank == 0)
        count = len(model.profile().layers)
        layers = [model.load_layer(index, cut=cut) for index in range(count)]
        self._models[path] = (model, cut, layers)

    @torch.inference_mode()
    def _pass(self, path: str, tokens: int) -> dict[str, Any]:
        """One pass over so many tokens, which the first rank knows and tells the others."""
        model, cut, layers = self._models[path]
        ids = torch.zeros(tokens, dtype=torch.int64)
        if self.rank == 0:
            ids = (7 * torch.arange(tokens) + 3) % model.spec.vocabulary
        dist.barrier()
        started_s = time.perf_counter()
        dist.broadcast(ids, 0)
        if isinstance(model, Checkpoint):
            hidden = _decoder(model, cut, layers, ids)
        else:
            source = layers[0].source
            assert isinstance(source, TokenEntry), "these encoders read tokens"
            hidden = source.forward(model.words(ids))
            for section in layers:
                hidden = _through(section.layer, hidden, None)
        took_s = time.perf_counter() - started_s
        return {"s": took_s, "said": hidden.mean(dim=0).tolist() if self.rank == 0 else []}


def _decoder(model: Checkpoint, cut: Cut, layers: list[Any], ids: Tensor) -> Tensor:
    tokens = len(ids)
    caches = SessionCache(decoder_share(model.spec, cut), Span(0, len(layers)), tokens).layers
    hidden = model.embed(ids.int(), torch.arange(tokens))
    for layer, cache in zip(layers, caches, strict=True):
        hidden = _through(layer, hidden, [Run(0, tokens, 0, cache)])
    return hidden


def _through(layer: Any, hidden: Tensor, at: Any) -> Tensor:
    """[S, hidden] -> [S, hidden]: Megatron's two all-reduces."""
    x = layer.enter(hidden)
    for index, part in enumerate(layer.parts):
        added = part.closing(part.inside(part.opening(x), at))
        dist.all_reduce(added)
        hidden, x = layer.connect(index, hidden, added)
    return hidden


async def _main() -> None:
    start = json.loads(sys.stdin.readline())  # nothing else comes before it is answered
    os.sched_setaffinity(0, start["cores"])
    device = GlooDevice(start["index"], start["count"], start["store"])
    say("answer", {})
    await answer_all(device.answer)


if __name__ == "__main__":
    asyncio.run(_main())

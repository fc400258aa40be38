"""However a stage is shared, the rows that come out are those of one device."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch

from planner.plan import Span, Wire
from runtime.compute.precision import Precision
from runtime.cut import Cut
from runtime.kv_cache import SessionCache
from runtime.models.block import Run
from runtime.walks.hybrid import Hybrid
from runtime.walks.sequence import SequenceParallel
from runtime.walks.tensor import TensorParallel
from runtime.walks.turn import TurnExchange
from runtime.walks.walk import WHOLE, Walk
from runtime.weights import Checkpoint
from tests.runtime.random_checkpoints import VARIANTS, write_folder
from tests.runtime.walks.together import exchanges, together

CUTS = {  # of the tiny models' 4 heads and 96 or more columns, and of the rows
    2: [((0, 2), (0, 0.5), (0, 512)), ((2, 4), (0.5, 1), (512, 1024))],
    3: [
        ((0, 1), (0, 0.2), (700, 1024)),
        ((1, 3), (0.2, 0.3), (0, 100)),
        ((3, 4), (0.3, 1), (100, 700)),
    ],
}


@cache
def checkpoint_of(variant: str) -> Checkpoint:
    folder = write_folder(variant, Path(mkdtemp()) / "model")
    return Checkpoint.open(folder, Precision.FP32)


class Device:
    """The layers of one share, and caches for two conversations."""

    def __init__(self, checkpoint: Checkpoint, cut: Cut) -> None:
        count = len(checkpoint.spec.layers)
        self.layers = [checkpoint.load_layer(index, cut=cut) for index in range(count)]
        spec = self.layers[0].attention.spec
        self.caches = [SessionCache(spec, Span(0, count), 200) for _ in range(2)]

    def step(self, walk: Walk, hidden: torch.Tensor, runs, wanted=None):
        places = [
            [
                Run(first, n, position, self.caches[which].layers[index])
                for first, n, position, which in runs
            ]
            for index in range(len(self.layers))
        ]
        return walk.run(self.layers, hidden, places, wanted)


def cuts_of(checkpoint: Checkpoint, count: int) -> list[Cut]:
    width = checkpoint.spec.ffn_size
    return [
        Cut(Span(*heads), Span(round(first * width), round(last * width)), index == 0)
        for index, (heads, (first, last), _) in enumerate(CUTS[count])
    ]


STEPS = [  # (first row, rows, position, conversation) of each run
    [(0, 37, 0, 0)],
    [(0, 21, 37, 0), (21, 1, 0, 1)],
    [(0, 30, 58, 0), (30, 40, 1, 1)],
]


def walk_of(name: str, exchange: TurnExchange, count: int, tiles: int) -> Walk:
    units = [Span(*rows) for _, _, rows in CUTS[count]]
    if name == "hybrid":
        return Hybrid(exchange, units, tiles)
    if name == "sequence":
        return SequenceParallel(exchange, units, tiles)
    return TensorParallel(exchange)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    ("walk", "tiles"), [("hybrid", 1), ("hybrid", 3), ("tensor", 1), ("sequence", 1)]
)
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_rows_are_those_of_one_device(variant: str, walk: str, tiles: int, count: int) -> None:
    checkpoint = checkpoint_of(variant)
    alone = Device(checkpoint, Cut())
    cuts = [Cut()] * count if walk == "sequence" else cuts_of(checkpoint, count)
    devices = [Device(checkpoint, cut) for cut in cuts]
    torch.manual_seed(1)
    for turn, runs in enumerate(STEPS):
        rows = sum(run[1] for run in runs)
        hidden = torch.randn(rows, checkpoint.spec.hidden_size)
        with torch.inference_mode():
            expected = alone.step(WHOLE, hidden, runs)
        ends = exchanges(count, Wire.FP32, turn)
        got = together(
            [
                partial(device.step, walk_of(walk, end, count, tiles), hidden, runs)
                for device, end in zip(devices, ends, strict=True)
            ]
        )
        assert got[1:] == [None] * (count - 1)
        assert got[0] is not None
        torch.testing.assert_close(got[0], expected, atol=1e-4, rtol=1e-4)

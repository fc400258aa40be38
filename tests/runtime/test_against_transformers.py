"""The same GGUF in transformers and here: the same logits, the same text, the same token ids."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from runtime.text.folder_tokenizer import folder_tokenizer
from runtime.text.tokenizer import Tokenizer
from runtime.weights import Checkpoint
from tests.runtime.room import Room, make_plan
from tests.runtime.whole_model import WholeModel

# transformers takes a minute to open the file: once, in one process
pytestmark = [pytest.mark.timeout(900), pytest.mark.xdist_group("transformers")]

NEW_TOKENS = 64
TOLERANCE = 1e-4  # of the largest logit

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Die Kartoffel ist",
    "Once upon a time, in a small house by the sea,",
    "1 + 1 = 2\n2 + 2 = 4\n3 + 3 =",
    "<b>Ingredients</b>\n\n- flour\n- sugar\n-",
    "日本の首都は",
    "🙂 is a smile, 🙁 is",
    "Q: What is the boiling point of water?\n\nA:",
]
LONG_PROMPT = " ".join(f"{n} squared is {n * n}, and {n} doubled is {2 * n}." for n in range(1, 46))

TEXTS = [
    *PROMPTS,
    "Crème brûlée, naïve café, Ångström, mañana",
    "emoji 👩‍👩‍👧‍👦 and 🇩🇪 and \U00013000",
    "tabs\tand\t\ttabs\t \tand spaces",
    "runs  of   spaces    of          many lengths   ",
    "   in front, and blank lines\n\n\n\nbetween\n\n",
    "<h1>Title</h1><p>text</p> <br> > </p> >  </",
    "<start_of_turn>user\nHi!<end_of_turn>\n<start_of_turn>model\n",
    "▁ is written for a space, <0x41> for a byte, <unused7>",
    "",
    " ",
    "x" * 300,
    "The quick brown fox's \"jumps\" — over 12,345.67 dogs; isn't it?" * 5,
]


@pytest.fixture(scope="module")
def gemma(gemma_path: Path) -> Checkpoint:
    """As it is run: the file's own numbers, of which nothing is lost."""
    return Checkpoint.open(gemma_path)


@pytest.fixture(scope="module")
def one_reader(gemma_path: Path) -> Iterator[None]:
    """The `gguf` package takes 10 to 30 s to open this file, and transformers opens it thrice."""
    reader = gguf.GGUFReader(gemma_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", lambda path: reader)
        yield


@pytest.fixture(scope="module")
def reference(gemma_path: Path, one_reader: None) -> Any:
    """transformers' own config, weights and model; its from_pretrained would want accelerate."""
    transformers = pytest.importorskip("transformers")
    gguf_files = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    config = transformers.AutoConfig.from_pretrained(gemma_path.parent, gguf_file=gemma_path.name)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    loaded = gguf_files.load_gguf_checkpoint(
        str(gemma_path), return_tensors=True, model_to_load=model, torch_dtype=torch.float32
    )
    missing, unexpected = model.load_state_dict(loaded["tensors"], strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    model.tie_weights()
    return model.eval()


@pytest.fixture(scope="module")
def reference_tokenizer(gemma_path: Path, one_reader: None) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(gemma_path.parent, gguf_file=gemma_path.name)


@pytest.fixture(scope="module")
def model(gemma: Checkpoint) -> WholeModel:
    return WholeModel(gemma)


@pytest.fixture(scope="module")
def tokenizer(gemma: Checkpoint) -> Tokenizer:
    return gemma.tokenizer()


@pytest.fixture(scope="module")
def texts() -> dict[str, list[int]]:
    """What one device says to each prompt, by whichever test asks first."""
    return {}


@pytest.mark.parametrize("prompt", [*PROMPTS, LONG_PROMPT], ids=lambda prompt: prompt[:16])
def test_generates_what_transformers_generates(
    prompt: str,
    model: WholeModel,
    tokenizer: Tokenizer,
    reference: Any,
    texts: dict[str, list[int]],
) -> None:
    """Token by token through our caches; transformers sees all at once and must agree with each."""
    ids = tokenizer.encode(prompt)
    chosen, ours = model.generate(ids, NEW_TOKENS)
    texts[prompt] = chosen
    with torch.inference_mode():
        whole = torch.tensor([ids + chosen[:-1]])
        theirs = reference(whole, logits_to_keep=NEW_TOKENS).logits[0]  # [NEW_TOKENS, V]
    error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    print(f"{len(ids)} + {NEW_TOKENS} tokens, largest relative error {error:.1e}")
    assert error < TOLERANCE
    assert chosen == theirs.argmax(dim=-1).tolist()


def test_the_long_prompt_leaves_the_window(model: WholeModel, tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode(LONG_PROMPT)) > 512
    assert model.spec.layers[0].window == 512


def test_a_prompt_in_chunks_is_the_prompt_at_once(model: WholeModel, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(LONG_PROMPT)
    once = model.prefill(ids, model.new_cache(), chunk=len(ids))
    for chunk in (512, 100):
        in_chunks = model.prefill(ids, model.new_cache(), chunk=chunk)
        assert (once - in_chunks).abs().max() < TOLERANCE * once.abs().max()


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:16])
def test_tokenizes_as_transformers_does(
    text: str, tokenizer: Tokenizer, reference_tokenizer: Any
) -> None:
    assert tokenizer.encode(text) == reference_tokenizer(text)["input_ids"]


def test_the_tokenizer_of_a_folder_is_that_of_the_gguf(
    tmp_path: Path, tokenizer: Tokenizer, reference_tokenizer: Any
) -> None:
    """262,144 tokens and 513,511 merges, written as a folder has them."""
    reference_tokenizer.save_pretrained(tmp_path)
    from_folder = folder_tokenizer(tmp_path, {"eos_token_id": [1, 106]})
    assert from_folder.end_ids == tokenizer.end_ids
    for text in [*TEXTS, LONG_PROMPT]:
        ids = from_folder.encode(text)
        assert ids == tokenizer.encode(text)
        assert from_folder.decode(ids) == tokenizer.decode(ids)


# Cut anywhere: in front of a full layer, behind one, one layer alone, the head alone with a layer.
CUTS = [(9,), (5, 12), (1, 6, 17)]


@pytest.mark.parametrize("cuts", CUTS, ids=str)
async def test_the_same_text_on_two_three_and_four_devices(
    cuts: tuple[int, ...],
    gemma: Checkpoint,
    model: WholeModel,
    tokenizer: Tokenizer,
    texts: dict[str, list[int]],
) -> None:
    """What one device says, which transformers agrees with, said by several."""
    for prompt in PROMPTS:
        if prompt not in texts:
            texts[prompt], _ = model.generate(tokenizer.encode(prompt), NEW_TOKENS)
    async with Room.of(gemma, len(cuts) + 1) as room:
        await room.put_up(make_plan(gemma, cuts, sessions=len(PROMPTS), context=1024))

        async def say(prompt: str) -> list[int]:
            session = room.session(0, tokenizer.encode(prompt), NEW_TOKENS)
            return [chosen.token async for chosen in session.tokens()]

        said = await asyncio.gather(*(say(prompt) for prompt in PROMPTS))
    assert said == [texts[prompt] for prompt in PROMPTS]

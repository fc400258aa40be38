"""Each family against transformers: logits, greedy tokens, and the same on several devices.

The models are small and random, for their weights install from nowhere; what is compared is the
arithmetic and the reading of the files, in both formats.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from runtime.compute.precision import Precision
from runtime.weights import Checkpoint
from tests.runtime.gguf_from_folder import write_as_gguf
from tests.runtime.random_checkpoints import VARIANTS, VOCABULARY, make_model
from tests.runtime.room import Room, make_plan
from tests.runtime.whole_model import WholeModel

pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("transformers")]

NEW_TOKENS = 24
TOLERANCE = 1e-4
LENGTHS = (1, 3, 7, 20, 33, 60)  # in tokens; the windows see 8, Llama 3's first context is 32
PROMPTS = [
    torch.randint(
        3, VOCABULARY, (length,), generator=torch.Generator().manual_seed(length)
    ).tolist()
    for length in LENGTHS
]
# llama.cpp has no OPT, no sliding layers in Qwen 2, and knows Gemma's scale by its size alone.
ONLY_IN_FOLDERS = ("opt", "qwen2 with", "gemma3 with")
IN_GGUF = [name for name in VARIANTS if not name.startswith(ONLY_IN_FOLDERS)]
CUTS = [(), (2,), (1, 3)]


@pytest.fixture(scope="module", autouse=True)
def transformers() -> Any:
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def reference() -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def of(variant: str) -> Any:
        if variant not in made:
            made[variant] = make_model(variant)
        return made[variant]

    return of


@pytest.fixture(params=VARIANTS)
def in_folder(
    request: pytest.FixtureRequest, reference: Callable[[str], Any], tmp_path: Path
) -> tuple[Any, Checkpoint]:
    model = reference(request.param)
    model.save_pretrained(tmp_path)
    return model, Checkpoint.open(tmp_path, Precision.FP32)


@pytest.fixture(params=IN_GGUF)
def in_gguf(
    request: pytest.FixtureRequest, reference: Callable[[str], Any], tmp_path: Path
) -> tuple[Any, Checkpoint]:
    model = reference(request.param)
    path = write_as_gguf(model, tmp_path / "model.gguf")
    return model, Checkpoint.open(path, Precision.FP32)


def test_a_folder_says_what_transformers_says(in_folder: tuple[Any, Checkpoint]) -> None:
    compare(*in_folder)


def test_a_gguf_says_what_transformers_says(in_gguf: tuple[Any, Checkpoint]) -> None:
    compare(*in_gguf)


def compare(reference: Any, checkpoint: Checkpoint) -> None:
    """Token by token through our caches; transformers sees all at once and must agree with each."""
    model, said, worst = WholeModel(checkpoint), set(), 0.0
    for prompt in PROMPTS:
        chosen, ours = model.generate(prompt, NEW_TOKENS, chunk=16)
        theirs = logits_of(reference, prompt, chosen)
        worst = max(worst, (ours - theirs).abs().max().item())
        assert chosen == theirs.argmax(dim=-1).tolist()
        said |= set(chosen)
    print(f"largest error {worst:.1e}, logits up to {theirs.abs().max():.0f}")
    assert worst < TOLERANCE
    assert len(said) > 12  # a model that repeats itself would agree with anything


def logits_of(reference: Any, prompt: list[int], chosen: list[int]) -> torch.Tensor:
    """[NEW_TOKENS, V]: what each chosen token was chosen from."""
    with torch.inference_mode():
        whole = torch.tensor([prompt + chosen[:-1]])
        logits: torch.Tensor = reference(whole, logits_to_keep=NEW_TOKENS).logits[0]
    return logits


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", ["llama 3", "gpt2"])
def test_weights_stored_in_two_bytes(
    tmp_path: Path, variant: str, dtype: torch.dtype, transformers: Any
) -> None:
    make_model(variant).to(dtype).save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(tmp_path, Precision.FP32)
    assert {info.type.block_bytes for info in checkpoint.file.tensors.values()} == {2}
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    compare(model.eval(), checkpoint)


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.INT8])
@pytest.mark.parametrize("variant", VARIANTS)
def test_less_memory_is_nearly_the_same(
    tmp_path: Path, variant: str, precision: Precision, reference: Callable[[str], Any]
) -> None:
    model = reference(variant)
    model.save_pretrained(tmp_path)
    smaller = WholeModel(Checkpoint.open(tmp_path, precision))
    prompt = PROMPTS[-1]
    ours = smaller.prefill(prompt, smaller.new_cache(), chunk=16)
    with torch.inference_mode():
        theirs = model(torch.tensor([prompt])).logits[0, -1]
    error = (ours - theirs).norm() / theirs.norm()
    print(f"relative error {error:.1e}")
    assert 1e-6 < error < 0.1


async def test_the_same_tokens_on_one_two_and_three_devices(
    in_folder: tuple[Any, Checkpoint],
) -> None:
    reference, checkpoint = in_folder
    for cuts in CUTS:
        async with Room.of(checkpoint, len(cuts) + 1) as room:
            await room.put_up(make_plan(checkpoint, cuts, sessions=len(PROMPTS), context=256))

            async def say(prompt: list[int], room: Room = room) -> list[int]:
                session = room.session(0, prompt, NEW_TOKENS)
                return [chosen.token async for chosen in session.tokens()]

            said = await asyncio.gather(*(say(prompt) for prompt in PROMPTS))
        for prompt, chosen in zip(PROMPTS, said, strict=True):
            assert chosen == logits_of(reference, prompt, chosen).argmax(dim=-1).tolist()

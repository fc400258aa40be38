"""T5 through the API of real daemons, cut over two devices, and one of them lost."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import torch

from apps.client import ApiError
from apps.measure import generate, generate_and
from runtime.checkpoints import open_model
from tests.apps.test_encoders_mesh import home_for

pytest.importorskip("transformers")
from tests.runtime.random_encoders import write_random
from tests.runtime.test_seq2seq_text import t5_tokenizer

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("text_to_text")]

CONTEXT = 700
MAX_TOKENS = 600  # long enough that a device can be lost in the middle
COMPARED_TOKENS = 100
PROMPT = "one machine"


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("t5")
    model = write_random("t5-1.1", folder)
    t5_tokenizer().save(str(folder / "tokenizer.json"))
    return folder, model


@torch.inference_mode()
def reference(folder: Path, model: Any, tokens: int) -> list[int]:
    ids = open_model(folder).tokenizer().encode(PROMPT)
    said = model.generate(torch.tensor([ids]), max_new_tokens=tokens, num_beams=1)[0].tolist()[1:]
    end = model.generation_config.eos_token_id
    return said[: said.index(end)] if end in said else said


async def test_a_translation_and_a_device_lost_in_it(t5: tuple[Path, Any]) -> None:
    """Over two devices of three; the third takes the place of the one that is lost."""
    folder, model = t5
    expected = reference(folder, model, COMPARED_TOKENS)
    assert len(expected) == COMPARED_TOKENS
    async with home_for(open_model(folder), 3, 0.67, CONTEXT) as home:
        owner = home.devices[0]
        whole = await generate(owner, str(folder), PROMPT, MAX_TOKENS)
        assert whole.token_ids[:COMPARED_TOKENS] == expected
        assert len(whole.token_ids) == MAX_TOKENS
        async with owner.client() as client:
            (plan,) = (await client.get("/potluck/status"))["plans"]
        used = [stage["device"] for stage in plan["stages"]]
        assert len(used) == 2
        victim = next(d for d in home.devices[1:] if d.device_id in used)
        lost = await generate_and(owner, str(folder), PROMPT, MAX_TOKENS, 5, victim.kill)
        assert lost.token_ids == whole.token_ids
        assert lost.text == whole.text
        assert any(event["event"] == "resumed" for event in owner.events)


async def test_a_translation_as_it_comes_and_at_once(t5: tuple[Path, Any]) -> None:
    folder, _ = t5
    async with home_for(open_model(folder), 1, 1.1, CONTEXT) as home:
        body = {"model": str(folder), "prompt": PROMPT, "max_tokens": 20, "temperature": 0}
        async with home.devices[0].client() as client:
            whole = await client.post("/v1/completions", body)
            stream = client.stream("/v1/completions", {**body, "stream": True})
            async with aclosing(stream) as events:
                pieces = [event["choices"][0] async for event in events]
            logprobs = await client.post("/v1/completions", {**body, "logprobs": 2})
            with pytest.raises(ApiError, match="tokens and the model reads|context holds"):
                await client.post("/v1/completions", {**body, "prompt": "kitchen " * 900})
            chat = {"model": str(folder), "messages": [{"role": "user", "content": "hello"}]}
            with pytest.raises(ApiError, match="not for chats"):
                await client.post("/v1/chat/completions", chat)
    (choice,) = whole["choices"]
    assert "".join(piece["text"] for piece in pieces) == choice["text"] != ""
    assert whole["usage"]["completion_tokens"] == len(choice["token_ids"])
    assert len(logprobs["choices"][0]["logprobs"]["tokens"]) == len(choice["token_ids"])

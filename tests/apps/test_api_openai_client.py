"""OpenAI's own client against real daemons: what it sends is taken, what it reads is there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.apps.conftest import LAYERS, TinyMesh
from tests.runtime.chat_model import MESSAGES, write_chat_gemma

openai = pytest.importorskip("openai")

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("tiny_mesh")]


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model of this module's mesh, with a template in its file."""
    return write_chat_gemma(tmp_path_factory.mktemp("client") / "chat.gguf", layers=LAYERS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tiny_mesh: TinyMesh) -> AsyncIterator[Any]:
    base = f"http://127.0.0.1:{tiny_mesh.owner.api_port}/v1"
    async with openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=0) as client:
        yield client


async def test_a_chat(tiny_mesh: TinyMesh, client: Any) -> None:
    answer = await client.chat.completions.create(
        model=tiny_mesh.model,
        messages=MESSAGES,
        max_completion_tokens=12,
        temperature=0.7,
        top_p=0.9,
        seed=7,
        user="somebody",
        extra_body={"min_p": 0.01, "top_k": 50},
    )
    again = await client.chat.completions.create(
        model=tiny_mesh.model,
        messages=MESSAGES,
        max_tokens=12,
        temperature=0.7,
        top_p=0.9,
        seed=7,
        extra_body={"min_p": 0.01, "top_k": 50},
    )
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].message.content == again.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 12
    assert answer.id.startswith("chatcmpl-")


async def test_a_chat_as_a_stream(tiny_mesh: TinyMesh, client: Any) -> None:
    whole = await client.chat.completions.create(
        model=tiny_mesh.model, messages=MESSAGES, max_tokens=12, temperature=0
    )
    stream = await client.chat.completions.create(
        model=tiny_mesh.model,
        messages=MESSAGES,
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    *said, last = chunks
    content = "".join(chunk.choices[0].delta.content or "" for chunk in said)
    assert content == whole.choices[0].message.content
    assert said[-1].choices[0].finish_reason == "length"
    assert last.usage.completion_tokens == 12


async def test_its_helper_for_streams_puts_the_message_together(
    tiny_mesh: TinyMesh, client: Any
) -> None:
    asked = {"model": tiny_mesh.model, "messages": MESSAGES, "max_tokens": 12, "temperature": 0}
    whole = (await client.chat.completions.create(**asked)).choices[0].message.content
    # It takes an answer that was cut off at its length for a failure.
    async with client.chat.completions.stream(**asked, stop=whole[4:6]) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.role == "assistant"
    assert final.choices[0].message.content == whole[: whole.index(whole[4:6])]
    assert final.choices[0].finish_reason == "stop"


async def test_a_completion(tiny_mesh: TinyMesh, client: Any) -> None:
    asked = {"model": tiny_mesh.model, "prompt": "the hat", "max_tokens": 8, "temperature": 0}
    whole = await client.completions.create(**asked, frequency_penalty=0, logit_bias={"5": -100})
    stream = await client.completions.create(**asked, logit_bias={"5": -100}, stream=True)
    pieces = [chunk.choices[0].text async for chunk in stream]
    assert "".join(pieces) == whole.choices[0].text
    assert whole.usage.completion_tokens == 8


async def test_logprobs_of_a_stream(tiny_mesh: TinyMesh, client: Any) -> None:
    stream = await client.chat.completions.create(
        model=tiny_mesh.model,
        messages=MESSAGES,
        max_tokens=6,
        temperature=0,
        presence_penalty=0.5,
        logprobs=True,
        top_logprobs=2,
        stream=True,
    )
    told = [
        one
        async for chunk in stream
        if chunk.choices[0].logprobs
        for one in chunk.choices[0].logprobs.content
    ]
    assert len(told) == 6
    assert all(one.logprob <= 0 and len(one.top_logprobs) == 2 for one in told)


async def test_its_errors_are_its_own(tiny_mesh: TinyMesh, client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="no model is called 'gpt-9'"):
        await client.chat.completions.create(model="gpt-9", messages=MESSAGES)
    long = [{"role": "user", "content": "and " * 200}]
    with pytest.raises(openai.BadRequestError, match="the context holds 128") as caught:
        await client.chat.completions.create(model=tiny_mesh.model, messages=long)
    assert caught.value.code == "PromptTooLong"
    assert caught.value.type == "invalid_request_error"
    turns = [MESSAGES[1], MESSAGES[1]]
    with pytest.raises(openai.BadRequestError, match="must take turns"):
        await client.chat.completions.create(model=tiny_mesh.model, messages=turns, stream=True)


async def test_models(client: Any) -> None:
    async for model in client.models.list():
        assert (await client.models.retrieve(model.id)).id == model.id
    with pytest.raises(openai.NotFoundError, match="no model is called 'gpt-9'"):
        await client.models.retrieve("gpt-9")

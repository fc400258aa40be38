"""The local API of real daemons, as OpenAI clients and the command use it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from apps.client import ApiError
from runtime.weights import Checkpoint
from tests.apps.conftest import SESSIONS, TinyMesh

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("tiny_mesh")]

PROMPT = "the cat in the hat"


async def ask(mesh: TinyMesh, device: int = 0, **fields: Any) -> dict[str, Any]:
    body = {"model": mesh.model, "prompt": PROMPT, "max_tokens": 12, "temperature": 0, **fields}
    async with mesh.home.devices[device].client() as client:
        return await client.post("/v1/completions", body)


async def test_every_device_gives_the_same_greedy_text(tiny_mesh: TinyMesh) -> None:
    answers = [await ask(tiny_mesh, device) for device in range(3)]
    assert len({answer["choices"][0]["text"] for answer in answers}) == 1
    assert answers[0]["usage"]["completion_tokens"] == 12
    assert len(answers[0]["choices"][0]["token_ids"]) == 12
    assert answers[0]["choices"][0]["finish_reason"] == "length"


async def test_the_plan_splits_what_no_device_can_hold(tiny_mesh: TinyMesh) -> None:
    await ask(tiny_mesh)
    async with tiny_mesh.owner.client() as client:
        (plan,) = (await client.get("/potluck/status"))["plans"]
    covered = [layer for stage in plan["stages"] for layer in range(*stage["layers"])]
    assert covered == list(range(6))
    assert len(plan["stages"]) >= 2
    assert "no single device can hold" in plan["reason"]


async def test_a_stream_is_the_same_text_in_pieces(tiny_mesh: TinyMesh) -> None:
    whole = await ask(tiny_mesh)
    body = {
        "model": tiny_mesh.model,
        "prompt": PROMPT,
        "max_tokens": 12,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    async with (
        tiny_mesh.owner.client() as client,
        aclosing(client.stream("/v1/completions", body)) as stream,
    ):
        events = [event async for event in stream]
    *pieces, usage = events
    text = "".join(piece["choices"][0]["text"] for piece in pieces)
    assert text == whole["choices"][0]["text"]
    assert pieces[-1]["choices"][0]["finish_reason"] == "length"
    assert usage["usage"]["completion_tokens"] == 12


async def test_a_sampled_text_follows_its_seed(tiny_mesh: TinyMesh) -> None:
    first = await ask(tiny_mesh, 0, temperature=1.5, seed=7, max_tokens=20)
    again = await ask(tiny_mesh, 1, temperature=1.5, seed=7, max_tokens=20)
    other = await ask(tiny_mesh, 0, temperature=1.5, seed=8, max_tokens=20)
    assert first["choices"] == again["choices"]
    assert first["choices"] != other["choices"]


async def test_penalties_steer_and_are_the_same_everywhere(tiny_mesh: TinyMesh) -> None:
    plain = await ask(tiny_mesh, max_tokens=30)
    for penalty in ({"repetition_penalty": 1.8}, {"frequency_penalty": 2.0, "logit_bias": {}}):
        first, second = [await ask(tiny_mesh, n, max_tokens=30, **penalty) for n in (0, 1)]
        assert first["choices"] == second["choices"]
        assert first["choices"][0]["token_ids"] != plain["choices"][0]["token_ids"]
        said = [len(set(one["choices"][0]["token_ids"])) for one in (plain, first)]
        assert said[1] >= said[0]


async def test_logprobs_come_with_the_tokens(tiny_mesh: TinyMesh) -> None:
    plain = (await ask(tiny_mesh))["choices"][0]
    (choice,) = (await ask(tiny_mesh, logprobs=3))["choices"]
    told = choice["logprobs"]
    assert choice["text"] == plain["text"]
    assert plain["logprobs"] is None
    assert len(told["tokens"]) == 12
    assert told["text_offset"][0] == 0
    assert told["text_offset"] == sorted(told["text_offset"])
    assert all(1 <= len(top) <= 3 for top in told["top_logprobs"])  # by text: two may share one
    # A greedy token is the most probable one.
    for logprob, top in zip(told["token_logprobs"], told["top_logprobs"], strict=True):
        assert logprob == max(top.values()) < 0


async def test_options_that_change_nothing_are_taken(tiny_mesh: TinyMesh) -> None:
    plain = await ask(tiny_mesh)
    with_options = await ask(tiny_mesh, best_of=1, echo=False, frequency_penalty=0, logit_bias={})
    assert plain["choices"] == with_options["choices"]


async def test_a_hop_carries_the_activation_and_at_most_200_bytes(tiny_mesh: TinyMesh) -> None:
    """From each stage to the next, as the links themselves count it: 40 tokens more, and no other
    difference, are 40 frames more on every hop.
    """
    counts = [await sent(tiny_mesh)]
    for tokens in (10, 50):
        await ask(tiny_mesh, max_tokens=tokens)
        counts.append(await sent(tiny_mesh))
    hidden_bytes = 4 * Checkpoint.open(Path(tiny_mesh.model)).spec.hidden_size
    hops = 0
    for before, short, long in zip(
        *([count[key] for key in counts[0]] for count in counts), strict=True
    ):
        frames = (long[0] - short[0]) - (short[0] - before[0])
        size = (long[1] - short[1]) - (short[1] - before[1])
        if frames == 40:
            hops += 1
            assert size / 40 <= hidden_bytes + 200
    assert hops >= 2  # to the next stage, and back to the owner


async def sent(mesh: TinyMesh) -> dict[tuple[str, str], tuple[int, int]]:
    """(frames, bytes) from each device to each other one."""
    counted = {}
    for device in mesh.home.devices:
        async with device.client() as client:
            members = (await client.get("/potluck/status"))["mesh"]["members"]
        for member in members:
            if link := member["link"]:
                key = (device.device_id, member["id"])
                counted[key] = (link["sent_frames"], link["sent_bytes"])
    return counted


async def test_a_stop_string_ends_the_text_before_it(tiny_mesh: TinyMesh) -> None:
    whole = (await ask(tiny_mesh))["choices"][0]["text"]
    stop = whole[4:6]
    cut = (await ask(tiny_mesh, stop=stop))["choices"][0]
    assert cut["text"] == whole[: whole.index(stop)]
    assert cut["finish_reason"] == "stop"


async def test_several_conversations_at_once(tiny_mesh: TinyMesh) -> None:
    """More than there are places: the rest waits its turn."""
    expected = (await ask(tiny_mesh))["choices"][0]["text"]
    answers = await asyncio.gather(*(ask(tiny_mesh, n % 3) for n in range(3 * SESSIONS)))
    assert {answer["choices"][0]["text"] for answer in answers} == {expected}


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"model": "no-such-model"}, 404, "no model is called 'no-such-model'"),
        ({"model": "/no/such/file.gguf"}, 404, "there is no file"),
        ({"prompt": "a " * 200}, 400, "the context holds 128"),
        ({"prompt": 5}, 400, "'prompt' must be"),
        ({"max_tokens": 0}, 400, "at least 1"),
        ({"temperature": "hot"}, 400, "'temperature' must be a float"),
        ({"temperature": -1}, 400, "temperature lies between"),
        ({"top_p": 0}, 400, "top_p lies above 0"),
        ({"n": 2}, 400, "'n' must be 1"),
        ({"logprobs": 21}, 400, "'logprobs' must be a number from 0 to 20"),
        ({"echo": True}, 400, "'echo' must be False, or left out"),
        ({"suffix": "x"}, 400, "'suffix' must be"),
        ({"min_p": -1}, 400, "min_p lies between"),
        ({"logit_bias": {"x": 1}}, 400, "names tokens by their ids"),
        ({"presence_penalty": 2.5}, 400, "presence_penalty lies between -2 and 2"),
        ({"repetition_penalty": 0}, 400, "repetition_penalty lies above 0"),
        ({"prompt": [2, 300_000]}, 400, "token ids between 0 and"),
        ({"prompt": [2, 3_000_000_000]}, 400, "'prompt' must be"),
        ({"temperature": 10**400}, 400, "'temperature' must be"),
        ({"top_k": 2**70}, 400, "'top_k' must be"),
        ({"model": "~nobody-here/x.gguf"}, 404, "cannot be opened"),
        ({"model": "m" * 300}, 404, "m"),
        ({"stop": [1]}, 400, "'stop' must be"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_bad_request_is_told_in_words(
    tiny_mesh: TinyMesh, fields: dict[str, Any], status: int, words: str
) -> None:
    body = {"model": tiny_mesh.model, "prompt": PROMPT, **fields}
    url = f"http://127.0.0.1:{tiny_mesh.owner.api_port}/v1/completions"
    async with aiohttp.ClientSession() as session, session.post(url, json=body) as response:
        assert response.status == status
        assert words in (await response.json())["error"]["message"]


async def test_a_body_that_is_no_json_is_told_in_words(tiny_mesh: TinyMesh) -> None:
    url = f"http://127.0.0.1:{tiny_mesh.owner.api_port}/v1/completions"
    async with aiohttp.ClientSession() as session, session.post(url, data=b"{") as response:
        assert response.status == 400
        assert "not JSON" in (await response.json())["error"]["message"]


@pytest.mark.parametrize(
    "headers", [{"Host": "evil.example"}, {"Origin": "https://evil.example"}], ids=str
)
async def test_a_web_page_cannot_use_the_api(tiny_mesh: TinyMesh, headers: dict[str, str]) -> None:
    url = f"http://127.0.0.1:{tiny_mesh.owner.api_port}/potluck/invite"
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json={}, headers=headers) as response,
    ):
        assert response.status == 403


async def test_models_lists_nothing_that_is_not_here(tiny_mesh: TinyMesh) -> None:
    async with tiny_mesh.owner.client() as client:
        body = await client.get("/v1/models")
    assert body["object"] == "list"


async def test_plan_shows_every_candidate_with_its_reason(tiny_mesh: TinyMesh) -> None:
    async with tiny_mesh.owner.client() as client:
        body = await client.get("/potluck/plan", model=tiny_mesh.model)
    devices = {frozenset(one["devices"]) for one in body["candidates"]}
    assert len(devices) == 7  # the subsets of three devices, each in one way or in several
    refused = [one for one in body["candidates"] if one["predicted"] is None]
    assert len(refused) == 3
    assert all("short by" in one["reason"] for one in refused)
    chosen = body["candidates"][0]
    assert chosen["chosen"]
    assert chosen["predicted"]["decode_ms"] > 0


async def test_a_client_that_hangs_up_frees_its_place(tiny_mesh: TinyMesh) -> None:
    body = {"model": tiny_mesh.model, "prompt": PROMPT, "max_tokens": 100, "stream": True}
    async with tiny_mesh.owner.client() as client:
        for _ in range(2 * SESSIONS):
            async with aclosing(client.stream("/v1/completions", body)) as stream:
                await anext(stream)
    async with asyncio.timeout(10):
        while any([await conversations(tiny_mesh, device) for device in range(3)]):
            await asyncio.sleep(0.05)


async def conversations(mesh: TinyMesh, device: int) -> int:
    async with mesh.home.devices[device].client() as client:
        return int((await client.get("/potluck/status"))["conversations"])


async def test_an_unknown_model_in_a_plan_request(tiny_mesh: TinyMesh) -> None:
    async with tiny_mesh.owner.client() as client:
        with pytest.raises(ApiError, match="no model is called"):
            await client.get("/potluck/plan", model="nothing")
        with pytest.raises(ApiError, match="name the model"):
            await client.get("/potluck/plan")

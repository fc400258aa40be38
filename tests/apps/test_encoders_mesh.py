"""Embeddings and speech through the API of real daemons, cut over several devices."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import shutil
import struct
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import pytest_asyncio
import torch

from apps.chaos.home import Home
from apps.client import ApiError
from apps.local_mesh import Device
from apps.planning.profiles import SCRATCH_BYTES
from mesh.errors import ModelNotFound
from planner.memory import held_bytes
from planner.plan import Capacity, Span
from runtime.checkpoints import Model, open_model
from runtime.seq2seq.weights import Seq2SeqCheckpoint
from runtime.stored.model_packages import MINILM, WHISPER
from tests.runtime.library import Embedder
from tests.runtime.tiny_model import write_tiny_gemma

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("encoders")]

SESSIONS, CONTEXT = 2, 128
TEXTS = [
    "turn on the kitchen lights",
    "The lamp in the kitchen should be on.",
    "What is the capital of France?",
    "Crème brûlée, naïve café, Ångström; 日本の首都は",
    "",
    "word " * 600,  # longer than it reads: the end is cut off
]
TOLERANCE = 1e-5


def needed_bytes(model: Model, context: int = CONTEXT) -> int:
    """Of weights and caches, on one device."""
    profile = model.profile()
    capacity = Capacity(SESSIONS, min(context, profile.context))
    return held_bytes(profile, Span(0, len(profile.layers)), capacity)


@asynccontextmanager
async def home_for(
    model: Model, count: int, share: float, context: int = CONTEXT
) -> AsyncIterator[Home]:
    """Each device may use that share of what the model takes, beside its scratch."""
    memory = SCRATCH_BYTES + math.ceil(needed_bytes(model, context) * share)
    async with Home.of(count, str(memory), sessions=SESSIONS, context=context) as home:
        yield home


def packaged(package: Any) -> Seq2SeqCheckpoint:
    try:
        found = open_model(package.folder())
    except ModelNotFound as error:
        pytest.skip(str(error))
    assert isinstance(found, Seq2SeqCheckpoint)
    return found


@pytest.fixture(scope="module")
def minilm() -> Seq2SeqCheckpoint:
    return packaged(MINILM)


@pytest.fixture(scope="module")
def expected(minilm: Seq2SeqCheckpoint) -> torch.Tensor:
    """In one process, which is what sentence-transformers says (test_encoders_minilm)."""
    return Embedder(minilm.path).embed(TEXTS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(minilm: Seq2SeqCheckpoint) -> AsyncIterator[Home]:
    """Two devices, either of which can hold MiniLM alone, and both together Whisper."""
    whisper = packaged(WHISPER)
    async with home_for(whisper, 2, 0.67) as home:
        yield home


async def embed(device: Device, **fields: Any) -> dict[str, Any]:
    async with device.client() as client:
        return await client.post("/v1/embeddings", {"model": MINILM.name} | fields)


def vectors(body: dict[str, Any]) -> torch.Tensor:
    assert [one["index"] for one in body["data"]] == list(range(len(body["data"])))
    return torch.tensor([one["embedding"] for one in body["data"]])


async def stages(device: Device, name: str) -> int:
    async with device.client() as client:
        plans = (await client.get("/potluck/status"))["plans"]
    return next(len(plan["stages"]) for plan in plans if plan["model"] == name)


async def transcribe(
    device: Device, wav: bytes, model: str = WHISPER.name, **fields: str
) -> tuple[int, Any]:
    form = aiohttp.FormData()
    for name, value in {"model": model, **fields}.items():
        form.add_field(name, value)
    form.add_field("file", io.BytesIO(wav), filename="said.wav", content_type="audio/wav")
    url = f"http://127.0.0.1:{device.api_port}/v1/audio/transcriptions"
    async with aiohttp.ClientSession() as session, session.post(url, data=form) as response:
        is_json = response.content_type == "application/json"
        return response.status, (await response.json() if is_json else await response.text())


def spoken(text: str) -> bytes:
    """As espeak-ng writes it into a pipe: 22.05 kHz, and a length that it does not know yet."""
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed; run: apt-get install espeak-ng")
    return subprocess.run(["espeak-ng", "--stdout", text], capture_output=True, check=True).stdout


# --- embeddings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "share"), [(2, 0.67), (3, 0.45)])
async def test_embeddings_are_the_same_cut_over_devices(
    minilm: Seq2SeqCheckpoint, expected: torch.Tensor, count: int, share: float
) -> None:
    async with home_for(minilm, count, share) as home:
        for device in (home.devices[0], home.devices[-1]):
            body = await embed(device, input=TEXTS)
            assert (vectors(body) - expected).abs().max() < TOLERANCE
        assert await stages(home.devices[0], MINILM.name) == count


async def test_a_device_lost_under_a_request_costs_no_vector(
    minilm: Seq2SeqCheckpoint, expected: torch.Tensor
) -> None:
    async with home_for(minilm, 3, 0.67) as home:
        await embed(home.devices[0], input="first")
        async with home.devices[0].client() as client:
            (plan,) = (await client.get("/potluck/status"))["plans"]
        used = {stage["device"] for stage in plan["stages"]}
        victim = next(d for d in home.devices[1:] if d.device_id in used)
        asking = asyncio.ensure_future(embed(home.devices[0], input=TEXTS * 30))
        async with asyncio.timeout(30.0), victim.client() as client:
            while not (await client.get("/potluck/status"))["conversations"]:
                await asyncio.sleep(0.01)
        await victim.kill()
        body = await asking
        assert any(event["event"] == "resumed" for event in home.devices[0].events)
    assert (vectors(body) - expected.repeat(30, 1)).abs().max() < TOLERANCE


async def test_a_sentence_encoder_that_only_another_device_has(tmp_path: Path) -> None:
    """Its tokenizer, its pooling and its share come with the pieces."""
    pytest.importorskip("transformers")
    from tests.runtime.test_seq2seq_pieces import write_sentence_encoder

    there = Embedder(write_sentence_encoder(tmp_path / "sentences"))
    need = needed_bytes(there.chain.checkpoint)
    memory = SCRATCH_BYTES + need * 2 // 3
    async with Home.of(2, str(memory), sessions=SESSIONS, context=CONTEXT) as home:
        shutil.copytree(tmp_path / "sentences", home.devices[1].home / "models" / "sentences")
        body = await embed(home.devices[0], model="sentences", input=["a b c", "z" * 50])
        assert (vectors(body) - there.embed(["a b c", "z" * 50])).abs().max() < TOLERANCE
        assert await stages(home.devices[0], "sentences") == 2
        async with home.devices[0].client() as client:
            models = (await client.get("/potluck/models"))["models"]
        (found,) = [model for model in models if model["name"] == "sentences"]
        assert found["purpose"] == "embeddings"
        assert len(found["devices"]) == 2


@pytest.mark.asyncio(loop_scope="module")
async def test_what_openai_s_own_client_sends_and_reads(mesh: Home, expected: torch.Tensor) -> None:
    openai = pytest.importorskip("openai")
    base = f"http://127.0.0.1:{mesh.devices[0].api_port}/v1"
    async with openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=0) as client:
        answer = await client.embeddings.create(model=MINILM.name, input=TEXTS[:3])
        found = torch.tensor([one.embedding for one in answer.data])  # sent as base64
        assert (found - expected[:3]).abs().max() < TOLERANCE
        assert answer.usage.prompt_tokens > 0
        heard = await client.audio.transcriptions.create(
            model=WHISPER.name, file=("said.wav", wav_of(16_000)), language="en"
        )
        assert isinstance(heard.text, str)
        with pytest.raises(openai.BadRequestError, match="no WAV file"):
            await client.audio.transcriptions.create(model=WHISPER.name, file=("said.mp3", b"ID3"))


@pytest.mark.asyncio(loop_scope="module")
async def test_every_form_of_input(mesh: Home, expected: torch.Tensor) -> None:
    device = mesh.devices[1]
    one = await embed(device, input=TEXTS[0])
    assert (vectors(one)[0] - expected[0]).abs().max() < TOLERANCE
    assert one["model"] == MINILM.name
    assert one["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    ids = open_model(MINILM.folder()).tokenizer().encode(TEXTS[0])
    for given in (ids, [ids]):
        body = await embed(device, input=given)
        assert (vectors(body)[0] - expected[0]).abs().max() < TOLERANCE
    packed = await embed(device, input=TEXTS[:2], encoding_format="base64")
    raw = [base64.b64decode(one["embedding"]) for one in packed["data"]]
    found = np.stack([np.frombuffer(one, "<f4") for one in raw])
    assert np.abs(found - expected[:2].numpy()).max() < TOLERANCE


@pytest.mark.asyncio(loop_scope="module")
async def test_several_requests_at_once(mesh: Home, expected: torch.Tensor) -> None:
    """More than the plan has places for; those beyond wait."""
    asked = [embed(mesh.devices[n % 2], input=[TEXTS[n % 5]] * 3) for n in range(8)]
    bodies = await asyncio.gather(*asked)
    for n, body in enumerate(bodies):
        assert (vectors(body) - expected[n % 5]).abs().max() < TOLERANCE


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "'input' must be"),
        ({"input": []}, "'input' must be"),
        ({"input": [1.5]}, "'input' must be"),
        ({"input": [[]]}, "'input' must be"),
        ({"input": ["a", 1]}, "'input' must be"),
        ({"input": ["a"] * 3000}, "at most 2048 texts"),
        ({"input": [30_522]}, "token ids lie between 0 and 30521"),
        ({"input": [1] * 300}, "has 300 tokens and the model reads 256"),
        ({"input": "a", "encoding_format": "hex"}, "'encoding_format' must be"),
        ({"input": "a", "dimensions": 100}, "'dimensions' must be 384"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_request_that_cannot_be_answered(
    mesh: Home, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(ApiError, match=said) as caught:
        await embed(mesh.devices[0], **fields)
    assert caught.value.code in ("BadRequest", "BadPrompt", "PromptTooLong")


@pytest.mark.asyncio(loop_scope="module")
async def test_a_body_of_ten_megabytes(mesh: Home) -> None:
    url = f"http://127.0.0.1:{mesh.devices[0].api_port}/v1/embeddings"
    body = io.BytesIO(json.dumps({"model": MINILM.name, "input": "a" * 10_000_000}).encode())
    async with aiohttp.ClientSession() as session, session.post(url, data=body) as response:
        assert response.status == 413
        assert "exceeded" in (await response.json())["error"]["message"]


@pytest.mark.asyncio(loop_scope="module")
async def test_what_a_model_is_not_for(mesh: Home, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hello"}]
    decoder = str(write_tiny_gemma(tmp_path / "tiny.gguf"))
    async with mesh.devices[0].client() as client:
        for model, path, body, said in (
            (MINILM.name, "/v1/chat/completions", {"messages": messages}, "not for chats"),
            (MINILM.name, "/v1/completions", {"prompt": "a"}, "not for completions"),
            (WHISPER.name, "/v1/embeddings", {"input": "a"}, "not for embeddings"),
            (decoder, "/v1/embeddings", {"input": "a"}, "not for embeddings: it continues texts"),
        ):
            with pytest.raises(ApiError, match=said) as caught:
                await client.post(path, {"model": model, **body})
            assert caught.value.code == "WrongModel"
    status, body = await transcribe(mesh.devices[0], b"", MINILM.name)
    assert (status, body["error"]["code"]) == (400, "WrongModel")


@pytest.mark.asyncio(loop_scope="module")
async def test_the_list_says_what_each_is_for(mesh: Home) -> None:
    async with mesh.devices[0].client() as client:
        models = (await client.get("/potluck/models"))["models"]
    purposes = {model["name"]: model["purpose"] for model in models}
    assert purposes[MINILM.name] == "embeddings"
    assert purposes[WHISPER.name] == "speech-to-text"


# --- speech ---------------------------------------------------------------------------------------


@pytest.mark.asyncio(loop_scope="module")
async def test_speech_becomes_text_over_two_devices(mesh: Home) -> None:
    wav = spoken("turn on the kitchen lights")
    for device in mesh.devices:
        status, body = await transcribe(device, wav)
        assert (status, body) == (200, {"text": "Turn on the kitchen lights."})
    status, text = await transcribe(mesh.devices[0], wav, response_format="text", language="en")
    assert (status, text) == (200, "Turn on the kitchen lights.\n")
    assert await stages(mesh.devices[0], WHISPER.name) == 2


def wav_of(samples: int, *, channels: int = 1, bits: int = 16, kind: int = 1) -> bytes:
    frame = channels * bits // 8
    head = struct.pack("<HHIIHH", kind, channels, 16_000, 16_000 * frame, frame, bits)
    body = bytes(samples * frame)
    chunks = struct.pack("<4sI", b"fmt ", len(head)) + head
    chunks += struct.pack("<4sI", b"data", len(body))
    return struct.pack("<4sI4s", b"RIFF", 4 + len(chunks) + len(body), b"WAVE") + chunks + body


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("wav", "fields", "said"),
    [
        (b"", {}, "no WAV file"),
        (b"ID3\x04 mp3, perhaps", {}, "no WAV file"),
        (wav_of(16_000)[:-5], {}, "breaks off"),
        (wav_of(16_000)[:30], {}, "breaks off"),
        (wav_of(100, bits=8), {}, "16-bit PCM"),
        (wav_of(100, kind=3, bits=32), {}, "16-bit PCM"),
        (wav_of(100, channels=6), {}, "1 or 2 channels"),
        (wav_of(100), {"language": "xx" * 3000}, "has more than 4096 bytes"),
        (wav_of(100), {"timestamp_granularities[]": "word"}, "is not supported"),
        (wav_of(100), {"response_format": "srt"}, "'response_format' must be"),
        (wav_of(100), {"language": "de"}, "knows English only"),
        (wav_of(100), {"temperature": "hot"}, "'temperature' must be"),
        (wav_of(100), {"stream": "true"}, "'stream' must be"),
    ],
    ids=lambda value: repr(value[:20] if isinstance(value, bytes) else value)[:40],
)
async def test_sound_that_cannot_be_heard(
    mesh: Home, wav: bytes, fields: dict[str, str], said: str
) -> None:
    status, body = await transcribe(mesh.devices[0], wav, **fields)
    assert status == 400
    assert said in body["error"]["message"]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_recording_of_a_quarter_of_an_hour(mesh: Home) -> None:
    status, body = await transcribe(mesh.devices[0], wav_of(900 * 16_000))
    assert status == 400
    assert "has more than 26214400 bytes" in body["error"]["message"]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_body_that_is_no_upload(mesh: Home) -> None:
    url = f"http://127.0.0.1:{mesh.devices[0].api_port}/v1/audio/transcriptions"
    async with aiohttp.ClientSession() as session:
        for headers in (
            {"Content-Type": "application/json"},
            {"Content-Type": "multipart/form-data"},
            {"Content-Type": "multipart/form-data; boundary=x"},
        ):
            async with session.post(url, data=b"{}", headers=headers) as response:
                assert response.status == 400, headers
                assert "error" in await response.json()

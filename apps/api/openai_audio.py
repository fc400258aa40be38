"""OpenAI's form of speech: the multipart body of /v1/audio/transcriptions, checked as it comes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aiohttp import BodyPartReader, web

from apps.api.http import BadRequest
from mesh.errors import PotluckError
from mesh.limits import MIB
from runtime.sampling import Sampling

MAX_AUDIO_BYTES: Final = 25 * MIB  # as OpenAI has it: 13 minutes of 16 kHz in one channel
MAX_FIELD_BYTES: Final = 4096
MAX_PARTS: Final = 32
FORMATS: Final = ("json", "text")
# What may be left unsaid, since the answer would be the same.
_KNOWN: Final = ("model", "language", "response_format", "temperature", "prompt", "stream")


@dataclass(frozen=True, slots=True)
class TranscriptionRequest:
    """A checked request."""

    model: str
    wav: bytes
    language: str
    as_text: bool
    sampling: Sampling


async def read_transcription(request: web.Request) -> TranscriptionRequest:
    """Raises BadRequest, which says which field is wrong and what it should be."""
    if request.content_type != "multipart/form-data":
        raise BadRequest(
            "the body must be multipart/form-data with the fields 'file' and 'model', "
            f"got {request.content_type!r:.80}"
        )
    fields: dict[str, str] = {}
    wav: bytes | None = None
    try:
        reader = await request.multipart()
        for _ in range(MAX_PARTS):
            part = await reader.next()
            if part is None:
                break
            if not isinstance(part, BodyPartReader):
                raise BadRequest("the body holds a multipart in a multipart")
            if part.name == "file":
                wav = await _read(part, MAX_AUDIO_BYTES)
            else:
                content = await _read(part, MAX_FIELD_BYTES)
                fields[part.name or ""] = content.decode("utf-8", "replace").strip()
    except (ValueError, AssertionError, web.RequestPayloadError) as error:
        raise BadRequest(f"the body is no multipart/form-data: {error}") from None
    if wav is None:
        raise BadRequest("'file' must be a WAV file; the body has no such field")
    return _request(fields, wav)


def _request(fields: dict[str, str], wav: bytes) -> TranscriptionRequest:
    if not fields.get("model"):
        raise BadRequest("'model' must be the name of a model that hears")
    form = fields.get("response_format") or "json"
    if form not in FORMATS:
        raise BadRequest(f"'response_format' must be 'json' or 'text', got {form!r:.80}")
    for name in fields:
        if name not in _KNOWN:
            raise BadRequest(f"{name!r:.80} is not supported")
    if fields.get("prompt"):
        raise BadRequest("'prompt' is not supported")
    if fields.get("stream", "false").lower() not in ("false", "0", ""):
        raise BadRequest("'stream' must be false, or left out: transcriptions come whole")
    return TranscriptionRequest(
        model=fields["model"],
        wav=wav,
        language=fields.get("language") or "en",
        as_text=form == "text",
        sampling=_sampling(fields.get("temperature") or "0"),
    )


def _sampling(temperature: str) -> Sampling:
    try:
        return Sampling(temperature=float(temperature))
    except (ValueError, PotluckError) as error:
        raise BadRequest(f"'temperature' must be a number: {error}") from None


async def _read(part: BodyPartReader, most: int) -> bytes:
    """The whole of one field. Raises BadRequest for more than `most` bytes of it."""
    content = bytearray()
    while chunk := await part.read_chunk():
        content += chunk
        if len(content) > most:
            raise BadRequest(f"{part.name or ''!r:.80} has more than {most} bytes; send less")
    return bytes(content)

"""The tokenizer of a folder as Hugging Face lays it out, behind the interface of a GGUF file's.

Its vocabulary is told in the words of a GGUF, so that one encoder serves both. The usual library
is not used: it holds the interpreter lock for 1 to 2 s while it takes in a large vocabulary.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from mesh.errors import BadModelFile, UnsupportedModel
from runtime.formats.json_files import MAX_JSON_BYTES, read_object
from runtime.text.byte_level import WORD_RULES
from runtime.text.tokenizer import SpacePrefix, Tokenizer
from runtime.text.tokenizer_json import Pipeline, read_pipeline
from runtime.text.vocabulary import TokenType, Vocabulary

MOST_TOKENS: Final = 1 << 21
MOST_MERGES: Final = 1 << 22
SPECIAL: Final = ("bos_token", "eos_token", "unk_token", "pad_token")


def folder_tokenizer(path: Path, config: Mapping[str, Any]) -> Tokenizer:
    """`config` is config.json. Raises BadModelFile or UnsupportedModel."""
    settings = read_object(path / "tokenizer_config.json") or {}
    if (path / "tokenizer.json").is_file():
        tokenizer = _read_large(path / "tokenizer.json")
        pipeline = read_pipeline(tokenizer)
        added = _list(tokenizer.get("added_tokens", []), "added_tokens")
    elif (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
        vocab = _read_large(path / "vocab.json")
        tokenizer = {"model": {"vocab": vocab, "merges": _merges(path)}}
        prefix = SpacePrefix.UNLESS_THERE if settings.get("add_prefix_space") else SpacePrefix.NEVER
        pipeline = Pipeline(WORD_RULES["gpt-2"], prefix, None)
        added = _added_by_settings(settings, vocab)
    elif (path / "tokenizer.model").is_file():
        raise UnsupportedModel(
            f"{path} has its tokenizer as tokenizer.model only; take a copy with tokenizer.json, "
            "which transformers writes with AutoTokenizer.from_pretrained(..).save_pretrained(..)"
        )
    else:
        raise BadModelFile(f"{path} has no tokenizer.json; copy all files of the model")
    words = _Words(tokenizer["model"], added, settings, config)
    metadata = words.metadata(pipeline) | _ends(path, config)
    return Tokenizer(Vocabulary(metadata), rule=pipeline.rule, prefix=pipeline.prefix)


class _Words:
    """The vocabulary: each token's text and type, by id."""

    def __init__(
        self,
        model: Mapping[str, Any],
        added: list[Any],
        settings: Mapping[str, Any],
        config: Mapping[str, Any],
    ) -> None:
        vocab = model.get("vocab")
        if not isinstance(vocab, dict) or not vocab:
            raise BadModelFile("tokenizer.json has no vocabulary; copy or download it again")
        extra = [_added(one) for one in added]
        ids = [*vocab.values(), *(token_id for _, token_id, _ in extra)]
        if not all(type(i) is int and 0 <= i < MOST_TOKENS for i in ids):
            raise BadModelFile(f"tokenizer.json has token ids beside 0 to {MOST_TOKENS - 1}")
        # The head may have more rows than there are tokens: to be divisible by some power of two.
        rows = config.get("vocab_size")
        padded = rows if type(rows) is int and rows < MOST_TOKENS else 0
        count = max(max(ids) + 1, padded)
        self.texts, self.types = [""] * count, [int(TokenType.UNUSED)] * count
        bytes_have_tokens = bool(model.get("byte_fallback"))
        for text, token_id in vocab.items():
            self.texts[token_id] = text
            is_byte = bytes_have_tokens and len(text) == 6 and text.startswith("<0x")
            self.types[token_id] = TokenType.BYTE if is_byte else TokenType.NORMAL
        for text, token_id, special in extra:
            self.texts[token_id] = text
            self.types[token_id] = TokenType.CONTROL if special else TokenType.USER_DEFINED
        self._ids = {text: token_id for token_id, text in enumerate(self.texts) if text}
        self._merges = [_pair(one) for one in _list(model.get("merges"), "merges", MOST_MERGES)]
        self._settings = settings
        self._unknown = model.get("unk_token")

    def metadata(self, pipeline: Pipeline) -> dict[str, Any]:
        """As a GGUF file would have it."""
        settings = self._settings
        named = _content(settings.get("bos_token"))
        bos = self._id(pipeline.bos or named)
        adds_bos = settings.get("add_bos_token")
        if settings.get("add_eos_token"):
            raise UnsupportedModel("tokenizer_config.json ends each text: no decoder's tokenizer")
        numbers = {
            "bos_token_id": bos,
            "eos_token_id": self._id(_content(settings.get("eos_token"))),
            "unknown_token_id": self._id(self._unknown),
        }
        entries = {
            "model": "llama" if pipeline.rule is None else "gpt2",
            "tokens": self.texts,
            "token_type": self.types,
            "merges": self._merges,
            "add_bos_token": adds_bos if isinstance(adds_bos, bool) else pipeline.bos is not None,
            **{key: number for key, number in numbers.items() if number is not None},
        }
        return {f"tokenizer.ggml.{key}": value for key, value in entries.items()}

    def _id(self, text: Any) -> int | None:
        return self._ids.get(text) if isinstance(text, str) else None


def _ends(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The ids that end a text: one, or a list of them, in either file."""
    generation = read_object(path / "generation_config.json") or {}
    found: list[Any] = []
    for entries in (generation, config):
        ids = entries.get("eos_token_id")
        found += ids if isinstance(ids, list) else [ids]
    ends = [token_id for token_id in dict.fromkeys(found) if type(token_id) is int]
    return {"tokenizer.ggml.eos_token_ids": ends}


def _added_by_settings(settings: Mapping[str, Any], vocab: Mapping[str, Any]) -> list[Any]:
    """The special tokens of a folder without tokenizer.json."""
    decoder = settings.get("added_tokens_decoder", {})
    if not isinstance(decoder, dict):
        raise BadModelFile("added_tokens_decoder of tokenizer_config.json is an object of tokens")
    named = {_content(settings.get(key)) for key in SPECIAL}
    special = [
        {"content": text, "id": vocab[text], "special": True} for text in vocab if text in named
    ]
    return special + [
        {**token, "id": int(token_id)}
        for token_id, token in decoder.items()
        if isinstance(token, dict) and token_id.isdecimal()
    ]


def _added(token: Any) -> tuple[str, int, bool]:
    match token:
        case {"content": str(text), "id": int(token_id)}:
            return text, token_id, bool(token.get("special"))
    raise BadModelFile(f"tokenizer.json adds a token without text or id: {token!r:.100}")


def _pair(merge: Any) -> str:
    match merge:
        case str():
            return merge
        case [str(left), str(right)]:
            return f"{left} {right}"
    raise BadModelFile(f"tokenizer.json has a merge that is no pair: {merge!r:.100}")


def _content(token: Any) -> str | None:
    """The text of a token that may be written out as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _list(value: Any, what: str, most: int = MOST_TOKENS) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise BadModelFile(f"tokenizer.json: {what} is a list of at most {most}")
    return value


def _merges(path: Path) -> list[str]:
    lines = _text(path / "merges.txt").splitlines()
    return [line for line in lines if line and not line.startswith("#version")]


def _read_large(path: Path) -> dict[str, Any]:
    """A JSON object of tens of megabytes, stalling the other threads for 0.1 s and not for 1 s.

    The parser is one call into C; being called back for each number lets the lock go in between.
    Of half a million merges, each a list, the collector would look at all again and again.
    """
    text, collects = _text(path), gc.isenabled()
    gc.disable()
    try:
        value = json.loads(text, parse_int=_number)
        _join_merges(value)
    except (ValueError, RecursionError) as error:
        raise BadModelFile(f"{path} cannot be read: {error}") from None
    finally:
        if collects:
            gc.enable()
    if not isinstance(value, dict):
        raise BadModelFile(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _join_merges(value: Any) -> None:
    """Pairs into texts, of which the collector thinks nothing."""
    match value:
        case {"model": {"merges": list(merges)} as model} if len(merges) <= MOST_MERGES:
            model["merges"] = [_pair(merge) for merge in merges]


def _number(digits: str) -> int:
    return int(digits)


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise BadModelFile(f"{path} has more than {MAX_JSON_BYTES} bytes; is it a tokenizer?")
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadModelFile(f"{path} cannot be read: {error}") from None

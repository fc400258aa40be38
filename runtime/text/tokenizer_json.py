"""What a tokenizer.json asks for: the steps that we know, told in our own words.

The file describes a pipeline: text is normalised, cut into words, and merged; then special tokens
are put around it. Of all such pipelines two kinds are in use among decoders: byte-level ones, and
those that write a space as U+2581. What is neither is refused, for its token ids would be wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tokenizers import Regex

from mesh.errors import BadModelFile, UnsupportedModel
from runtime.text.byte_level import WORD_RULES, WordRule
from runtime.text.sentencepiece import SPACE
from runtime.text.tokenizer import SpacePrefix

MAX_PATTERN_CHARS: Final = 4096  # those in use have a few hundred
UNCUT: Final = r"(?!)"


@dataclass(frozen=True, slots=True)
class Pipeline:
    """`rule` is that of a byte-level vocabulary; None where a space is written as U+2581."""

    rule: WordRule | None
    prefix: SpacePrefix
    bos: str | None  # the token that is put in front of a text


@dataclass(slots=True)
class _Steps:
    """What has been read so far."""

    prefix: SpacePrefix = SpacePrefix.NEVER
    marks_spaces: bool = False
    composes: bool = False
    byte_level: bool = False
    cuts: tuple[str, ...] = ()


def read_pipeline(tokenizer: Mapping[str, Any]) -> Pipeline:
    """Raises UnsupportedModel for a step that we do not have, BadModelFile for a broken one."""
    model = tokenizer.get("model")
    if not isinstance(model, dict):
        raise BadModelFile("tokenizer.json has no model; copy or download it again")
    _check_model(model)
    steps = _Steps()
    for step in _flat(tokenizer.get("normalizer")):
        _normalise(steps, step)
    for step in _flat(tokenizer.get("pre_tokenizer")):
        _cut(steps, step)
    if steps.byte_level == steps.marks_spaces or (steps.marks_spaces and steps.composes):
        raise UnsupportedModel(
            "tokenizer.json describes neither a byte-level tokenizer nor one that writes spaces as "
            f"{SPACE}; only these are known"
        )
    if steps.marks_spaces:
        if steps.cuts or not model.get("byte_fallback") or model.get("ignore_merges"):
            raise UnsupportedModel(
                f"tokenizer.json writes spaces as {SPACE}; known is this only with bytes for "
                "unknown letters, and without a cut into words"
            )
        return Pipeline(None, steps.prefix, _bos(tokenizer))
    *before, pattern = steps.cuts or (UNCUT,)
    whole_words = model.get("ignore_merges") is True
    rule = WordRule(pattern, whole_words, steps.composes, before=tuple(before))
    return Pipeline(rule, steps.prefix, _bos(tokenizer))


def _check_model(model: Mapping[str, Any]) -> None:
    kind = model.get("type", "BPE")
    if kind != "BPE":
        raise UnsupportedModel(f"tokenizer.json has a model of type {kind!r:.40}; known is BPE")
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise UnsupportedModel(f"tokenizer.json sets {key}, which is not known here")


def _flat(component: Any) -> Iterator[Mapping[str, Any]]:
    """The steps of a component, and of sequences within it."""
    match component:
        case None:
            return
        case {
            "type": "Sequence",
            **rest,
        }:
            for key in ("normalizers", "pretokenizers", "processors"):
                inner = rest.get(key, [])
                for one in inner if isinstance(inner, list) else []:
                    yield from _flat(one)
        case {"type": str()}:
            yield component
        case _:
            raise BadModelFile(f"tokenizer.json has a step without a type: {component!r:.100}")


def _normalise(steps: _Steps, step: Mapping[str, Any]) -> None:
    match step:
        case {"type": "NFC"}:
            steps.composes = True
        case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
            steps.marks_spaces = True
        case {"type": "Prepend", "prepend": "▁"}:
            steps.prefix = SpacePrefix.ALWAYS
        case _:
            raise _unknown(step)


def _cut(steps: _Steps, step: Mapping[str, Any]) -> None:
    match step:
        case {"type": "ByteLevel"} if not steps.byte_level:
            steps.byte_level = True
            if step.get("add_prefix_space", True):
                if steps.cuts:
                    raise _unknown(step)  # it would put a space before each word
                steps.prefix = SpacePrefix.UNLESS_THERE
            if step.get("use_regex", True):
                steps.cuts += (WORD_RULES["gpt-2"].pattern,)
        case {"type": "Metaspace", "replacement": "▁"} if step.get("split") is False:
            steps.marks_spaces = True
            steps.prefix = _prefix(step)
        case {"type": "Split", "pattern": {"String": " "}} if steps.marks_spaces:
            pass  # there are none left
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated"} if (
            not step.get("invert") and not steps.byte_level
        ):
            steps.cuts += (_checked(pattern),)
        case {"type": "Digits"} if not steps.byte_level:
            steps.cuts += (r"\p{N}" if step.get("individual_digits") else r"\p{N}+",)
        case _:
            raise _unknown(step)


def _prefix(step: Mapping[str, Any]) -> SpacePrefix:
    match step.get("prepend_scheme", "always"):
        case "always":
            return SpacePrefix.UNLESS_THERE
        case "first":
            return SpacePrefix.FIRST
        case "never":
            return SpacePrefix.NEVER
        case _:
            raise _unknown(step)


def _checked(pattern: str) -> str:
    if len(pattern) > MAX_PATTERN_CHARS:
        raise BadModelFile(f"tokenizer.json has a pattern of {len(pattern)} letters")
    try:
        Regex(pattern)
    except Exception as error:  # the library raises nothing more exact
        raise BadModelFile(f"tokenizer.json has a broken pattern: {error}") from None
    return pattern


def _bos(tokenizer: Mapping[str, Any]) -> str | None:
    """The special token in front of a text, by the templates of the last step."""
    found: str | None = None
    for step in _flat(tokenizer.get("post_processor")):
        match step:
            case {"type": "ByteLevel"}:
                pass  # it only moves offsets
            case {"type": "TemplateProcessing", "single": [{"Sequence": _}]}:
                pass
            case {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": str(text)}}, {"Sequence": _}],
            }:
                found = text
            case _:
                raise _unknown(step)
    return found


def _unknown(step: Mapping[str, Any]) -> UnsupportedModel:
    return UnsupportedModel(
        f"tokenizer.json has a step that is not known here: {dict(step)!r:.200}. "
        "Where there is a GGUF of this model, take that."
    )

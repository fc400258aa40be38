"""A model's chat template: from messages to the tokens that the model was trained to answer.

The template is a stranger's program and is rendered apart (`rendering`); what people wrote in
the messages never becomes a control token (`shield`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mesh.errors import BadModelFile, BadPrompt, NoTemplate
from mesh.limits import KIB
from runtime.chat.built_in import BUILT_IN
from runtime.chat.messages import Chat
from runtime.chat.rendering import Rendered, render
from runtime.chat.shield import BREAK, Shield
from runtime.formats.json_files import read_object
from runtime.text.tokenizer import Tokenizer

MAX_TEMPLATE_CHARS: Final = 256 * KIB  # the longest known are 30 thousand letters
_PROBE: Final = "0potluck0"  # an answer whose end is looked for; no template changes it


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation in the model's form, up to where the model's answer begins."""

    text: str
    ids: list[int]
    end_ids: frozenset[int]  # the tokenizer's, and the one that this template ends a turn with
    stop: tuple[str, ...]  # texts that end an answer, where the template has no token for it


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A template in jinja's language, and where it comes from, for a person."""

    origin: str
    source: str
    with_tools: str | None = None  # used instead where tools are given
    marks: tuple[str, ...] = ()  # control tokens that the vocabulary must have
    stop: tuple[str, ...] = ()

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], origin: str) -> ChatTemplate:
        """The template of a GGUF file, which may have further ones by name.

        Raises BadPrompt when there is none, BadModelFile for one that cannot be one.
        """
        key = "tokenizer.chat_template"
        named = {name: metadata.get(f"{key}.{name}") for name in ("default", "tool_use")}
        return cls._of(metadata.get(key), named, origin)

    @classmethod
    def from_folder(cls, folder: Path) -> ChatTemplate:
        """That of a folder in Hugging Face's form: a file of its own, or in tokenizer_config.json,
        as one text or as a list of named ones. Raises as `from_metadata`.
        """
        single = folder / "chat_template.jinja"
        further = sorted((folder / "additional_chat_templates").glob("*.jinja"))
        if single.is_file():
            return cls._of(_read(single), {file.stem: _read(file) for file in further}, str(folder))
        found = (read_object(folder / "tokenizer_config.json") or {}).get("chat_template")
        if isinstance(found, list):
            named = {one["name"]: one["template"] for one in found if _is_named(one)}
            return cls._of(None, named, str(folder))
        return cls._of(found, {}, str(folder))

    @classmethod
    def built_in(cls, name: str) -> ChatTemplate:
        """One of ours. Raises BadPrompt, which names them, for another name."""
        if (found := BUILT_IN.get(name)) is None:
            raise BadPrompt(f"no chat template is called {name!r:.60}; {_built_in_names()}")
        return cls(f"the built-in {name}", found.source, None, found.marks, found.stop)

    @classmethod
    def _of(cls, source: Any, named: dict[str, Any], origin: str) -> ChatTemplate:
        source = named.get("default") if source is None else source
        with_tools = named.get("tool_use")
        if source is None:
            raise NoTemplate(
                f"{origin} has no chat template: it is a base model, which continues a text. "
                "Use /v1/completions or `potluck run` with it, take its instruction-tuned version, "
                f"or name a template: {_built_in_names()}"
            )
        for text in (source, with_tools):
            if text is not None and not (isinstance(text, str) and len(text) <= MAX_TEMPLATE_CHARS):
                raise BadModelFile(
                    f"a chat template is a text of at most {MAX_TEMPLATE_CHARS} letters; "
                    f"that of {origin} is not: take the model from its source again"
                )
        return cls(origin, source, with_tools)

    def prompt(self, chat: Chat, tokenizer: Tokenizer) -> ChatPrompt:
        """Renders and encodes. It starts a process: 0.1 s on a desktop; not for the event loop.

        The beginning of sequence comes once, where the file or the template wants it.
        Raises BadPrompt in the template's words when it refuses the messages, BadModelFile for a
        template that is broken or takes more time or memory than a template needs.
        """
        if lacking := [mark for mark in self.marks if not tokenizer.vocabulary.is_control(mark)]:
            raise BadPrompt(
                f"{self.origin} template needs the control token {lacking[0]}, which this model's "
                "vocabulary lacks; name another one"
            )
        shield = Shield(tokenizer.control_texts(), tokenizer.written)
        cases = self._cases(chat, tokenizer, shield)
        source = self.with_tools if chat.tools and self.with_tools is not None else self.source
        rendered = render(source, cases, self.origin)
        text = rendered[0].checked(self.origin)
        # Two ways to keep marks out of the contents. The lighter one lets the template see them
        # nearly as they are; if with the heavier one other marks come of it, then the template
        # has made marks of contents, and the heavier one holds.
        if len(cases) > 2:
            strict = rendered[1].checked(self.origin)
            if tokenizer.control_ids(text) != tokenizer.control_ids(strict):
                text = strict
        return ChatPrompt(
            text.replace(BREAK, ""),
            tokenizer.encode(text, shield=BREAK),
            tokenizer.end_ids | _turn_end(rendered[-1], tokenizer),
            self.stop,
        )

    def _cases(self, chat: Chat, tokenizer: Tokenizer, shield: Shield) -> list[dict[str, Any]]:
        """Variables of the prompt, once more with the heavier shield if it differs, of a probe."""
        vocabulary = tokenizer.vocabulary
        written = {"messages": list(chat.messages), "tools": list(chat.tools) or None}
        fixed = {
            "bos_token": vocabulary.text_of(vocabulary.bos_id),
            "eos_token": vocabulary.text_of(vocabulary.eos_id),
            "unk_token": vocabulary.text_of(vocabulary.unknown_id),
            "documents": None,
        }
        light, strict = (
            {**change(chat.options), **change(written), **fixed, "add_generation_prompt": True}
            for change in (shield.breaks, shield.breaks_more)
        )
        probe = {
            **fixed,
            "messages": [
                {"role": "user", "content": "1"},
                {"role": "assistant", "content": _PROBE},
            ],
            "tools": None,
            "add_generation_prompt": False,
        }
        return [light, probe] if light == strict else [light, strict, probe]


def _built_in_names() -> str:
    return f"built in are {', '.join(sorted(BUILT_IN))}"


def _is_named(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("name"), str) and "template" in entry


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(MAX_TEMPLATE_CHARS + 1)
    except (OSError, ValueError) as error:
        raise BadModelFile(f"{path} cannot be read: {error}") from None


def _turn_end(rendered: Rendered, tokenizer: Tokenizer) -> frozenset[int]:
    """The control token right behind a finished answer, where there is one."""
    behind = (rendered.text or "").rpartition(_PROBE)[2] if _PROBE in (rendered.text or "") else ""
    first = tokenizer.encode(behind.strip(), bos=False)[:1]
    return frozenset(first) & frozenset(tokenizer.control_ids(behind))

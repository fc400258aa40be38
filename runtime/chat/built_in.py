"""Chat templates of our own, for files that bring none. Used only where one is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A template, the marks that a vocabulary must have for it, and what ends an answer."""

    source: str
    marks: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()


_NO_TOOLS: Final = (
    "{%- for message in messages -%}{%- if message.role == 'tool' or message.tool_calls -%}"
    "{{ raise_exception('this built-in template has no form for calls of tools') }}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if tools -%}{{ raise_exception('this built-in template has no form for tools') }}"
    "{%- endif -%}"
)
# Gemma has no system turn: what the system says stands before the first turn's own text.
_GEMMA: Final = (
    _NO_TOOLS + "{{ bos_token }}{%- set ns = namespace(lead='') -%}"
    "{%- for message in messages -%}"
    "{%- if message.role == 'system' -%}"
    "{%- set ns.lead = ns.lead ~ (message.content | trim) ~ '\n\n' -%}"
    "{%- else -%}"
    "{%- set name = 'model' if message.role == 'assistant' else message.role -%}"
    "{{ '<start_of_turn>' ~ name ~ '\n' ~ ns.lead ~ (message.content | trim) }}"
    "{{ '<end_of_turn>\n' }}{%- set ns.lead = '' -%}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)
_LLAMA3: Final = (
    _NO_TOOLS + "{{ bos_token }}{%- for message in messages -%}"
    "{{ '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\n\n' }}"
    "{{ (message.content | trim) ~ '<|eot_id|>' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif -%}"
)
_CHATML: Final = (
    _NO_TOOLS + "{%- for message in messages -%}"
    "{{ '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
# A base model goes on in the same manner, and would write the next question too.
_PLAIN: Final = (
    _NO_TOOLS + "{%- for message in messages -%}"
    "{%- if message.role == 'system' -%}{{ (message.content | trim) ~ '\n\n' }}"
    "{%- else -%}{{ message.role | capitalize ~ ': ' ~ (message.content | trim) ~ '\n' }}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}"
)

BUILT_IN: Final[Mapping[str, BuiltIn]] = {
    "chatml": BuiltIn(_CHATML, ("<|im_start|>", "<|im_end|>")),
    "gemma": BuiltIn(_GEMMA, ("<start_of_turn>", "<end_of_turn>")),
    "llama3": BuiltIn(_LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "plain": BuiltIn(_PLAIN, stop=("\nUser:",)),
}

"""Templates as model files bring them, written for tests, and a tiny model that brings one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from runtime.formats.gguf import GGUFFile
from tests.runtime.gguf_writer import Stored, write_gguf
from tests.runtime.tiny_model import tokenizer_metadata, write_tiny_gemma

# Turns must alternate, the system's words go into the first, as in Gemma's own template.
TURNS = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set lead = messages[0]['content'] + '\\n\\n' -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set lead = '' -%}
    {%- set rest = messages -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('user and assistant must take turns') }}
    {%- endif -%}
    {{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}
    {{- (lead if loop.first else '') + message['content'] | trim }}
    {{- '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""
# Everything that larger templates use: tools, namespaces, macros, loop controls, JSON, slices.
TOOLS = """
{%- macro field(name, value) -%}{{ name }}={{ value | tojson }};{%- endmacro -%}
{%- set ns = namespace(last=0, seen=false) -%}
{%- for message in messages[::-1] -%}
    {%- set index = (messages | length - 1) - loop.index0 -%}
    {%- if message.role == 'user' and not message.content.startswith('<b>') -%}
        {%- set ns.last = index -%}
        {%- break -%}
    {%- endif -%}
{%- endfor -%}
{% if tools %}
TOOLS
{% for tool in tools %}
{{ tool | tojson(indent=2) }}
{% endfor %}
{% endif %}
{% for message in messages %}
    {% if message.role == 'tool' %}{% continue %}{% endif %}
<start_of_turn>{{ message.role | upper }}
{% generation %}{{ message.content.split('</b>')[-1].lstrip('\\n') }}{% endgeneration %}

    {%- for call in message.tool_calls or [] %}

{{ field(call.function.name, call.function.arguments) }}
    {%- endfor %}
<end_of_turn>
{% endfor %}
last={{ ns.last }} {{ dict(a=1) | items | list }} {{ extra | default('none') }}
{% if add_generation_prompt %}
<start_of_turn>ASSISTANT
{% endif %}
"""
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": '  the hat, the <cat> & "it"\n'},
    {"role": "assistant", "content": "in the hat"},
    {"role": "user", "content": "and then?"},
]


FOLDER_VOCABULARY = 320


def chat_metadata(template: str = TURNS) -> dict[str, Any]:
    return tokenizer_metadata() | {"tokenizer.chat_template": template}


def write_chat_gemma(path: Path, template: str = TURNS, layers: int = 6) -> Path:
    """The tiny model with a template in its file; returns the path."""
    plain = GGUFFile.open(write_tiny_gemma(path.with_suffix(".plain"), layers=layers, seed=3))
    metadata = {key: _plain(value) for key, value in plain.metadata.items()}
    tensors = {
        name: Stored(info.type, info.shape, plain.raw(name).tobytes())
        for name, info in plain.tensors.items()
    }
    return write_gguf(path, metadata | {"tokenizer.chat_template": template}, tensors)


def write_chat_tokenizer(path: Path, template: str | dict[str, str] = TURNS) -> Any:
    """A small byte-level tokenizer as transformers saves it to a folder; returns transformers' own.

    Needs transformers.
    """
    import transformers

    raw = tokenizers.Tokenizer(models.BPE(unk_token=None))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=FOLDER_VOCABULARY,
        special_tokens=["<unk>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([TURNS, "user model the hat, the <cat> and then\n" * 9], trainer)
    saved = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    saved.chat_template = template
    saved.save_pretrained(str(path))
    return transformers.AutoTokenizer.from_pretrained(str(path))


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value if isinstance(value, str | int | float | bool) else list(value)

"""The renderer: as transformers renders, and a hostile template ends with an error, not with us."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mesh.errors import BadModelFile, BadPrompt
from runtime.chat.renderer import answer
from runtime.chat.rendering import render
from tests.runtime.chat_model import MESSAGES, TOOLS, TURNS

CALLS = [
    *MESSAGES,
    {
        "role": "assistant",
        "content": "one</b>\n two ",
        "tool_calls": [{"function": {"name": "light", "arguments": {"on": True, "é": [1, None]}}}],
    },
    {"role": "tool", "content": "done"},
    {"role": "user", "content": "<b>thanks"},
]
DEFINED = [{"type": "function", "function": {"name": "light", "parameters": {"on": "bool"}}}]
SMALL = [
    "{{ messages | map(attribute='role') | join(',') }}",
    "{% for m in messages %}\n  {{ m.content }}\n  {% endfor %}\n end",
    "{% if true %}\n    x\n{% endif %}\ny",
    "{%- for m in messages if m.role == 'user' %}{{ loop.index }}{{ m.content|trim }}{% endfor %}",
    "{{ messages[1].content | tojson(ensure_ascii=True, indent=1, separators=(',', ':')) }}",
    "{{ '%s-%s' % (1, 2) }} {{ 7 // 2 }} {{ '{}'.format(3) }} {{ missing }} {{ none }}",
    "{% set n = namespace(n=0) %}{% for m in messages %}{% set n.n = n.n + 1 %}"
    "{% endfor %}{{ n.n }}",
    "{{ strftime_now('%Y') }}",
    "{{ {'b': 1, 'a': [2]} | tojson(sort_keys=true) }} {{ messages[0] | items | list }}",
]


def variables(messages: list[dict[str, Any]], tools: Any) -> dict[str, Any]:
    return {
        "messages": messages,
        "tools": tools,
        "documents": None,
        "bos_token": "<bos>",
        "add_generation_prompt": True,
    }


@pytest.mark.parametrize("source", [TURNS, TOOLS, *SMALL], ids=lambda text: text[:30])
def test_it_renders_as_transformers_does(source: str) -> None:
    """Token for token, whitespace too: a model knows only what its trainers rendered."""
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    cases = [(MESSAGES, None), (MESSAGES, DEFINED)]
    if source != TURNS:
        cases.append((CALLS, DEFINED))
    ours = answer({"template": source, "cases": [variables(*case) for case in cases]})
    for (messages, tools), rendered in zip(cases, ours, strict=True):
        theirs, _ = utils.render_jinja_template(
            [messages],
            tools=tools,
            chat_template=source,
            add_generation_prompt=True,
            bos_token="<bos>",
        )
        assert rendered == {"text": theirs[0]}


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(10 ** 5) %}{% for b in range(10 ** 5) %}{% endfor %}{% endfor %}",
        "{{ 10 ** (10 ** 10) }}",
        "{% set x = namespace(v='a') %}{% for i in range(90) %}{% set x.v = x.v ~ x.v %}"
        "{% endfor %}",
        "{{ 'a' * (10 ** 12) }}",
        "{{ 'a' | center(10 ** 12) }}",
        "{{ '%1000000000000d' % 1 }}",
        "{{ lipsum(10 ** 9) }}",
        "{% set x = namespace(v=[1]) %}{% for i in range(60) %}{% set x.v = [x.v, x.v] %}"
        "{% endfor %}{{ x.v }}",
        "{% set x = namespace(v=[1], w=[1]) %}{% for i in range(60) %}{% set x.v = [x.v, x.v] %}"
        "{% set x.w = [x.w, x.w] %}{% endfor %}{{ x.v == x.w }}",
        "{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ range(10 ** 9) | length }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    ],
    ids=lambda text: text[:36],
)
def test_a_hostile_template_ends_in_an_error(source: str) -> None:
    with pytest.raises((BadModelFile, BadPrompt), match="the chat template of tiny"):
        render(source, [variables(MESSAGES, None)], "tiny", cpu_s=1)[0].checked("tiny")


def test_nesting_that_breaks_pythons_own_compiler() -> None:
    source = "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}"
    with pytest.raises(BadModelFile, match="the chat template of tiny"):
        render(source, [{}], "tiny")[0].checked("tiny")


def test_a_template_sees_nothing_of_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that the sandbox lets it look; but were there a hole, there would be nothing to see."""
    monkeypatch.setenv("POTLUCK_SECRET", "x")
    rendered = render("{{ self }}", [{}], "tiny")[0]
    assert "POTLUCK_SECRET" not in json.dumps(rendered.text or rendered.words)


def test_formats_reach_no_insides() -> None:
    rendered = render("{{ '{0.__class__}'.format(1) }}", [{}], "tiny")[0]
    assert "class" not in (rendered.text or "")


def test_cases_fail_one_by_one() -> None:
    source = "{{ raise_exception('no') if bad else 'yes' }}"
    good, bad = render(source, [{"bad": False}, {"bad": True}], "tiny")
    assert good.checked("tiny") == "yes"
    with pytest.raises(BadPrompt, match="refuses: no"):
        bad.checked("tiny")


def test_half_a_surrogate_pair_survives() -> None:
    assert render("{{ x }}", [{"x": "a\ud83d\U0001f642"}], "tiny")[0].text == "a\ud83d\U0001f642"


def test_a_refusal_without_end_is_cut() -> None:
    with pytest.raises(BadPrompt) as caught:
        render("{{ raise_exception('a' * 99999) }}", [{}], "tiny")[0].checked("tiny")
    assert len(str(caught.value)) < 700

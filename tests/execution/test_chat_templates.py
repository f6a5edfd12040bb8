"""Chat templates: what checkpoints expect of Jinja, and limits that no foreign program passes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import SecurityError

from batchgen.exec.template_jinja import environment
from batchgen.exec.template_pool import TemplatePool
from batchgen.exec.templates import Cancelled, ChatTemplate, TemplateError, time_of_job

NOW = datetime(2024, 2, 29, 23, 5, 7)


def chat(*contents: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content} for content in contents]


def make(source: str, cpu_s: float = 0.3, **variables: str) -> ChatTemplate:
    return ChatTemplate(source, variables, NOW, cpu_s=cpu_s)


def one(source: str, messages: list[dict[str, Any]] | None = None, **variables: str) -> str:
    (text,) = make(source, **variables).render([messages or chat("hi")])
    if isinstance(text, TemplateError):
        raise text
    return text


HOSTILE = {
    "loops": (
        "{% for i in range(10**5) %}{% for j in range(10**5) %}{% endfor %}{% endfor %}",
        "0.3 s for one",
    ),
    "power": ("{{ (9 ** (10 ** (messages[0].content|length - 2))) % 7 }}", "0.3 s for one"),
    "folded": ("{{ 'x' * 10**10 }}", "MiB of memory"),
    "repeated": ("{{ messages[0].content * 10**10 }}", "MiB of memory"),
    "centred": ("{{ messages[0].content | center(10**10) }}", "MiB of memory"),
    "format": ("{{ '%' ~ 10**10 ~ 'd' % 1 if false else ('%10000000000d' % 1) }}", "memory|too"),
    "long": ("{% for i in range(99) %}{{ 'x' * 10**6 }}{% endfor %}", "text of more than 32 MiB"),
    "range": ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
    "recursion": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
    "escape": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    "change": ("{{ messages.append(1) }}", "is unsafe"),
    "refusal": ("{{ raise_exception('no\nmore') }}", "chat template: no more"),
    "surrogate": ("{{ '\\ud800' }}", "surrogates not allowed"),
    "unknown": ("{{ 1 | nothing_of_this_name }}", "nothing_of_this_name"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_one_error_of_one_line(name: str) -> None:
    source, message = HOSTILE[name]
    with pytest.raises(TemplateError, match=message) as error:
        one(source, chat("xxxxxxxxxx"))
    assert str(error.value).startswith("chat template: ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


SOMETIMES = """{%- set what = messages[0].content -%}
{%- if what == 'time' %}{% for i in range(10**5) %}{% for j in range(10**5) %}{% endfor %}
{%- endfor %}{% elif what == 'memory' %}{{ what * 10**10 }}
{%- elif what == 'refuse' %}{{ raise_exception('refused') }}
{%- else %}[{{ what }}]{% endif %}"""


@settings(deadline=None, max_examples=12)
@given(st.lists(st.sampled_from(["a", "é\u2028", "b", "memory", "refuse"]), max_size=12))
def test_no_conversation_hurts_another(contents: list[str]) -> None:
    template = make(SOMETIMES)
    try:
        texts = template.render([chat(content) for content in contents])
        again = [template.render([chat(content)])[0] for content in contents[:3]]
    finally:
        template.close()
    for content, text in zip(contents, texts, strict=True):
        if content in ("memory", "refuse"):
            assert isinstance(text, TemplateError)
            assert content in str(text)
        else:
            assert text == f"[{content}]"
    assert [str(text) for text in again] == [str(text) for text in texts[:3]]


def test_one_that_takes_for_ever_does_not_hurt_another() -> None:
    texts = make(SOMETIMES).render([chat(c) for c in ("a", "time", "b", "time")])
    assert [isinstance(text, str) for text in texts] == [True, False, True, False]
    assert "0.3 s" in str(texts[1])


def test_messages_that_are_nested_deep_hurt_no_other() -> None:
    """Deeper than either process can write or read; what the depth is depends on their stacks."""
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    for depth in (800, 960, 990, 995, 999):
        nested: Any = []
        for _ in range(depth):
            nested = [nested]
        messages = [{"role": "user", "content": "x", "more": nested}]
        texts = make("{{ messages[0].content }}").render([chat("a"), messages, chat("b")])
        assert [texts[0], texts[2]] == ["a", "b"]
        assert texts[1] == "x" or isinstance(texts[1], TemplateError)
    (refused,) = make("x").render([[{"role": "user", "content": "x", "more": deep}]])
    assert "nested too deep" in str(refused)


def test_one_process_serves_a_job_and_ends_with_it() -> None:
    template = make("{{ messages[0].content }}")
    assert template._process is None  # no conversation, no process
    assert template.render([chat("a")]) == ["a"]
    process = template._process
    assert process is not None
    assert template.render([chat("b")] * 200) == ["b"] * 200
    assert template._process is process
    del template
    assert process.returncode is not None


def test_a_signal_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies that are on their way are not taken for those of later conversations."""
    template = make("{{ messages[0].content }}")
    template.render([chat("a")])
    receive: Callable[[], Any] = template._receive

    def interrupted() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(template, "_receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        template.render([chat("b")])
    monkeypatch.setattr(template, "_receive", receive)
    assert template.render([chat("c")]) == ["c"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% if %}", "Expected an expression"),
        ("{{ 1", "unexpected end"),
        ("{% generation %}", "endgeneration"),
        ("{{ " + "9" * 9999 + " }}", "integer string"),
        ("{{ " + "(" * 9999, "recursion"),
    ],
)
def test_a_text_that_is_no_template(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(source)


@pytest.mark.parametrize("kills", [1, 2])
def test_a_process_killed_while_it_starts_is_started_again(
    kills: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once: what is killed time and again is refused by its conversations."""
    send, left = ChatTemplate._send, [None] * kills

    def killed(self: ChatTemplate, request: bytes) -> None:
        if left:
            left.pop()
            assert self._process is not None
            self._process.kill()
        else:
            send(self, request)

    monkeypatch.setattr(ChatTemplate, "_send", killed)
    (text,) = make("{{ messages[0].content }}").render([chat("hi")])
    assert text == "hi" if kills == 1 else "ended its process with -9" in str(text)


@pytest.mark.parametrize("source", ["{{ [1, 2] | random }}", "{{ lipsum() }}"])
def test_nothing_that_draws(source: str) -> None:
    """The same conversation is the same tokens."""
    with pytest.raises((TemplateError, ValueError), match=r"random|lipsum"):
        one(source)


def test_json_is_for_models_and_not_for_html() -> None:
    value = {"b": "<é'&\">", "a": [1, None, True]}
    messages = [{"role": "tool", "content": "", "data": value}]
    assert one("{{ messages[0].data | tojson }}", messages) == json.dumps(value, ensure_ascii=False)
    indented = one("{{ messages[0].data | tojson(indent=2) }}", messages)
    assert indented == json.dumps(value, ensure_ascii=False, indent=2)
    dense = one(
        "{{ messages[0].data|tojson(separators=(',', ':'), sort_keys=true, ensure_ascii=true) }}",
        messages,
    )
    assert dense == json.dumps(value, separators=(",", ":"), sort_keys=True)


ORACLE = """{%- set x = 'out' -%}
{% for message in messages %}
{% if loop.index > 3 %}{% break %}{% endif %}
<|{{ message.role }}|>
{% if message.role == 'assistant' %}
  {% generation %}
{% set x = 'in' %}{{ message.content | trim }}{{ x }}
  {% endgeneration %}
{% else %}
{{ message | tojson }} {{ message | tojson(indent=1) }}
{% endif %}
{% endfor %}
{{ x }} {{ strftime_now('%Y') | length }}{{ bos_token }}
{% if add_generation_prompt %}go{% endif %}"""


def test_a_template_renders_as_in_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.utils.chat_template_utils import render_jinja_template

    assert transformers is not None
    messages = [*chat("<a> é", " b "), {"role": "assistant", "content": " c "}, *chat("d")]
    (expected,), _ = render_jinja_template(
        conversations=[messages],
        chat_template=ORACLE,
        add_generation_prompt=True,
        bos_token="<s>",
    )
    assert one(ORACLE, messages, bos_token="<s>") == expected


def test_the_time_is_one_for_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    template = make("{{ strftime_now('%d %b %Y %H:%M:%S') }}")
    assert template.render([chat("a")] * 2) == ["29 Feb 2024 23:05:07"] * 2
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert time_of_job() == datetime.fromtimestamp(1_700_000_000, UTC).replace(tzinfo=None)
    for wrong in ("", "soon", "-1", "9" * 40):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", wrong)
        assert time_of_job() > NOW


def test_the_sandbox_has_no_attribute_of_the_time() -> None:
    """`strftime_now` is a method; nothing can be reached through it."""
    template = environment(NOW).from_string("{{ strftime_now.__self__.year }}")
    with pytest.raises(SecurityError):
        template.render()


def test_a_pool_renders_in_threads_and_gives_up_when_it_is_closed() -> None:
    loops = HOSTILE["loops"][0]
    source = "{% if messages|length == 2 %}" + loops + "{% endif %}{{ messages[0].content }}"
    pool = TemplatePool(source, {}, NOW)
    with ThreadPoolExecutor(4) as threads:
        texts = threads.map(lambda n: pool.render([chat(f"{n}")] * 5), range(40))
        assert list(texts) == [[f"{n}"] * 5 for n in range(40)]
        hangs = threads.submit(pool.render, [chat("a", "b")] * 1000)  # 2 s each
        while not pool._busy:
            time.sleep(0.01)
        pool.close()
        with pytest.raises(Cancelled):
            hangs.result(30)
    assert pool.render([chat("again")]) == ["again"]
    pool.close()

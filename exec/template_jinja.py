"""What a chat template may use, as published checkpoints expect it. Runs no template.

Only Jinja and the standard library: this is loaded in the template's own process.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class GenerationBlock(Extension):
    """`{% generation %}` marks what the assistant said, for training; here its content is text."""

    tags = {"generation"}  # noqa: RUF012 (the name and the type are Jinja's)

    def parse(self, parser: Parser) -> nodes.Node:
        """A scope of its own, as in transformers: what is set inside is not seen outside."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def environment(now: datetime) -> jinja2.Environment:
    """The sandbox: never files, modules or objects of ours. `now` is what `strftime_now` prints."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", GenerationBlock],
    )
    made.filters["tojson"] = _to_json
    for name in ("random", "lipsum"):  # other tokens each time
        made.filters.pop(name, None)
        made.globals.pop(name, None)
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = now.strftime
    return made


def template_of(source: str, now: datetime) -> jinja2.Template:
    """A template that can be rendered. Compiling runs parts of it; raises what it pleases."""
    made = environment(now).from_string(source)
    # Jinja looks through these for each text, and they are layers that nobody changes any more:
    # that takes longer than a short conversation.
    made.globals = dict(made.globals)
    return made


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON for a prompt: Jinja's own filter writes `<` and `'` as escapes, for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)

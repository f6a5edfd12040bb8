"""A row before its prompt is encoded: from an object of the input to kind, body and prompt, or to
what is wrong with it. Knows no tokenizer, and no other row.
"""

from __future__ import annotations

from typing import Any

from batchgen.job.fields import IDS, IGNORED, KNOWN, URLS, USED, check_supported
from batchgen.job.inputs import Raw, value_of
from batchgen.job.jsonl import BadLine
from batchgen.job.plain import plain_chat
from batchgen.job.prompts import RowError, messages_of
from batchgen.job.responses import chat_of_response
from batchgen.job.row import RowLimits
from batchgen.job.shape import Shape

PROMPTS = {"chat": "messages", "completion": "prompt", "response": "messages"}
NONE: frozenset[str] = frozenset()
# Fields about which there is nothing to say: most bodies have no others, and one look tells.
PLAIN = USED | IGNORED
PLAIN_OF_SHORT = PLAIN | IDS


class Draft:
    """What is known of a row so far. `error`: why it cannot run; then the rest may be missing.

    `custom_id` None: it has no usable one. `unknown`: names of fields that nobody knows, sorted.
    `prompt`: a conversation, a text, or ids. No dataclass: a job makes millions.
    """

    __slots__ = ("body", "custom_id", "error", "kind", "prompt", "unknown")

    body: dict[str, Any]
    kind: str
    prompt: object

    def __init__(self, custom_id: str | None = None) -> None:
        self.custom_id = custom_id
        self.error: RowError | None = None
        self.unknown: tuple[str, ...] = ()

    @staticmethod
    def of(line: int, raw: Raw, form: str, shape: Shape | None, limits: RowLimits) -> Draft:
        """Of a row as it lies in a file of that form."""
        if form == "jsonl" and isinstance(raw, bytes) and (plain := plain_chat(raw)) is not None:
            draft = Draft(plain[0])
            draft.kind, body = "chat", plain[1]
            draft.body, draft.prompt = body, body["messages"]
            if limits.models is not None:
                try:
                    _check_model(body.get("model"), limits)
                except RowError as error:
                    draft.error = error
            return draft
        return Draft.of_value(line, value_of(raw, form), shape, limits)

    @staticmethod
    def of_value(
        line: int, value: dict[str, Any] | BadLine, shape: Shape | None, limits: RowLimits
    ) -> Draft:
        """Of any row."""
        draft = Draft()
        try:
            if isinstance(value, BadLine):
                raise RowError(value.code, value.message)
            draft.custom_id = _custom_id(value, line)
            draft._read(value, shape, limits)
        except RowError as error:
            draft.error = error
        return draft

    def _read(self, value: dict[str, Any], shape: Shape | None, limits: RowLimits) -> None:
        """Kind, body and prompt of a row in any form."""
        if "body" in value:
            kind, body = _long(value)
            ids, plain = NONE, PLAIN
        else:
            if "url" in value or "method" in value:
                raise RowError("missing_field", "field 'body' is missing")
            body = value if shape is None else shape.body(value)
            kind = "chat" if "messages" in body else "completion"
            ids, plain = IDS, PLAIN_OF_SHORT
        is_plain = body.keys() <= plain
        if not is_plain:
            self.unknown = _unknown(body, ids, limits)
        model = body.get("model")
        _check_model(model, limits)
        if not is_plain:
            check_supported(body)
        if model is not None and not isinstance(model, str):
            raise RowError("invalid_field", "field 'model' must be a string")
        name = PROMPTS[kind]
        if name not in body:
            raise RowError("missing_field", f"field '{name}' is missing")
        self.prompt = body[name] if kind == "completion" else messages_of(body[name])
        self.kind, self.body = kind, body


def line_id(line: int) -> str:
    """The id of a short row that has none."""
    return f"line-{line}"


def _custom_id(value: dict[str, Any], line: int) -> str:
    """The id of a row; short rows may leave it out and are then named by their line."""
    short = "body" not in value
    given = value.get("custom_id", value.get("id") if short else None)
    if given is None:
        if not short:
            raise RowError("missing_field", "field 'custom_id' is missing")
        return line_id(line)
    if not isinstance(given, str) or not given:
        raise RowError("invalid_field", "field 'custom_id' must be a string that is not empty")
    return given


def _long(value: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Kind and body of an OpenAI batch line."""
    body, url = value["body"], value.get("url")
    if value.get("method", "POST") != "POST":
        raise RowError("invalid_field", "field 'method' must be POST")
    if not isinstance(body, dict):
        raise RowError("invalid_field", "field 'body' must be an object")
    if url is None:
        return ("chat" if "messages" in body else "completion"), body
    if not isinstance(url, str) or url not in URLS:
        raise RowError("unsupported_url", f"url {url!r:.80} is not one of {', '.join(URLS)}")
    kind = URLS[url]
    return kind, chat_of_response(body) if kind == "response" else body


def _unknown(body: dict[str, Any], ids: frozenset[str], limits: RowLimits) -> tuple[str, ...]:
    """Fields that nobody knows: a mistyped option must not pass in silence."""
    names = tuple(sorted(body.keys() - KNOWN - ids))
    if names and limits.strict:
        raise RowError("unsupported_field", f"field {names[0]!r:.60} is not supported")
    return names


def _check_model(name: object, limits: RowLimits) -> None:
    """A row for another model must not be answered by this one, where names were told."""
    if limits.models is not None and isinstance(name, str) and name not in limits.models:
        names = ", ".join(sorted(limits.models))
        raise RowError("model_not_found", f"model {name!r:.80} is not here, but {names:.200}")

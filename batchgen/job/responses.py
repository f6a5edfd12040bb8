"""OpenAI's responses API as chats: the body of a request, and the object of an answer.

Only what is text: `input` is a text or messages, `instructions` the system's message. Everything
that keeps a state between requests, or uses tools, is refused by the row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from batchgen.job.prompts import RowError

RENAMED = {"max_output_tokens": "max_tokens"}
# What we cannot do, and the values with which asking for it asks for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "previous_response_id": (None,),
    "conversation": (None,),
    "prompt": (None,),
    "background": (None, False),
    "include": (None, []),
    "reasoning": (None, {}),
    "text": (None, {}, {"format": {"type": "text"}}),
    "truncation": (None, "disabled"),
    "parallel_tool_calls": (None, True, False),
    "max_tool_calls": (None,),
}
TEXT_PARTS = ("input_text", "output_text", "text")


def chat_of_response(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a chat that asks for the same. Raises RowError."""
    for name, neutral in UNSUPPORTED.items():
        given = body.get(name)
        if not any(given == v and isinstance(given, bool) == isinstance(v, bool) for v in neutral):
            raise RowError("unsupported_field", f"field '{name}' is not supported")
    for name in ("messages", *RENAMED.values()):
        if name in body:
            raise RowError("unsupported_field", f"field '{name}' is none of a response's")
    if "input" not in body:
        raise RowError("missing_field", "field 'input' is missing")
    given = body["input"]
    said = [{"role": "user", "content": given}] if isinstance(given, str) else _messages(given)
    instructions = body.get("instructions")
    if instructions is not None:
        if not isinstance(instructions, str):
            raise RowError("invalid_field", "field 'instructions' must be text")
        said = [{"role": "system", "content": instructions}, *said]
    taken = {"input", "instructions", *UNSUPPORTED}
    rest = {RENAMED.get(name, name): value for name, value in body.items() if name not in taken}
    return rest | {"messages": said}


def _messages(value: object) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise RowError("invalid_field", "field 'input' must be text or a list that is not empty")
    return [_message(number, item) for number, item in enumerate(value)]


def _message(number: int, item: object) -> dict[str, Any]:
    if not isinstance(item, dict) or item.get("type", "message") != "message":
        raise RowError("unsupported_field", f"input[{number}] is no message")
    parts = item.get("content")
    if isinstance(parts, list):
        parts = [_part(part, number) for part in parts]
    role = "system" if item.get("role") == "developer" else item.get("role")
    return {"role": role, "content": parts}


def _part(part: object, number: int) -> dict[str, Any]:
    if not isinstance(part, dict) or part.get("type") not in TEXT_PARTS:
        raise RowError("unsupported_field", f"input[{number}] has a part that is not text")
    return {"type": "text", "text": part.get("text")}


def response_body(
    number: int,
    created: int,
    model: str,
    texts: Sequence[tuple[str, bool]],
    usage: Mapping[str, int],
) -> dict[str, Any]:
    """The object of an answer; `texts`: each sample's, and whether its budget cut it."""
    is_cut = any(cut for _, cut in texts)
    return {
        "id": f"resp_{number}",
        "object": "response",
        "created_at": created,
        "status": "incomplete" if is_cut else "completed",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "model": model,
        "output": [
            {
                "id": f"msg_{number}_{sample}",
                "type": "message",
                "role": "assistant",
                "status": "incomplete" if cut else "completed",
                "content": [{"type": "output_text", "text": text, "annotations": []}],
            }
            for sample, (text, cut) in enumerate(texts)
        ],
        "parallel_tool_calls": False,
        "tool_choice": "none",
        "tools": [],
        "usage": {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        },
    }

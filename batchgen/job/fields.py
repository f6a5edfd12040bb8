"""The fields of a row's body: what is used, what has no effect, what is not done. Data, mostly."""

from __future__ import annotations

from typing import Any

from batchgen.job.options import OPTIONS
from batchgen.job.prompts import RowError

URLS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completion",
    "/v1/responses": "response",
}

# What a row may say without any effect here.
IGNORED = frozenset(
    {"model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
)
BUDGETS = ("max_completion_tokens", "max_tokens")
USED = frozenset({"prompt", "messages", *BUDGETS}) | OPTIONS
IDS = frozenset({"custom_id", "id"})
TYPED = (USED - {"prompt"}) | {"best_of", "stream", "echo"}
"""Columns of CSV whose values are numbers, lists or truth values."""
# What we cannot do, and the values with which asking for it asks for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "stream": (None, False),
    "stream_options": (None,),
    "echo": (None, False),
    "suffix": (None, ""),
    "response_format": (None, {"type": "text"}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "audio": (None,),
}

KNOWN = USED | IGNORED | UNSUPPORTED.keys()


def check_supported(body: dict[str, Any]) -> None:
    """Raises RowError where something is asked for that is not done."""
    if UNSUPPORTED.keys().isdisjoint(body):
        return
    for name, neutral in UNSUPPORTED.items():
        # JSON's 1, 1.0 and true are equal in Python; only the kind of value tells them apart.
        given = body.get(name)
        if not any(given == v and isinstance(given, bool) == isinstance(v, bool) for v in neutral):
            raise RowError("unsupported_field", f"field '{name}' is not supported")

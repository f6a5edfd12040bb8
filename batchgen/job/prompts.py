"""The prompt of a row: a text, token ids, or a conversation of texts. Encodes nothing itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

# What a part of a message may hold: its text, and hints that change no answer.
PART_KEYS = frozenset({"type", "text", "cache_control"})


class RowError(Exception):
    """Why a row cannot run: a stable code, one line, and the numbers of that line by name."""

    def __init__(self, code: str, message: str, **numbers: int) -> None:
        self.code, self.message, self.numbers = code, message, numbers
        super().__init__(message)


class PromptEncoder(Protocol):
    """What rows need from a tokenizer; `batchgen.exec.tokenizer.Tokenizer` is one.

    `vocab_size` is the model's: a tokenizer may know more ids than that. Both calls give a
    ValueError in the place of ids of a text that cannot be encoded, or of messages that the chat
    template does not accept. Several threads may call at once. One that has `recipe()` too, which
    gives "module:class" and texts for `made(*texts)` of it, can be made in other processes.
    """

    vocab_size: int

    def encode_texts(self, texts: Sequence[str]) -> Sequence[list[int] | ValueError]: ...

    def encode_conversations(
        self, conversations: Sequence[list[dict[str, Any]]]
    ) -> Sequence[list[int] | ValueError]: ...


def token_ids(prompt: object, vocab_size: int) -> list[int]:
    """The ids that a row gives for its prompt. Raises RowError for anything else."""
    if not isinstance(prompt, list):
        raise RowError("invalid_field", "field 'prompt' must be a string or a list of token ids")
    for token in prompt:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
            message = f"token {token!r:.40} of 'prompt' is not in [0, {vocab_size})"
            raise RowError("invalid_field", message)
    return prompt


def messages_of(value: object) -> list[dict[str, Any]]:
    """Messages with text content; a list of text parts is joined. Raises RowError."""
    if not isinstance(value, list) or not value:
        raise RowError("invalid_field", "field 'messages' must be a list that is not empty")
    messages = []
    for number, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RowError("invalid_field", f"messages[{number}] must be an object with a 'role'")
        content = message.get("content")
        if isinstance(content, list):
            content = "".join(_part(part, number) for part in content)
            message = message | {"content": content}
        if not isinstance(content, str):
            raise RowError("invalid_field", f"messages[{number}].content must be text")
        messages.append(message)
    return messages


def _part(part: object, number: int) -> str:
    """The text of a part of messages[number]; leaving anything else out would change the prompt."""
    if isinstance(part, dict):
        kind, text = part.get("type"), part.get("text")
        if kind != "text":
            what = f"of type {kind!r:.40}" if "type" in part else "without a type"
            raise RowError("unsupported_field", f"messages[{number}] has a part {what}, not text")
        for name in sorted(part.keys() - PART_KEYS):
            raise RowError(
                "unsupported_field", f"messages[{number}] has a text part with {name!r:.40}"
            )
        if isinstance(text, str):
            return text
    raise RowError("unsupported_field", f"messages[{number}] has a part without text")

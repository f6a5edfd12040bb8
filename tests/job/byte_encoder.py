"""A tokenizer that needs no file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class ByteEncoder:
    """One token per byte; a conversation is the contents one after another. The model has no token
    for the bytes that no UTF-8 has."""

    vocab_size = 0xF8

    def encode(self, text: str) -> list[int]:
        return [0xFF if letter == "\0" else byte for letter in text for byte in letter.encode()]

    def encode_texts(self, texts: Sequence[str]) -> list[list[int] | ValueError]:
        return [self.encode(text) for text in texts]

    def encode_conversations(
        self, conversations: Sequence[list[dict[str, Any]]]
    ) -> list[list[int] | ValueError]:
        return [
            ValueError("no robots")
            if messages[0]["role"] == "robot"
            else self.encode("".join(message["content"] for message in messages))
            for messages in conversations
        ]

"""A tokenizer that needs no file."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class ByteEncoder:
    """One token per byte; a conversation is the contents one after another. The model has no token
    for the bytes that no UTF-8 has."""

    vocab_size = 0xF8

    def recipe(self) -> tuple[str, list[str]]:
        return "byte_encoder:ByteEncoder", []

    @classmethod
    def made(cls) -> ByteEncoder:
        return cls()

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


class Troubled(ByteEncoder):
    """Leaves PID.pid in a folder for each process that is not the one that made it. There, or
    anywhere: some prompts are trouble."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, os.getpid()

    def recipe(self) -> tuple[str, list[str]]:
        return "byte_encoder:Troubled", [str(self.folder), str(self.home)]

    @classmethod
    def made(cls, folder: str, home: str) -> Troubled:  # type: ignore[override]
        found = cls(Path(folder))
        found.home = int(home)
        return found

    def encode_texts(self, texts: Sequence[str]) -> list[list[int] | ValueError]:
        if os.getpid() != self.home:
            (self.folder / f"{os.getpid()}.pid").touch()
            if any(text.startswith("die") for text in texts):
                os.kill(os.getpid(), signal.SIGKILL)
            if "sleep" in texts:
                time.sleep(1000)
        if "nap" in texts:
            time.sleep(0.2)
        if "raise" in texts:
            raise RuntimeError("as told")
        return super().encode_texts(texts)

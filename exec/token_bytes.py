"""The bytes that a token stands for, whatever way its tokenizer writes them."""

from __future__ import annotations

import re

import tokenizers

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
WORD_MARK = "\u2581"  # stands for a space in vocabularies that came from sentencepiece


class TokenBytes:
    """Of one tokenizer, by id. An id without a token has none."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._byte_of = {character: byte for byte, character in enumerate(byte_characters())}
        self._byte_level = "ByteLevel" in repr(tokenizer.decoder)
        self._added = {
            token: added.content for token, added in tokenizer.get_added_tokens_decoder().items()
        }
        self._known: dict[int, bytes] = {}

    def of(self, token: int) -> bytes:
        if token not in self._known:
            self._known[token] = self._find(token)
        return self._known[token]

    def _find(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        text = self._tokenizer.id_to_token(token)
        if text is None:
            return b""
        if self._byte_level and all(character in self._byte_of for character in text):
            return bytes(self._byte_of[character] for character in text)
        if found := BYTE_TOKEN.fullmatch(text):
            return bytes([int(found[1], 16)])
        return text.replace(WORD_MARK, " ").encode()


def byte_characters() -> list[str]:
    """The printable stand-in of each byte in byte-level tokenizers.

    Printable Latin-1 bytes stand for themselves; the others take U+0100 and on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]

"""Log probabilities of tokens in the two shapes of OpenAI's API. Knows no tokenizer."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not have."""


@dataclass(frozen=True, slots=True)
class TokenText:
    """A token as text and as bytes; half a character has the text `bytes:\\xe2\\x82`."""

    text: str
    data: bytes

    @staticmethod
    def of(data: bytes) -> TokenText:
        try:
            return TokenText(data.decode("utf-8"), data)
        except UnicodeDecodeError:
            return TokenText("bytes:" + "".join(f"\\x{byte:02x}" for byte in data), data)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """A produced token and its log probability; `best` are the most probable in its place."""

    token: TokenText
    logprob: float
    best: Sequence[tuple[TokenText, float]]


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """`logprobs` of a choice of a chat."""
    return {
        "content": [
            {
                **_entry(one.token, one.logprob),
                "top_logprobs": [_entry(token, logprob) for token, logprob in one.best],
            }
            for one in tokens
        ],
        "refusal": None,
    }


def _entry(token: TokenText, logprob: float) -> dict[str, Any]:
    return {
        "token": token.text,
        "logprob": max(logprob, LEAST_LOGPROB),
        "bytes": list(token.data),
    }


def completion_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """`logprobs` of a choice of a completion; the alternatives of a place include its own token.

    `text_offset` are characters of the answer before the token; one that is cut by a token's edge
    belongs to the token that completes it.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    offsets, shown = [], 0
    for one in tokens:
        offsets.append(shown)
        shown += len(decoder.decode(one.token.data))
    return {
        "tokens": [one.token.text for one in tokens],
        "token_logprobs": [max(one.logprob, LEAST_LOGPROB) for one in tokens],
        "top_logprobs": [
            {
                token.text: max(logprob, LEAST_LOGPROB)
                for token, logprob in (*one.best, (one.token, one.logprob))
            }
            if one.best
            else {}
            for one in tokens
        ],
        "text_offset": offsets,
    }

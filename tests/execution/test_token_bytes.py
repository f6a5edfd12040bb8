"""Bytes of tokens: together they are those of the text, however the vocabulary writes them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Raw
from tokenizers import decoders, models, pre_tokenizers

from batchgen.exec.init import EOS_TOKEN_ID, init_model
from batchgen.exec.token_bytes import TokenBytes
from batchgen.exec.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(init_model(tmp_path_factory.mktemp("bytes") / "m"))


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=30))
def test_tokens_of_a_byte_vocabulary_are_the_text(tokenizer: Tokenizer, text: str) -> None:
    if any(mark in text for mark in ("<|", "|>")):
        return
    ids = tokenizer.encode_more(text)
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


def test_special_tokens_are_as_they_are_written(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_bytes(EOS_TOKEN_ID) == b"<|end|>"
    assert tokenizer.token_bytes(263) == b""


def test_vocabularies_of_words_with_byte_tokens() -> None:
    """The form of sentencepiece: a mark for a space, and a token per byte for what is rare."""
    vocabulary = {"<unk>": 0, "\u2581hi": 1, "\u2581": 2, "a": 3}
    vocabulary |= {f"<0x{byte:02X}>": 4 + byte for byte in range(256)}
    raw = Raw(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    found = TokenBytes(raw)
    text = "a \u20ac a"
    assert b"".join(map(found.of, raw.encode(text).ids)) == b" " + text.encode()
    assert found.of(1) == b" hi"

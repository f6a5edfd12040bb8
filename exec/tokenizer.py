"""Text to tokens and back: tokenizer.json, chat template, stop tokens. No model.

The template is a program from the checkpoint: `exec.templates` runs it in a process with limits.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from batchgen.errors import DataError, UserError
from batchgen.exec.template_pool import TemplatePool
from batchgen.exec.templates import TemplateError, time_of_job
from batchgen.exec.token_bytes import TokenBytes
from batchgen.fields import read_json_object
from batchgen.oneline import one_line
from batchgen.paths import has_file

MAX_TEMPLATE_BYTES = 1 << 20


class Tokenizer:
    """The tokenizer of a checkpoint folder.

    `eos_token_ids` are the ids that end an answer. `has_chat_template` says whether messages work;
    `now` is what a template takes for the time, the same for all conversations. facts: size of the
    vocabulary and those ids, where the folder has been read before and nothing is to be checked;
    else they are read with the model's config.
    """

    def __init__(
        self,
        directory: Path,
        *,
        now: datetime | None = None,
        facts: tuple[int, frozenset[int]] | None = None,
    ) -> None:
        directory = self._directory = Path(directory)
        path = directory / "tokenizer.json"
        if not has_file(path):
            raise UserError(
                f"{directory} has no tokenizer.json", remedy="only fast tokenizers are read"
            )
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for any bad file
            raise DataError(f"is not a tokenizer ({error!s:.80})", path=str(path)) from None
        # Those of the file are meant for training: every prompt here is whole, and alone.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._token_bytes = TokenBytes(self._tokenizer)
        is_read = facts is not None
        if facts is None:
            from batchgen.exec.config import load_config  # more than other processes need

            config = load_config(directory)
            facts = config.vocab_size, frozenset(config.eos_token_ids)
        self.vocab_size, self.eos_token_ids = facts
        settings_path = directory / "tokenizer_config.json"
        settings = read_json_object(settings_path, "settings") if has_file(settings_path) else {}
        self.now = time_of_job() if now is None else now
        self._templates: TemplatePool | None = None
        if (source := _template(directory, settings)) is not None:
            specials = {
                name: _token_text(settings.get(name))
                for name in ("bos_token", "eos_token", "pad_token")
            }
            try:
                self._templates = TemplatePool(source, specials, self.now, is_checked=is_read)
            except ValueError as error:
                raise DataError(
                    f"is not a valid template ({error!s:.80})",
                    path=str(directory),
                    field="chat_template",
                ) from None

    def recipe(self) -> tuple[str, list[str]]:
        """How another process makes the same: by `made`."""
        facts = [str(self.vocab_size), *map(str, sorted(self.eos_token_ids))]
        where = os.path.abspath(self._directory)
        return f"{__name__}:Tokenizer", [where, self.now.isoformat(), *facts]

    @classmethod
    def made(cls, directory: str, now: str, vocab_size: str, *eos_ids: str) -> Tokenizer:
        facts = int(vocab_size), frozenset(map(int, eos_ids))
        return cls(Path(directory), now=datetime.fromisoformat(now), facts=facts)

    @property
    def has_chat_template(self) -> bool:
        """Whether `encode_messages` can be used."""
        return self._templates is not None

    def encode(self, text: str) -> list[int]:
        """Tokens of plain text, with the special tokens that the tokenizer itself adds.

        Raises ValueError for a text that the tokenizer cannot encode.
        """
        return _known(*self._encode([text], True))

    def encode_texts(self, texts: Sequence[str]) -> list[list[int] | ValueError]:
        """`encode` of each, its error in the place of ids; many at once are faster, and do not keep
        other threads waiting."""
        return self._encode(texts, True)

    def encode_more(self, text: str) -> list[int]:
        """Tokens of a text that goes on after others: special tokens only where it writes them.
        Raises ValueError as `encode`."""
        return _known(*self._encode([text], False))

    def _encode(self, texts: Sequence[str], special: bool) -> list[list[int] | ValueError]:
        encode = self._tokenizer.encode_batch_fast  # without the places of tokens in the text
        try:
            return [one.ids for one in encode(list(texts), add_special_tokens=special)]
        except Exception as error:  # the library has no class of its own for them
            if len(texts) == 1:
                return [ValueError(f"the tokenizer cannot encode it ({one_line(error)})")]
            return [self._encode([text], special)[0] for text in texts]

    def encode_messages(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Tokens of a conversation, ready for the assistant's answer.

        Raises TemplateError if there is no template or it does not accept the messages.
        """
        return _known(*self.encode_conversations([list(messages)]))

    def encode_conversations(
        self, conversations: Sequence[list[dict[str, Any]]]
    ) -> list[list[int] | ValueError]:
        """`encode_messages` of each, its error in the place of ids; many at once are faster."""
        if self._templates is None:
            why = "the model has no chat template; send a prompt instead"
            return [TemplateError(why) for _ in conversations]
        rendered = self._templates.render(conversations)
        ids = iter(self._encode([one for one in rendered if isinstance(one, str)], False))
        return [next(ids) if isinstance(one, str) else one for one in rendered]

    def release(self) -> None:
        """End the processes of the chat template; the next message starts another. What a thread
        is encoding ends as `Cancelled`."""
        if self._templates is not None:
            self._templates.close()

    def decode(self, ids: Sequence[int]) -> str:
        """Text of produced tokens; special tokens and ids without a text are left out."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def written(self, ids: Sequence[int] | npt.NDArray[np.int32]) -> str:
        """Text of a prompt as the model has it, special tokens as they are written."""
        numbers = [int(one) for one in ids]
        text: str = self._tokenizer.decode(numbers, skip_special_tokens=False)
        return text

    def token_bytes(self, token: int) -> bytes:
        """What one token stands for; special tokens as they are written."""
        return self._token_bytes.of(token)


def _known(ids: list[int] | ValueError) -> list[int]:
    if isinstance(ids, ValueError):
        raise ids
    return ids


def _token_text(value: object) -> str:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _template(directory: Path, settings: dict[str, Any]) -> str | None:
    path = directory / "chat_template.jinja"
    source = settings.get("chat_template")
    if has_file(path):
        if path.stat().st_size > MAX_TEMPLATE_BYTES:
            raise DataError(f"is larger than {MAX_TEMPLATE_BYTES} bytes", path=str(path))
        try:
            source = path.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise DataError(f"is not UTF-8 (byte {error.start})", path=str(path)) from None
    if isinstance(source, list):  # several named templates; the one called default is for chat
        named = {t.get("name"): t.get("template") for t in source if isinstance(t, dict)}
        source = named.get("default")
    return source if isinstance(source, str) else None

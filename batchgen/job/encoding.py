"""A chunk of an input made into columns: parsed, checked, encoded. It knows no other chunk, so that
chunks can be made anywhere, in threads or in other processes, with the same result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from batchgen.job.columns import Columns
from batchgen.job.drafting import Draft
from batchgen.job.inputs import Raw
from batchgen.job.options import Generation, generation_of, options_key, seed_of
from batchgen.job.prompts import PromptEncoder, RowError, token_ids
from batchgen.job.row import JobRow, RowLimits
from batchgen.job.shape import Shape
from batchgen.oneline import shown

OURS, ANSWERED, OTHERS = range(3)
ID_BYTES = 16
MOST_OPTIONS = 1000
MOST_INTEGER = 2**63 - 1  # that all readers of JSON have
NONE: tuple[tuple[Any, ...], ...] = ((),) * 4


Bad = tuple[int, str | None, str, str, dict[str, int]]


@dataclass(slots=True, kw_only=True)
class Chunk:
    """Rows of an input as they were read: `first` is the index of the first, `lines` their numbers.

    `states`: OURS, ANSWERED (nothing is to be done) or OTHERS (of another shard) of each; empty
    when all are ours.
    """

    first: int
    lines: list[int]
    items: list[Raw]
    states: bytes

    def __len__(self) -> int:
        return len(self.items)


@dataclass(slots=True, kw_only=True)
class Encoded:
    """What became of a chunk, as far as one can say who has not seen those before it.

    `digests`: of the ids of all rows that have one, `ID_BYTES` each; `nameless` are the places of
    the others. `unknown`: fields that nobody knows, and the places of the rows that have just
    these. `bad`: place, id, code, message and its numbers. `good`: the rest of those that are
    ours; `places` [rows] theirs.
    """

    digests: bytes
    nameless: list[int]
    unknown: dict[tuple[str, ...], list[int]]
    bad: list[Bad]
    good: Columns
    places: list[int]


@dataclass(slots=True, kw_only=True)
class Maker:
    """What chunks of a job are made with, in every process the same."""

    encoder: PromptEncoder
    limits: RowLimits
    form: str
    shape: Shape | None

    def encoded(self, chunk: Chunk) -> Encoded:
        """Rows of the chunk. Whatever the encoder raises comes through."""
        ours: list[tuple[int, Draft]] = []
        bad: list[Bad] = []
        unknown: dict[tuple[str, ...], list[int]] = {}
        digests: list[bytes] = []
        nameless: list[int] = []
        states = chunk.states or bytes(len(chunk))
        for place, (line, item) in enumerate(zip(chunk.lines, chunk.items, strict=True)):
            draft = Draft.of(line, item, self.form, self.shape, self.limits)
            custom_id, error = draft.custom_id, draft.error
            if custom_id is None:
                nameless.append(place)
            else:
                digests.append(hashlib.blake2b(custom_id.encode(), digest_size=ID_BYTES).digest())
            if draft.unknown:
                unknown.setdefault(draft.unknown, []).append(place)
            if states[place] != OURS:
                continue
            if error is not None:
                bad.append((place, custom_id, error.code, error.message, error.numbers))
            else:
                ours.append((place, draft))
        found = self._ids([one for _, one in ours])
        # Of all prompts at once: most chunks have no token that the model does not know.
        tokens = _joined([one for one in found if isinstance(one, list)])
        vocab_size = self.encoder.vocab_size
        is_known = not len(tokens) or int(tokens.max()) < vocab_size
        rows = _Rows(self, chunk)
        for (place, draft), ids in zip(ours, found, strict=True):
            try:
                rows.add(place, draft, _prompt(draft, ids, vocab_size, is_known))
            except RowError as error:
                bad.append((place, draft.custom_id, error.code, error.message, error.numbers))
        bad.sort(key=lambda row: row[0])
        return Encoded(
            digests=b"".join(digests),
            nameless=nameless,
            unknown=unknown,
            bad=bad,
            good=rows.columns(tokens if rows.prompts == found else _joined(rows.prompts)),
            places=rows.places,
        )

    def _ids(self, drafts: Sequence[Draft]) -> list[list[int] | ValueError | None]:
        """The ids of prompts, many at once; None of rows that have ids already, or nothing."""
        ids: list[list[int] | ValueError | None] = [None] * len(drafts)
        texts = [n for n, one in enumerate(drafts) if isinstance(one.prompt, str)]
        chats = [n for n, one in enumerate(drafts) if one.kind != "completion"]
        encoder = self.encoder
        ways: tuple[tuple[list[int], Any], ...] = (
            (texts, encoder.encode_texts),
            (chats, encoder.encode_conversations),
        )
        for places, encode in ways:
            if places:
                prompts = [drafts[n].prompt for n in places]
                for n, found in zip(places, encode(prompts), strict=True):
                    ids[n] = found
        return ids


def _joined(prompts: Sequence[list[int]]) -> npt.NDArray[np.int64]:
    """Their tokens one behind the other."""
    number = sum(map(len, prompts))
    return np.fromiter(chain.from_iterable(prompts), dtype=np.int64, count=number)


def _prompt(
    draft: Draft, ids: list[int] | ValueError | None, vocab_size: int, is_known: bool
) -> list[int]:
    """Ids that the model has, at least one; is_known: those of the encoder are. Raises RowError."""
    if ids is None:
        ids = token_ids(draft.prompt, vocab_size)
    elif isinstance(ids, ValueError):
        code = "invalid_prompt" if draft.kind == "completion" else "invalid_messages"
        raise RowError(code, f"{ids!s:.200}")
    if not ids:
        raise RowError("empty_prompt", "the prompt has no tokens")
    if not is_known and (top := max(ids)) >= vocab_size:
        raise RowError(
            "token_out_of_vocabulary",
            f"the prompt encodes to token {top}, the model knows those below {vocab_size}",
        )
    return ids


@dataclass(slots=True)
class _Rows:
    """Columns that grow."""

    maker: Maker
    chunk: Chunk
    rows: list[tuple[bytes, int, int, int]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    prompts: list[list[int]] = field(default_factory=list)
    commons: list[JobRow] = field(default_factory=list)
    number_of: dict[Any, int] = field(default_factory=dict)

    def add(self, place: int, draft: Draft, ids: list[int]) -> None:
        """A row with its prompt. Raises RowError, and then nothing has changed."""
        assert draft.custom_id is not None
        limits, body = self.maker.limits, draft.body
        most = _max_output(body, len(ids), limits)
        kind = "completion" if draft.kind == "completion" else "chat"
        key = options_key(body, kind)
        options = None if key is None else limits.options.get(key)
        if options is None:
            options = generation_of(
                body,
                kind,
                defaults=limits.sampling,
                vocab_size=self.maker.encoder.vocab_size,
                max_output=most,
            )
            if key is not None and len(limits.options) < MOST_OPTIONS:
                limits.options[key] = options
        seed = seed_of(body, draft.custom_id, limits.run_seed)
        sign = -1 if seed < 0 else 1
        whole = (options if key is None else key, draft.kind, body.get("model"), sign)
        number = self.number_of.get(whole)
        if number is None:
            number = self.number_of[whole] = len(self.commons)
            self.commons.append(_common(draft, options, sign))
        self.rows.append((draft.custom_id.encode(), most, abs(seed), number))
        self.places.append(place)
        self.prompts.append(ids)

    def columns(self, tokens: npt.NDArray[np.int64]) -> Columns:
        """`tokens`: `_joined` prompts of the rows."""
        ids, most, seeds, common = zip(*self.rows, strict=True) if self.rows else NONE
        at = np.array(self.places, dtype=np.int64)
        sizes = np.array(list(map(len, self.prompts)), dtype=np.int64)
        return Columns(
            index=at + self.chunk.first,
            line=np.array(self.chunk.lines, dtype=np.int64)[at],
            ids=b"".join(ids),
            id_ends=np.cumsum(list(map(len, ids)), dtype=np.int64),
            max_output=np.array(most, dtype=np.int64),
            seeds=np.array(seeds, dtype=np.uint64),
            common=np.array(common, dtype=np.int32),
            commons=self.commons,
            tokens=tokens.astype(np.int32),
            num_tokens=sizes,
        )


def _common(draft: Draft, options: Generation, sign: int) -> JobRow:
    return JobRow(
        index=0,
        line=0,
        custom_id="",
        kind=draft.kind,
        model=draft.body.get("model"),
        prompt_ids=(),
        max_output=0,
        sampling=options.sampling.with_seed(sign),
        ignore_eos=options.ignore_eos,
        stop=options.stop,
        stop_token_ids=options.stop_token_ids,
        num_samples=options.num_samples,
    )


def _max_output(body: dict[str, Any], prompt_tokens: int, limits: RowLimits) -> int:
    room = limits.max_context - prompt_tokens
    given = body.get("max_completion_tokens")
    name = "max_tokens" if given is None else "max_completion_tokens"
    given = body.get(name)
    if room < 1:
        raise RowError(
            "context_length_exceeded",
            f"the prompt has {prompt_tokens} tokens and leaves no room in a context of "
            f"{limits.max_context}",
            **_numbers(given, prompt_tokens, limits),
        )
    if given is None:
        return room if limits.default_max_output is None else min(room, limits.default_max_output)
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise RowError("invalid_field", f"field '{name}' must be an integer of at least 1")
    if given > room:
        raise RowError(
            "context_length_exceeded",
            f"{prompt_tokens} prompt tokens and {name} {shown(given)} exceed a context of "
            f"{limits.max_context}",
            **_numbers(given, prompt_tokens, limits),
        )
    return given


def _numbers(max_tokens: object, prompt_tokens: int, limits: RowLimits) -> dict[str, int]:
    numbers = {"limit": limits.max_context, "prompt_tokens": prompt_tokens}
    if type(max_tokens) is int and 0 < max_tokens <= MOST_INTEGER:
        numbers["max_tokens"] = max_tokens
    return numbers

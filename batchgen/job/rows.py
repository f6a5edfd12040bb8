"""Batch rows: from a line of the input to tokens and limits, or to an error row. Runs nothing.

Accepts OpenAI batch lines (`custom_id`, `method`, `url`, `body`), the short forms `{"prompt"}` and
`{"messages"}`, and rows of columns that a `Shape` makes into one of these. A bad row becomes a
`BadRow` with a stable code and never stops the others. The tokenizer is passed in, so this file
needs neither torch nor a model.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batchgen.ahead import in_order
from batchgen.errors import UserError
from batchgen.job.fields import IDS, KNOWN, TYPED, URLS, check_supported
from batchgen.job.inputs import read_input
from batchgen.job.jsonl import MAX_LINE_BYTES, BadLine, InputDigest
from batchgen.job.options import Generation, generation_of, options_key, seed_of
from batchgen.job.prompts import PromptEncoder, RowError, messages_of, token_ids
from batchgen.job.responses import chat_of_response
from batchgen.job.sampling import Sampling, SamplingDefaults
from batchgen.job.shape import Shape
from batchgen.oneline import shown

PROMPTS = {"chat": "messages", "completion": "prompt", "response": "messages"}
MOST_OPTIONS = 1000
MOST_UNKNOWN = 100
MOST_INTEGER = 2**63 - 1  # that all readers of JSON have
"""Names of unknown fields that are counted; others may be data."""

TokenIds = Sequence[int] | npt.NDArray[np.int32]
"""Ids of a text; a large job keeps them in columns."""

# Prompts are encoded many at a time (a chat template runs in a process of its own, and a thread
# that comes back to Python waits for its turn), but only as many as one of these allows: memory
# stays that of a few lines.
BATCH_ROWS = 256
BATCH_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLimits:
    """Limits and defaults of a job, in tokens; `default_max_output` None fills the context.
    `sampling`: what rows get that do not say how they sample.

    keep_requests: rows keep their object of the input, for bodies that read it. strict: a field
    that is not known makes an error row; else it counts in `unknown` and is ignored. models: names
    that rows may give for their model, None: any. options: those that were met, so that they are
    read once.
    """

    max_context: int
    default_max_output: int | None = None
    run_seed: int = 0
    max_line_bytes: int = MAX_LINE_BYTES
    keep_requests: bool = False
    strict: bool = False
    models: frozenset[str] | None = None
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)
    unknown: Counter[str] = field(default_factory=Counter)
    options: dict[Any, Generation] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """A row that can run. `index` counts rows from 0 in input order, `line` lines from 1; `request`
    is empty unless it was to be kept.

    `stop` are texts and `stop_token_ids` tokens that end an answer beside the model's own tokens.
    `num_samples` answers are wanted; a row that `job.samples` made for one of them is `sample`.
    """

    index: int
    line: int
    custom_id: str
    kind: str  # "chat", "completion" or "response"
    model: str | None
    prompt_ids: TokenIds
    max_output: int
    sampling: Sampling
    ignore_eos: bool
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    num_samples: int = 1
    sample: int = 0
    request: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A row that cannot run and why. `custom_id` is None if the row has no usable one; `numbers`:
    those of the message, by name."""

    index: int
    line: int
    custom_id: str | None
    code: str
    message: str
    numbers: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A row that an earlier process has answered: its id is taken, and nothing is to be done."""

    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    """A row whose prompt is not encoded yet: a conversation, a text, or ids."""

    index: int
    line: int
    custom_id: str
    kind: str
    value: dict[str, Any]
    body: dict[str, Any]
    prompt: object


def read_job(
    path: Path,
    encoder: PromptEncoder,
    limits: RowLimits,
    *,
    limit: int | None = None,
    digest: InputDigest | None = None,
) -> list[JobRow | BadRow]:
    """The rows of a file, in order: all, or the first `limit`, behind which nothing is read.

    `digest` takes the bytes that were read. Raises UserError for a file without any row.
    """
    found = read_rows(path, encoder, limits, limit=limit, digest=digest)
    rows = [row for row in found if not isinstance(row, Answered)]
    if not rows:
        raise UserError(f"{path} holds no rows", remedy="put one JSON object on each line")
    return rows


def read_rows(
    path: Path,
    encoder: PromptEncoder,
    limits: RowLimits,
    *,
    limit: int | None = None,
    digest: InputDigest | None = None,
    form: str = "jsonl",
    shape: Shape | None = None,
    answered: Callable[[int], bool] = lambda index: False,
    shard: tuple[int, int] | None = None,
    threads: int = 1,
) -> Generator[JobRow | BadRow | Answered]:
    """Rows a few at a time, so that a long file needs memory only for its ids. `answered` rows are
    not encoded. shard (i, n), i from 1: only each n-th row, from the i-th; ids that come twice are
    those of the whole file, and `index` counts in it. threads: prompts are encoded in so many,
    ahead of the rows that are taken; the rows are the same. Close the iterator when it is left."""
    batches = _batches(path, limits, limit, digest, form, shape, answered, shard)
    for batch, ids in in_order(batches, partial(_ids, encoder=encoder), threads):
        yield from _encoded(batch, ids, encoder.vocab_size, limits)


def _batches(
    path: Path,
    limits: RowLimits,
    limit: int | None,
    digest: InputDigest | None,
    form: str,
    shape: Shape | None,
    answered: Callable[[int], bool],
    shard: tuple[int, int] | None,
) -> Iterator[list[_Draft | BadRow | Answered]]:
    """Rows before their prompts are encoded."""
    digest = InputDigest() if digest is None else digest
    seen: set[bytes] = set()
    batch: list[_Draft | BadRow | Answered] = []
    began = 0
    lines = read_input(path, form, limits.max_line_bytes, digest, TYPED)
    for index, (line, value) in enumerate(
        islice(lines, None if limit is None else min(limit, sys.maxsize))
    ):
        row = _draft(index, line, value, seen, shape, limits)
        if shard is not None and index % shard[1] != shard[0] - 1:
            continue
        batch.append(Answered(index=index) if answered(index) else row)
        if len(batch) >= BATCH_ROWS or digest.num_bytes - began >= BATCH_BYTES:
            yield batch
            batch, began = [], digest.num_bytes
    yield batch


def _draft(
    index: int,
    line: int,
    value: dict[str, Any] | BadLine,
    seen: set[bytes],
    shape: Shape | None,
    limits: RowLimits,
) -> _Draft | BadRow:
    """All that can be said of a line without a tokenizer; `seen` are digests of the ids so far."""
    custom_id = None
    try:
        if isinstance(value, BadLine):
            raise RowError(value.code, value.message)
        custom_id = _custom_id(value, line)
        digest = hashlib.blake2b(custom_id.encode(), digest_size=16).digest()
        if digest in seen:
            raise RowError("duplicate_custom_id", f"custom_id {custom_id!r:.80} came before")
        seen.add(digest)
        kind, body = _body(value, shape, limits)
        _check_model(body.get("model"), limits)
        check_supported(body)
        if not isinstance(body.get("model"), str | None):
            raise RowError("invalid_field", "field 'model' must be a string")
        name = PROMPTS[kind]
        if name not in body:
            raise RowError("missing_field", f"field '{name}' is missing")
        prompt = body[name] if kind == "completion" else messages_of(body[name])
    except RowError as error:
        return _bad(index, line, custom_id, error)
    return _Draft(
        index=index,
        line=line,
        custom_id=custom_id,
        kind=kind,
        value=value,
        body=body,
        prompt=prompt,
    )


def _ids(
    batch: Sequence[_Draft | BadRow | Answered], encoder: PromptEncoder
) -> list[list[int] | ValueError | None]:
    """The ids of the prompts of a batch; None of rows that have none, or have ids already."""
    ids: list[list[int] | ValueError | None] = [None] * len(batch)
    drafts = [(n, row) for n, row in enumerate(batch) if isinstance(row, _Draft)]
    texts = [n for n, row in drafts if isinstance(row.prompt, str)]
    chats = [n for n, row in drafts if row.kind != "completion"]
    for places, encode in ((texts, encoder.encode_texts), (chats, encoder.encode_conversations)):
        if places:
            prompts: list[Any] = [batch[n].prompt for n in places]  # type: ignore[union-attr]
            for n, found in zip(places, encode(prompts), strict=True):
                ids[n] = found
    return ids


def _encoded(
    batch: Sequence[_Draft | BadRow | Answered],
    ids: Sequence[list[int] | ValueError | None],
    vocab_size: int,
    limits: RowLimits,
) -> Iterator[JobRow | BadRow | Answered]:
    """The rows of a batch, in order."""
    for row, found in zip(batch, ids, strict=True):
        if not isinstance(row, _Draft):
            yield row
            continue
        try:
            if isinstance(found, ValueError):
                code = "invalid_prompt" if row.kind == "completion" else "invalid_messages"
                raise RowError(code, f"{found!s:.200}")
            given = token_ids(row.prompt, vocab_size) if found is None else found
            yield _row(row, given, vocab_size, limits)
        except RowError as error:
            yield _bad(row.index, row.line, row.custom_id, error)


def _bad(index: int, line: int, custom_id: str | None, error: RowError) -> BadRow:
    return BadRow(
        index=index,
        line=line,
        custom_id=custom_id,
        code=error.code,
        message=error.message,
        numbers=error.numbers,
    )


def _custom_id(value: dict[str, Any], line: int) -> str:
    """The id of a row; short rows may leave it out and are then named by their line."""
    short = "body" not in value
    given = value.get("custom_id", value.get("id") if short else None)
    if given is None:
        if not short:
            raise RowError("missing_field", "field 'custom_id' is missing")
        return line_id(line)
    if not isinstance(given, str) or not given:
        raise RowError("invalid_field", "field 'custom_id' must be a string that is not empty")
    return given


def line_id(line: int) -> str:
    """The id of a short row that has none."""
    return f"line-{line}"


def _row(draft: _Draft, ids: list[int], vocab_size: int, limits: RowLimits) -> JobRow:
    if not ids:
        raise RowError("empty_prompt", "the prompt has no tokens")
    if max(ids) >= vocab_size:
        raise RowError(
            "token_out_of_vocabulary",
            f"the prompt encodes to token {max(ids)}, the model knows those below {vocab_size}",
        )
    body, model = draft.body, draft.body.get("model")
    max_output = _max_output(body, len(ids), limits)
    options = _options(draft, vocab_size, max_output, limits)
    return JobRow(
        index=draft.index,
        line=draft.line,
        custom_id=draft.custom_id,
        kind=draft.kind,
        model=model,
        prompt_ids=tuple(ids),
        max_output=max_output,
        sampling=options.sampling.with_seed(seed_of(body, draft.custom_id, limits.run_seed)),
        ignore_eos=options.ignore_eos,
        stop=options.stop,
        stop_token_ids=options.stop_token_ids,
        num_samples=options.num_samples,
        request=draft.value if limits.keep_requests else {},
    )


def _options(draft: _Draft, vocab_size: int, max_output: int, limits: RowLimits) -> Generation:
    """Those of the row; the same ones are read once for all rows that have them."""
    kind = "completion" if draft.kind == "completion" else "chat"
    key = options_key(draft.body, kind)
    found = limits.options.get(key)
    if found is None:
        found = generation_of(
            draft.body,
            kind,
            defaults=limits.sampling,
            vocab_size=vocab_size,
            max_output=max_output,
        )
        if key is not None and len(limits.options) < MOST_OPTIONS:
            limits.options[key] = found
    return found


def _body(
    value: dict[str, Any], shape: Shape | None, limits: RowLimits
) -> tuple[str, dict[str, Any]]:
    """Kind and body of a row in any form."""
    if "body" not in value:
        if "url" in value or "method" in value:
            raise RowError("missing_field", "field 'body' is missing")
        body = value if shape is None else shape.body(value)
        _check_known(body, IDS, limits)
        return ("chat" if "messages" in body else "completion"), body
    body, url = value["body"], value.get("url")
    if value.get("method", "POST") != "POST":
        raise RowError("invalid_field", "field 'method' must be POST")
    if not isinstance(body, dict):
        raise RowError("invalid_field", "field 'body' must be an object")
    if url is None:
        kind = "chat" if "messages" in body else "completion"
    elif isinstance(url, str) and url in URLS:
        kind = URLS[url]
    else:
        raise RowError("unsupported_url", f"url {url!r:.80} is not one of {', '.join(URLS)}")
    if kind == "response":
        body = chat_of_response(body)
    _check_known(body, frozenset(), limits)
    return kind, body


def _check_model(name: object, limits: RowLimits) -> None:
    """A row for another model must not be answered by this one, where names were told."""
    if limits.models is not None and isinstance(name, str) and name not in limits.models:
        names = ", ".join(sorted(limits.models))
        raise RowError("model_not_found", f"model {name!r:.80} is not here, but {names:.200}")


def _check_known(body: dict[str, Any], more: frozenset[str], limits: RowLimits) -> None:
    """Fields that nobody knows: a mistyped option must not pass in silence."""
    for name in sorted(body.keys() - KNOWN):
        if name in more:
            continue
        if limits.strict:
            raise RowError("unsupported_field", f"field {name!r:.60} is not supported")
        if len(limits.unknown) < MOST_UNKNOWN or name in limits.unknown:
            limits.unknown[name] += 1


def _max_output(body: dict[str, Any], prompt_tokens: int, limits: RowLimits) -> int:
    room = limits.max_context - prompt_tokens
    given = body.get("max_completion_tokens")
    name = "max_tokens" if given is None else "max_completion_tokens"
    given = body.get(name)
    numbers = {"limit": limits.max_context, "prompt_tokens": prompt_tokens}
    if type(given) is int and 0 < given <= MOST_INTEGER:
        numbers["max_tokens"] = given
    if room < 1:
        raise RowError(
            "context_length_exceeded",
            f"the prompt has {prompt_tokens} tokens and leaves no room in a context of "
            f"{limits.max_context}",
            **numbers,
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
            **numbers,
        )
    return given

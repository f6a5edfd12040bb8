"""The lines of an input before any work: all are good, or the batch fails and says which are not.

Only what makes a line a request of this batch. What its body asks for is looked at when it runs,
and a body that cannot be becomes a failed row; so it is at OpenAI's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchgen.job.inputs import GZIP_MAGIC, read_input
from batchgen.job.jsonl import BadLine
from batchgen.serve.objects import BatchError

MOST_ERRORS = 100
"""Errors that a batch tells of; what comes behind is not looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """How many rows there are, the model that they name, and what is wrong."""

    rows: int
    model: str | None
    errors: list[BatchError]


class NoMore(Exception):
    """Whoever asked does not want to know any more."""


def check_lines(
    path: Path,
    *,
    endpoint: str,
    models: Collection[str],
    most_rows: int,
    stopping: Callable[[], bool] = lambda: False,
) -> Checked:
    """Raises UserError for a file that cannot be read, NoMore where `stopping` says so."""
    with path.open("rb") as file:
        if file.read(2) == GZIP_MAGIC:  # the reader would unpack it, without a limit
            error = BatchError(code="invalid_json", message="the file is packed", line=1)
            return Checked(rows=0, model=None, errors=[error])
    errors: list[BatchError] = []
    seen: set[bytes] = set()
    model, rows = None, 0
    for line, value in read_input(path):
        rows += 1
        if rows % 256 == 0 and stopping():
            raise NoMore
        if rows > most_rows:
            message = f"the file has more than {most_rows} requests"
            errors.append(BatchError(code="too_many_tasks", message=message, line=line))
            break
        wrong = _wrong(value, endpoint, models, model, seen)
        if wrong is not None:
            wrong.line = line
            errors.append(wrong)
            if len(errors) == MOST_ERRORS:
                break
        elif isinstance(value, dict):
            model = value["body"]["model"]
    if not rows:
        errors.append(BatchError(code="empty_batch", message="the file holds no requests"))
    return Checked(rows=rows, model=model, errors=errors)


def ids_of_rows(path: Path) -> Iterator[tuple[int, str]]:
    """(row from 0, custom_id) of a file whose lines are good."""
    for row, (_, value) in enumerate(read_input(path)):
        yield row, value["custom_id"] if isinstance(value, dict) else ""


def _wrong(
    value: dict[str, Any] | BadLine,
    endpoint: str,
    models: Collection[str],
    model: str | None,
    seen: set[bytes],
) -> BatchError | None:
    """The first thing that is wrong with a line, without its number; `model`: of the lines before,
    `seen`: digests of their ids."""
    if isinstance(value, BadLine):
        return BatchError(code=value.code, message=value.message)
    for name in ("custom_id", "method", "url", "body"):
        if value.get(name) is None:
            return _missing(name)
    custom_id, body = value["custom_id"], value["body"]
    if not isinstance(custom_id, str) or not custom_id:
        return _invalid("custom_id", "must be a string that is not empty")
    digest = hashlib.blake2b(custom_id.encode(), digest_size=16).digest()
    if digest in seen:
        return BatchError(
            code="duplicate_custom_id",
            message=f"custom_id {custom_id!r:.80} came before",
            param="custom_id",
        )
    seen.add(digest)
    if value["method"] != "POST":
        return _invalid("method", "must be POST")
    if value["url"] != endpoint:
        message = f"url {value['url']!r:.80} is not the endpoint of the batch, {endpoint}"
        return BatchError(code="url_mismatch", message=message, param="url")
    if not isinstance(body, dict):
        return _invalid("body", "must be an object")
    given = body.get("model")
    if given is None:
        return _missing("body.model")
    if not isinstance(given, str) or given not in models:
        message = f"model {given!r:.80} is not served here, but {', '.join(sorted(models))}"
        return BatchError(code="model_not_found", message=message, param="body.model")
    if model is not None and given != model:
        message = f"model {given!r:.80} is another one than {model!r:.80} of the lines before"
        return BatchError(code="model_mismatch", message=message, param="body.model")
    return None


def _missing(name: str) -> BatchError:
    return BatchError(code="missing_field", message=f"field '{name}' is missing", param=name)


def _invalid(name: str, what: str) -> BatchError:
    return BatchError(code="invalid_field", message=f"field '{name}' {what}", param=name)

"""What a batch has achieved becomes its two files: good rows in one, all others in the other."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from batchgen.api import row_result
from batchgen.job.journal import read_lines
from batchgen.job.output import error_object, line_of
from batchgen.serve.lines import ids_of_rows
from batchgen.serve.objects import Counts

ANSWERS, WORK = "answers.jsonl", "work"


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """How many bytes each file has, and what they hold."""

    good_bytes: int
    bad_bytes: int
    counts: Counts


def answers_of(folder: Path) -> Iterator[bytes]:
    """The answers that a batch has so far, in the order of its input: those of the finished job, or
    of its journal. Raises UserError for a journal that cannot be read."""
    answers, journal = folder / ANSWERS, folder / WORK / "journal.sqlite"
    if answers.is_file():
        with answers.open("rb") as file:
            for line in file:
                yield line.removesuffix(b"\n")
    elif journal.is_file():
        yield from read_lines(journal)


def count(counts: Counts, line: bytes) -> bool:
    """Add a row to the counts; whether it is a good one."""
    row = row_result(line)
    counts.input_tokens += row.prompt_tokens
    counts.output_tokens += row.completion_tokens
    if row.ok:
        counts.completed += 1
    else:
        counts.failed += 1
    return row.ok


def write_results(
    answers: Iterable[bytes],
    rows: Path,
    total: int,
    good: Path,
    bad: Path,
    *,
    code: str,
    message: str,
) -> Written:
    """Both files, durably; those of the `total` rows of the input `rows` that have no answer are
    errors of this code. Raises OSError."""
    counts = Counts(total=total)
    has_answer = np.zeros(total, np.bool_)
    with ExitStack() as stack:
        to_good, to_bad = (stack.enter_context(path.open("wb")) for path in (good, bad))
        for line in answers:
            index = int(json.loads(line)["id"].rpartition("_")[2])
            has_answer[index] = True
            (to_good if count(counts, line) else to_bad).write(line + b"\n")
        if not has_answer.all():
            for index, custom_id in ids_of_rows(rows):
                if not has_answer[index]:
                    line = line_of(error_object(index, custom_id, code, message))
                    to_bad.write(line + b"\n")
                    counts.failed += 1
        return Written(good_bytes=_kept(to_good), bad_bytes=_kept(to_bad), counts=counts)


def _kept(file: BinaryIO) -> int:
    file.flush()
    os.fsync(file.fileno())
    return file.tell()

"""Writes a trace as JSONL, plain or gzip, the same bytes for the same trace. Reads nothing."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import IO

import msgspec
import numpy as np

from batchgen.errors import UserError
from batchgen.paths import beside, check_output, put
from batchgen.trace.stages import Stages
from batchgen.trace.table import PS_DECIMALS, Trace

ROWS_PER_WRITE = 16384
GZIP_LEVEL = 6


def save(trace: Trace, path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Write the trace to `path`; gzip if the name ends in .gz.

    The file appears by a rename once it is complete and on disk. UserError when it exists already
    (unless `force`), or cannot be written.
    """
    target = Path(path)
    refuse_existing(target, force=force)
    try:
        with beside(target) as part:
            with part.open("xb") as file:
                if target.name.endswith(".gz"):
                    # No name and no time in the gzip header: equal traces give equal files.
                    with gzip.GzipFile(
                        filename="", mode="wb", fileobj=file, mtime=0, compresslevel=GZIP_LEVEL
                    ) as packed:
                        _write(trace, packed)
                else:
                    _write(trace, file)
                file.flush()
                os.fsync(file.fileno())
            _publish(part, target, force=force)
    except FileExistsError:
        refuse_existing(target, force=force)
        raise
    except OSError as error:
        raise UserError(
            f"{target}: cannot be written ({error.strerror})", remedy="give a writable place"
        ) from None


def _publish(part: Path, target: Path, *, force: bool) -> None:
    if not force:
        try:
            # Unlike rename, link fails if somebody made the file meanwhile.
            os.link(part, target)
            return
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            refuse_existing(target, force=False)
    put(part, target)


def refuse_existing(target: Path, *, force: bool) -> None:
    """UserError if the file is there and may not be replaced; called before any long work."""
    check_output(target)
    if target.exists() and not force:
        raise UserError(
            f"{target}: exists already", remedy="choose another name or overwrite with --force"
        )


def _write(trace: Trace, file: IO[bytes] | gzip.GzipFile) -> None:
    header = {
        "batchgen_trace": 1,
        "name": trace.name,
        "prefix_block_tokens": trace.prefix_block_tokens,
        "expert_skew": trace.expert_skew,
        "meta": trace.meta,
    }
    file.write(msgspec.json.encode(header, order="deterministic") + b"\n")
    for start in range(0, len(trace), ROWS_PER_WRITE):
        rows = _rows(trace, start, min(start + ROWS_PER_WRITE, len(trace)))
        file.write("".join(rows).encode("ascii", errors="strict"))


def _rows(trace: Trace, start: int, stop: int) -> Iterator[str]:
    part = slice(start, stop)
    ids = None if trace.ids is None else trace.ids[start:stop]
    offsets = trace.prefix_offsets[start : stop + 1]
    blocks = trace.prefix_blocks[offsets[0] : offsets[-1]].tolist()
    stages = None if trace.stages is None else _stages(trace.stages, start, stop)
    columns = zip(
        trace.prompt_tokens[part].tolist(),
        trace.output_tokens[part].tolist(),
        trace.max_output_tokens[part].tolist(),
        trace.arrival_ps[part].tolist(),
        trace.group[part].tolist(),
        (offsets - offsets[0]).tolist(),
        np.diff(offsets).tolist(),
        strict=False,
    )
    for i, (prompt, output, budget, arrival, group, first, count) in enumerate(columns):
        row = f'{{"prompt_tokens":{prompt},"output_tokens":{output}'
        if ids is not None:
            row += f',"id":{_quote(ids[i])}'
        if budget:
            row += f',"max_output_tokens":{budget}'
        if arrival:
            row += f',"arrival_s":{seconds_text(arrival)}'
        if group >= 0:
            row += f',"group":{group}'
        if count:
            row += f',"prefix":{str(blocks[first : first + count]).replace(" ", "")}'
        if stages is not None and stages[i]:
            row += f',"stages":[{stages[i]}]'
        yield row + "}\n"


def _stages(stages: Stages, start: int, stop: int) -> list[str]:
    """The stages of some rows as JSON, "" for a row without."""
    offsets = stages.offsets[start : stop + 1].tolist()
    part = slice(offsets[0], offsets[-1])
    texts = [
        f'{{"prompt_tokens":{prompt},"output_tokens":{output}'
        + (f',"wait_s":{seconds_text(wait)}}}' if wait else "}")
        for prompt, output, wait in zip(
            stages.prompt_tokens[part].tolist(),
            stages.output_tokens[part].tolist(),
            stages.wait_ps[part].tolist(),
            strict=True,
        )
    ]
    return [",".join(texts[a - offsets[0] : b - offsets[0]]) for a, b in pairwise(offsets)]


def seconds_text(picoseconds: int) -> str:
    """Exact decimal seconds."""
    whole, part = divmod(picoseconds, 10**PS_DECIMALS)
    return f"{whole}.{part:012d}".rstrip("0").rstrip(".") if part else str(whole)


def _quote(text: str) -> str:
    import json  # ASCII escapes, which msgspec cannot write; only traces with ids pay for it

    return json.dumps(text)

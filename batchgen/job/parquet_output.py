"""Output lines as a Parquet file: columns for tables, and the whole object beside."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, BinaryIO

from batchgen.api import row_result

ROWS = 4096
"""Rows of a group: what is in memory at once."""


def write_parquet(file: BinaryIO, lines: Iterable[bytes]) -> None:
    """One row per line, in their order: `row` counts rows of the input from 0; texts and tokens are
    null where a row failed, `error_code` and `error_message` where it did not; `object` is the
    line."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("row", pa.int64()),
            ("custom_id", pa.string()),
            ("text", pa.string()),
            ("texts", pa.list_(pa.string())),
            ("finish_reasons", pa.list_(pa.string())),
            ("prompt_tokens", pa.int64()),
            ("completion_tokens", pa.int64()),
            ("error_code", pa.string()),
            ("error_message", pa.string()),
            ("object", pa.string()),
        ]
    )
    rest = iter(lines)
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        while some := [_columns(line) for line in islice(rest, ROWS)]:
            writer.write_table(pa.Table.from_pylist(some, schema=schema))


def _columns(line: bytes) -> dict[str, Any]:
    row = row_result(line)
    found: dict[str, Any] = {
        "row": row.index,
        "custom_id": row.custom_id,
        "object": line.decode("utf-8"),
    }
    if not row.ok:
        return found | {"error_code": row.code, "error_message": row.message}
    return found | {
        "text": row.text,
        "texts": list(row.texts),
        "finish_reasons": list(row.finish_reasons),
        "prompt_tokens": row.prompt_tokens,
        "completion_tokens": row.completion_tokens,
    }

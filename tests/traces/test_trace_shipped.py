"""The shipped traces are what traces/README.md says: checksums, rows, lengths, prefix hits."""

from __future__ import annotations

import hashlib
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from batchgen.trace import load
from batchgen.trace.stats import describe

FOLDER = Path(__file__).parents[2] / "traces"
SUMS = dict(reversed(line.split()) for line in (FOLDER / "SHA256SUMS").read_text().splitlines())
README = (FOLDER / "README.md").read_text()
# | name | rows | five prompt numbers | five output numbers | span |
ROW = re.compile(
    r"^\| ([a-z0-9-]+) \| ([\d,]+) \| ([\d /]+) \| ([\d /]+) \| ([\d,]+) \|$", re.MULTILINE
)
TABLE = {match[1]: match.groups()[1:] for match in ROW.finditer(README)}


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_every_file_is_listed_everywhere() -> None:
    files = {path.name for path in FOLDER.glob("*.jsonl.gz")}
    assert files == set(SUMS) == {f"{name}.jsonl.gz" for name in TABLE}
    for name in TABLE:
        assert README.count(f"| {name} |") == 2, "once with lengths, once with the source"
        assert name in (FOLDER / "LICENSES.md").read_text()
    assert sum((FOLDER / name).stat().st_size for name in files) < 4 << 20


@pytest.mark.parametrize("name", TABLE)
def test_shipped_trace(name: str) -> None:
    path = FOLDER / f"{name}.jsonl.gz"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SUMS[path.name]
    trace = load(path)
    rows, prompts, outputs, span = TABLE[name]
    assert trace.name == name
    assert {"source", "licence", "source_file"} <= set(trace.meta)
    assert len(trace) == number(rows)
    stats = describe(trace)
    for column, text in (("prompt_tokens", prompts), ("output_tokens", outputs)):
        wanted = [int(part) for part in text.split("/")]
        keys = ("mean", "p50", "p90", "p99", "max")
        assert [round(stats[column][key]) for key in keys] == wanted
    assert round(stats["arrivals"]["span_s"]) == number(span)


@pytest.mark.parametrize(
    ("name", "ratio", "distinct"),
    [("mooncake-conversation", 0.366, 182_790), ("mooncake-synthetic", 0.640, 43_924)],
)
def test_ideal_prefix_hits(name: str, ratio: float, distinct: int) -> None:
    prefix = describe(load(FOLDER / f"{name}.jsonl.gz"))["prefix"]
    assert round(prefix["hit_ratio"], 3) == ratio
    assert prefix["distinct_blocks"] == distinct
    assert f"{ratio:.3f} over" in re.sub(r"\s+", " ", README)
    assert f"{distinct:,} distinct" in re.sub(r"\s+", " ", README)


def test_equal_ids_mean_equal_leading_chains() -> None:
    """What the schema promises of block ids holds in the real data."""
    trace = load(FOLDER / "mooncake-synthetic.jsonl.gz")
    before: dict[int, int] = {}
    for row in range(len(trace)):
        start, end = trace.prefix_offsets[row], trace.prefix_offsets[row + 1]
        chain = [-1, *trace.prefix_blocks[start:end].tolist()]
        for parent, block in pairwise(chain):
            assert before.setdefault(block, parent) == parent
    assert np.diff(trace.prefix_offsets).max() > 100

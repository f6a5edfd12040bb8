"""Rows made in processes are the rows made here, whatever becomes of the processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from byte_encoder import ByteEncoder, Troubled
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_rows import CASES, GOOD, chat

import batchgen.job.rows
from batchgen.job.encoding import Maker
from batchgen.job.jsonl import InputDigest
from batchgen.job.rows import Answered, BadRow, JobRow, RowLimits, read_rows

LIMITS = RowLimits(max_context=64, default_max_output=16)
TWICE = [b'{"custom_id": "twice", "prompt": "a", "odd": 1}', b'{"id": "twice", "prompt": 5}']
UNKNOWN = [
    b'{"prompt": "x", "a%d": 1, "b%d": 2}' % (number, number // 2) for number in range(0, 120, 3)
]
OTHERS = [
    GOOD,
    b"",
    b'{"prompt": [1, 2], "seed": -3, "n": 2}',
    b'{"prompt": "x", "seed": 3, "min_tokens": 2}',
    b'{"custom_id": "r", "url": "/v1/responses", "body": {"input": "hi", "max_output_tokens": 4}}',
    chat(stop=["a", "b"], custom=[1]),
]
LINES = st.lists(
    st.one_of(
        st.binary(max_size=20),
        st.sampled_from([line for _, line in CASES if len(line) < 500]),
        st.sampled_from(TWICE + UNKNOWN + OTHERS),
        st.integers(0, 30).map(lambda n: b'{"id": "%d", "prompt": "%d"}' % (n, n)),
    ),
    max_size=60,
)
WAYS = st.fixed_dictionaries(
    {
        "limit": st.sampled_from([None, None, 1, 9, 40]),
        "shard": st.sampled_from([None, None, (1, 2), (3, 3)]),
        "answered": st.sampled_from([None, lambda index: index % 3 == 1]),
    }
)
MORE_LIMITS = st.fixed_dictionaries(
    {
        "strict": st.booleans(),
        "keep_requests": st.booleans(),
        "models": st.sampled_from([None, frozenset({"m"})]),
        "max_line_bytes": st.sampled_from([60, 1 << 20]),
    }
)
Told = tuple[list[JobRow | BadRow | Answered], list[tuple[str, int]], str, int]


def told(path: Path, more: dict[str, Any], ways: dict[str, Any]) -> Told:
    """All that reading a file tells."""
    limits = replace(LIMITS, unknown=Counter(), options={}, **more)
    digest = InputDigest()
    rows = list(read_rows(path, ByteEncoder(), limits, digest=digest, **ways))
    return rows, list(limits.unknown.items()), digest.hexdigest(), digest.num_bytes


def refuse(self: Maker, chunk: object) -> None:
    raise AssertionError("a chunk was made here")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(LINES, st.integers(1, 9), WAYS, MORE_LIMITS)
def test_rows_do_not_depend_on_the_size_of_chunks(
    tmp_path: Path, lines: list[bytes], size: int, ways: dict[str, Any], more: dict[str, Any]
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n" + b"\n".join(lines))
    want = told(path, more, ways)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batchgen.job.rows, "BATCH_ROWS", size)
        assert told(path, more, ways) == want


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(LINES, st.integers(1, 9), WAYS, MORE_LIMITS)
def test_rows_made_in_processes_are_those_made_here(
    tmp_path: Path, lines: list[bytes], size: int, ways: dict[str, Any], more: dict[str, Any]
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n" + b"\n".join(lines))
    want = told(path, more, ways)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batchgen.job.rows, "BATCH_ROWS", size)
        patch.setattr(Maker, "encoded", refuse)
        assert told(path, more, ways | {"threads": 2, "here_rows": 0}) == want


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.frozensets(st.sampled_from("abcdefgh"), max_size=4)),
        max_size=30,
    ),
    st.integers(1, 9),
)
def test_unknown_fields_are_counted_as_if_row_by_row(
    tmp_path: Path, rows: list[tuple[int, frozenset[str]]], size: int
) -> None:
    """Up to so many names, in the order in which they come; rows whose id came before have none."""
    lines, want, seen = [], Counter[str](), set()
    for custom_id, names in rows:
        lines.append(json.dumps({"id": f"{custom_id}", "prompt": "x", **dict.fromkeys(names, 1)}))
        for name in sorted(names) if custom_id not in seen else ():
            if name in want or len(want) < 3:
                want[name] += 1
        seen.add(custom_id)
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(lines))
    limits = replace(LIMITS, unknown=Counter(), options={})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batchgen.job.rows, "MOST_UNKNOWN", 3)
        patch.setattr(batchgen.job.rows, "BATCH_ROWS", size)
        found = list(read_rows(path, ByteEncoder(), limits))
    assert list(limits.unknown.items()) == list(want.items())
    assert sum(isinstance(one, JobRow) for one in found) == len(seen)


def prompts(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(f'{{"prompt": "{text}"}}\n' for text in texts))
    return path


def read_far(path: Path, encoder: ByteEncoder) -> list[JobRow | BadRow | Answered]:
    return list(read_rows(path, encoder, LIMITS, threads=2, here_rows=0))


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batchgen.job.rows, "BATCH_ROWS", 4)


@pytest.mark.parametrize("deaths", [1, 9])
def test_what_a_dead_process_had_is_made_here(tmp_path: Path, deaths: int) -> None:
    """One chunk, or more than there are processes that may die."""
    texts = [f"die {n}" if n % 4 == 1 and n < 4 * deaths else f"{n}" for n in range(60)]
    path = prompts(tmp_path / "in.jsonl", texts)
    want = list(read_rows(path, ByteEncoder(), LIMITS))
    assert read_far(path, Troubled(tmp_path)) == want
    begun = list(tmp_path.glob("*.pid"))
    assert len(begun) >= 2


def test_what_the_encoder_raises_comes_through(tmp_path: Path) -> None:
    path = prompts(tmp_path / "in.jsonl", ["a"] * 9 + ["raise"])
    with pytest.raises(RuntimeError, match="as told"):
        read_far(path, Troubled(tmp_path))


def test_an_encoder_without_a_way_to_others_is_used_here(tmp_path: Path) -> None:
    class Local(ByteEncoder):
        recipe = None  # type: ignore[assignment]

    path = prompts(tmp_path / "in.jsonl", [f"{n}" for n in range(30)])
    assert read_far(path, Local()) == list(read_rows(path, ByteEncoder(), LIMITS))


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] == "Z"
    except FileNotFoundError:
        return True


def eventually(what: Callable[[], bool]) -> bool:
    """Whether it comes true; a machine may be slow."""
    until = time.monotonic() + 60
    while not what() and time.monotonic() < until:
        time.sleep(0.02)
    return what()


def pids(folder: Path) -> list[int]:
    return [int(one.stem) for one in folder.glob("*.pid")]


def test_who_stops_reading_ends_the_processes(tmp_path: Path) -> None:
    """One of them has a chunk that takes for ever."""
    path = prompts(tmp_path / "in.jsonl", ["a", "b", "c", "d", "sleep"] + ["e"] * 100)
    rows = read_rows(path, Troubled(tmp_path), LIMITS, threads=2, here_rows=0)
    assert isinstance(next(rows), JobRow)
    rows.close()
    assert pids(tmp_path)
    assert eventually(lambda: all(gone(pid) for pid in pids(tmp_path)))


READER = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
import batchgen.job.rows
from byte_encoder import Troubled
batchgen.job.rows.BATCH_ROWS = 4
folder = Path(sys.argv[1])
limits = batchgen.job.rows.RowLimits(max_context=64)
for _ in batchgen.job.rows.read_rows(
    folder / "in.jsonl", Troubled(folder), limits, threads=2, here_rows=0
):
    pass
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_processes_end_with_their_parent(tmp_path: Path, how: signal.Signals) -> None:
    """As by Ctrl-C while it waits for them, and when nobody asks it."""
    prompts(tmp_path / "in.jsonl", ["nap"] * 1000)
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(tmp_path), *sys.path],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert eventually(lambda: len(pids(tmp_path)) == 2)
    os.killpg(reader.pid, how)
    assert reader.wait(60) != 0
    assert eventually(lambda: all(gone(pid) for pid in pids(tmp_path)))


def test_a_process_loads_no_torch() -> None:
    code = "import sys, batchgen.job.crew_worker, batchgen.exec.tokenizer; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "pandas", "pyarrow", "simpy"} & set(done.stdout.split())

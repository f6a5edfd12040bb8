"""A decision log whose header was altered, in any field: one line and exit code 1 or 2."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from batchgen.cli import _explain, main
from batchgen.cli.validate import replay as command
from batchgen.log import read_log
from batchgen.sim.run import simulate
from batchgen.simjob import SimJob

STRANGE: tuple[Any, ...] = (
    *(None, True, "", "x", "\ud800", "a\nb", "nan", [], [0], [[]], [None], {}, {"x": "1"}),
    *(0, 1, 2, -1, 7, 2**31, -(2**31), 2**63, 2**64, 10**30, 0.5, 1e308, float("nan")),
)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Rows that share prefixes, on two engines, with predictions: every field of a header."""
    trace = tmp_path_factory.mktemp("header") / "t.jsonl"
    head = {"batchgen_trace": 1, "prefix_block_tokens": 16}
    rows = [{"prompt_tokens": 40, "output_tokens": 5 * n, "prefix": [1, n]} for n in (1, 2)]
    trace.write_text("".join(json.dumps(line) + "\n" for line in (head, *rows)))
    overrides = (("predictor.part", "oracle"), ("admission.watermark", "0.1"))
    record = simulate(
        SimJob(
            trace=str(trace),
            model="llama-3.1-8b",
            gpu="h100",
            gpus=2,
            policy="vllm",
            log="full",
            oracle=True,
            overrides=overrides,
        )
    )
    return gzip.decompress(b"".join(record.decisions or ())).decode().splitlines()


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every field and every first element, at any depth."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else []
    items = list(enumerate(value[:1])) if isinstance(value, list) else items
    for key, item in items:
        yield from places(item, (*path, key))


def altered(header: Any, path: tuple[Any, ...], value: Any) -> Any:
    changed = json.loads(json.dumps(header))
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


def chained(lines: list[str]) -> list[str]:
    """The lines with digests that follow from each other, as a forger would make them."""
    checksum = crc32(lines[0].encode())
    out = [lines[0]]
    for line in lines[1:]:
        bare = line[: line.rindex(',"digest"')] + "}"
        checksum = crc32(bare.encode(), checksum)
        out.append(bare[:-1] + f',"digest":"{checksum:08x}"}}')
    return out


def replayed(lines: list[str], path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    path.write_bytes(gzip.compress("".join(line + "\n" for line in lines).encode()))
    try:
        code = command(path, fresh=False, as_json=False)
    except Exception as error:  # as `main` does; parsing arguments takes longer than all the rest
        code = _explain(error)
    out, err = capsys.readouterr()
    assert (out + err).count("\n") == 1, (code, out, err)
    assert "Traceback" not in err
    return code, err


def test_the_log_comes_again(
    log: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header = json.loads(log[0])
    assert header["page_keys"]
    assert header["predicted"]
    assert len(header["plan"]["engines"]) == 2
    assert chained(log) == log
    assert len(list(read_log(log))) == len(log)
    assert replayed(log, tmp_path / "log.gz", capsys) == (0, "")


FIELDS = (
    *("batchgen_log", "backend", "full", "plan", "preset", "overrides", "capabilities"),
    *("prompt_tokens", "budget_tokens", "produced_tokens", "groups", "predicted", "page_keys"),
    *("reference", "bodies"),
)


@pytest.mark.parametrize("field", FIELDS)
def test_an_altered_header_is_one_line(
    field: str, log: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the digests as they were it is never equal; with new ones it may be, but never a
    crash."""
    header = json.loads(log[0])
    assert set(header) == set(FIELDS)
    file = tmp_path / "log.gz"
    for path in places({field: header[field]}):
        for value in STRANGE:
            line = json.dumps(altered(header, path, value), separators=(",", ":"))
            if line == log[0]:
                continue
            code, err = replayed([line, *log[1:]], file, capsys)
            assert code in (1, 2), (path, value, err)
            code, err = replayed(chained([line, *log[1:]]), file, capsys)
            assert code in (0, 1, 2), (path, value, err)


@pytest.mark.parametrize("field", FIELDS)
def test_a_header_that_lacks_a_field(
    field: str, log: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header = json.loads(log[0])
    del header[field]
    code, err = replayed([json.dumps(header), *log[1:]], tmp_path / "log.gz", capsys)
    assert code in (1, 2), err


def test_a_log_without_an_event_is_refused(
    log: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replayed(log[:1], tmp_path / "log.gz", capsys)
    assert main(["validate", "replay", str(tmp_path / "log.gz"), "--no-fresh"]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path / 'log.gz'} holds no event, only a header; "
        "make the run again with --log full\n"
    )

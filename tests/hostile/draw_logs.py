"""What earlier runs left, with damage: decision logs, run directories, jobs that were stopped,
sweeps that were stopped."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from pathlib import Path
from random import Random
from typing import Any

from drawing import damaged, damaged_bytes, dumps
from trying import Case, Ended, Place

RUNS = ("run/batchgen", "ran")


def _as_json(path: Path, rng: Random) -> None:
    value: Any = json.loads(path.read_text())
    path.write_bytes(dumps(damaged(value, rng)).encode("utf-8", "surrogatepass"))


def damage_log(path: Path, rng: Random) -> None:
    """Of the bytes, the lines or the values in them."""
    data = path.read_bytes()
    which = rng.random()
    if which < 0.3:
        path.write_bytes(damaged_bytes(data, rng))
        return
    lines = gzip.decompress(data).splitlines(keepends=True)
    at = rng.randrange(len(lines))
    if which < 0.4:
        lines = lines[: rng.randrange(len(lines))]  # stops early, at the end of a line
    elif which < 0.5:
        del lines[at]
    elif which < 0.56:
        lines.insert(at, lines[rng.randrange(len(lines))])
    elif which < 0.62:
        rng.shuffle(lines)
    elif which < 0.7:
        lines[at] = damaged_bytes(lines[at], rng)
    elif which < 0.85:
        value = json.loads(lines[at])
        lines[at] = dumps(damaged(value, rng)).encode("utf-8", "surrogatepass") + b"\n"
    else:  # with digests that fit: a log that somebody wrote
        value = json.loads(lines[at])
        lines[at] = dumps(damaged(value, rng)).encode("utf-8", "surrogatepass") + b"\n"
        lines = _signed(lines)
        (path.parent / "signed").touch()
    path.write_bytes(gzip.compress(b"".join(lines)))


def _signed(lines: list[bytes]) -> list[bytes]:
    """With digests of what the lines hold now, as far as they are JSON of entries."""
    checksum = zlib.crc32(lines[0].rstrip(b"\n"))
    found = [lines[0]]
    for line in lines[1:]:
        body, _, _ = line.rstrip(b"\n").rpartition(b',"digest":')
        body += b',"digest":""}'
        # As batchgen.log writes an entry without its digest.
        checksum = zlib.crc32(body.replace(b',"digest":""', b""), checksum)
        found.append(body[:-3] + f'"{checksum:08x}"'.encode() + b"}\n")
    return found


def draw(rng: Random, place: Place) -> Case:
    """A command that reads what was left."""
    at = place.folder
    run = at / rng.choice(RUNS)
    which = rng.random()
    if which < 0.45:
        damage_log(run / "decisions.jsonl.gz", rng)
        argv = ("validate", "replay", str(run.relative_to(at)), "--no-fresh")
        return Case(argv=(*argv, *rng.choice(((), ("--json",)))), task={"env": {"LOG": "damaged"}})
    if which < 0.7:
        name = rng.choice(("run.json", "run.json", "rows.parquet", "steps.parquet", "summary.json"))
        path = run / name
        if name == "run.json" and rng.random() < 0.7:
            _as_json(path, rng)
        elif rng.random() < 0.1:
            path.unlink()
        else:
            path.write_bytes(damaged_bytes(path.read_bytes(), rng))
        where = str(run.relative_to(at))
        return Case(
            argv=rng.choice(
                (
                    ("report", where),
                    ("report", where, "--json"),
                    ("report", where, "--plots", "o.jsonl"),
                    ("report", where, "--timeline", "o.json"),
                    ("validate", "replay", where, "--no-fresh"),
                )
            ),
            outputs=("o.jsonl", "o.json"),
        )
    if which < 0.9:
        return _job(rng, place)
    return _sweep(rng, place)


def _job(rng: Random, place: Place) -> Case:
    """A job that was stopped, its folder damaged."""
    at = place.folder
    run = ("exec", "--model", "m", "-i", "in.jsonl", "-o", "o.jsonl", "--threads", "1")
    rows = ['{"prompt": "a", "max_tokens": 2}', "{}", "{}", '{"prompt": "b", "max_tokens": 2}']
    (at / "in.jsonl").write_text("\n".join(rows) + "\n")
    ended = place.run(*run, "--max-errors", "0")
    assert ended.code == 3, ended
    folder = at / "o.jsonl.job"
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    for _ in range(rng.choice((1, 1, 2))):
        path = folder / rng.choice(names)
        what = rng.random()
        if what < 0.1:
            path.unlink(missing_ok=True)
        elif what < 0.15:
            path.unlink(missing_ok=True)
            os.mkfifo(path)
        elif path.suffix == ".json" and what < 0.6 and path.is_file():
            try:
                _as_json(path, rng)
            except ValueError:
                path.write_bytes(b"")
        elif path.is_file():
            path.write_bytes(damaged_bytes(path.read_bytes(), rng))
    if rng.random() < 0.2:
        (at / "in.jsonl").write_bytes(damaged_bytes((at / "in.jsonl").read_bytes(), rng))
    return Case(
        argv=rng.choice(
            (
                (*run, "--resume", "always"),
                (*run, "--resume", "if-possible"),
                (*run, "--force"),
                ("job", "status", "o.jsonl"),
                ("job", "status", "o.jsonl.job", "--json"),
                ("job", "results", "o.jsonl"),
            )
        ),
        outputs=("o.jsonl",),
        task={"env": {"JOB": "damaged"}},
    )


def _sweep(rng: Random, place: Place) -> Case:
    """A sweep that is done, its folder damaged."""
    at = place.folder
    text = (
        (at / "s.yaml").read_text().replace("[2, 4]", "[2]").replace("[vllm, batchgen]", "[vllm]")
    )
    (at / "s.yaml").write_text(text)
    argv = ("sweep", "s.yaml", "--out", "swept", "--workers", "1")
    ended = place.run(*argv)
    assert ended.code == 0, ended
    names = ["runs.jsonl", "runs.jsonl", "runs.parquet", "table.md", "devices"]
    path = at / "swept" / rng.choice(names)
    if path.is_dir():
        path = next(path.iterdir())
    if path.name == "runs.jsonl" and rng.random() < 0.5:
        lines = path.read_text().splitlines()
        one = rng.randrange(len(lines))
        lines[one] = dumps(damaged(json.loads(lines[one]), rng))
        path.write_bytes(("\n".join(lines) + "\n").encode("utf-8", "surrogatepass"))
    else:
        path.write_bytes(damaged_bytes(path.read_bytes(), rng))
    return Case(argv=argv, outputs=("swept",), task={"env": {"JOB": "damaged"}})


def more(case: Case, ended: Ended, place: Place) -> list[str]:
    """A log that was changed is not called equal."""
    if case.argv[:2] != ("validate", "replay") or ended.code:
        return []
    path = place.folder / case.argv[2] / "decisions.jsonl.gz"
    if (path.parent / "signed").exists():
        return []  # what somebody wrote with digests that fit may be the log of another run
    was = place.folder.parent / "made" / case.argv[2] / "decisions.jsonl.gz"
    if path.read_bytes() == was.read_bytes():
        return []
    try:
        same = gzip.decompress(path.read_bytes()) == gzip.decompress(was.read_bytes())
    except (OSError, EOFError, zlib.error):
        return ["a damaged log is called equal"]
    return [] if same else ["a log that was changed is called equal"]

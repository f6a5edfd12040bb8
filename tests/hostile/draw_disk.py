"""Disks that are full at any byte: every command that writes, where files may have a size only."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from random import Random

from drawing import lines
from trying import Case, Ended, Place

OUT = ("o.jsonl", "o.json", "o.png")
COMMANDS = lines(
    r"""
trace generate -n 3000 --part '1 / constant:9 / constant:3' -o o.jsonl
trace generate -n 9000 --part '1 / constant:9 / constant:3' -o o.jsonl.gz
trace import t.jsonl -o o.jsonl
trace plot t.jsonl -o o.png
trace stats t.jsonl --json
trace devices generate --gpus 64 -o o.jsonl
trace devices import d.jsonl -o o.jsonl
trace devices plot d.jsonl -o o.png
trace devices rates --json
sim --trace t.jsonl SIM --json
sim --trace t.jsonl SIM --out o.jsonl --log full
sim --trace t.jsonl SIM --compare vllm,orca --out o.jsonl
sim --trace t.jsonl SIM --out run --force
sweep s.yaml --out o.jsonl --workers 1
sweep s.yaml --out o.jsonl --workers 2 --json
plan --trace t.jsonl LLAMA --workers 1 --json
exec --model m -i in.jsonl -o o.jsonl --threads 1
exec --model m -i in.jsonl -o old.jsonl --force --threads 1
exec --model m -i in.jsonl -o - --threads 1
exec --model m -i - -o o.jsonl --threads 1
exec --model m -i in.jsonl -o o.jsonl --threads 1 --json
exec --model m -i in.jsonl -o o.jsonl --out o.json --log full
exec --model m -i in.jsonl -o o.jsonl --manifest o.json --error-file o.png
exec --model m -i in.jsonl -o o.parquet --threads 1
exec --model m -i in.jsonl --dry-run --json
model init o.jsonl
model list --json
model hardware
model show deepseek-r1 --json
report run --json
report run --plots o.jsonl
report run/batchgen --timeline o.json
report run/batchgen --timeline o.json.gz
validate replay run/batchgen --no-fresh --json
validate input in.jsonl --json
validate agreement --model m -i in.jsonl --policies vllm --json
policy list --json
policy list
job results ran.jsonl
bench bound --model llama-3.1-8b --seats 4 --tflops 1 --gb-per-s 9 --prompt-tokens 5 \
  --output-tokens 5 --out o.json
bench published --only flexgen --commands o.jsonl
bench costs --json
bench costs --out o.json
"""
)
SIZES = (0, 0, 1, 10, 100, 300, 511, 512, 1000, 3000, 4096, 5000, 8192, 16_384, 20_000, 33_000)
SIZES += (40_000, 66_000, 100_000, 200_000)


def draw(rng: Random, place: Place) -> Case:
    """A command and how many bytes its files may have; or standard output that is full."""
    argv = rng.choice(COMMANDS)
    (place.folder / "ran.jsonl").write_text(
        '{"id": "x", "custom_id": "a", "response": {}, "error": null}\n' * 50
    )
    task: dict[str, object] = {}
    if rng.random() < 0.15:
        task["out"] = "/dev/full"
    else:
        task["fsize"] = rng.choice(SIZES) + rng.randrange(3)
    if "-" in argv:
        task["stdin"] = str(place.folder / "in.jsonl")
    outputs = (*OUT, "o.jsonl.gz", "o.json.gz", "o.parquet", "old.jsonl", "run")
    return Case(argv=argv, outputs=outputs, is_partial=True, task=task)


def more(case: Case, ended: Ended, place: Place) -> list[str]:
    """Whatever is there is whole."""
    found = []
    for name in case.outputs:
        path = place.folder / name
        files = path.rglob("*") if path.is_dir() else [path]
        halves = [one.name for one in files if one.is_file() and not is_whole(one)]
        found += [f"half of {name}: {one}" for one in halves]
    return found


def is_whole(path: Path) -> bool:
    """Whether a file of one of the kinds that commands write is complete; True of other kinds."""
    data = path.read_bytes()
    try:
        if path.suffix == ".gz":
            return bool(gzip.decompress(data))
        if path.suffix == ".png" and data.startswith(b"\x89PNG"):
            return data.endswith(b"IEND\xaeB`\x82")
        if path.suffix == ".parquet":
            return data.startswith(b"PAR1") and data.endswith(b"PAR1")
        if path.suffix == ".json":
            json.loads(data)
        elif path.name == "old.jsonl" and data == b"old\n":
            return True
        elif path.suffix == ".jsonl":
            lines = data.splitlines(keepends=True)
            return path.name == "runs.jsonl" or all(
                line.endswith(b"\n") and json.loads(line) for line in lines
            )
    except (ValueError, OSError, EOFError):
        # A job or a sweep goes on behind the last whole line of its books.
        return path.name in ("runs.jsonl", "status.json")
    return True

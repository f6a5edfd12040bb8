"""Signals at any moment of any command: it ends in good order, and leaves nothing but what it says.

One signal ends a command with exit code 3, unless it was done already; a second one may kill it.
"""

from __future__ import annotations

import json
from random import Random

from drawing import lines
from trying import Case, Ended, Place

COMMANDS = lines(
    r"""
sim --trace t.jsonl SIM
sim --trace t.jsonl SIM --out o.jsonl --log full
sim --trace t.jsonl LLAMA --compare vllm,batchgen --out o.jsonl
sim --trace t.jsonl SIM --out run --force
sweep s.yaml --out o.jsonl --workers 1
sweep s.yaml --out o.jsonl --workers 2
plan --trace t.jsonl LLAMA --workers 1
plan --trace t.jsonl LLAMA --workers 2
exec --model m -i in.jsonl -o o.jsonl --threads 1
exec --model m -i in.jsonl -o old.jsonl --force --threads 1
exec --model m -i in.jsonl -o - --threads 1
exec --model m -i in.jsonl -o o.jsonl --out o.dir --log full --threads 1
exec --model m -i in.jsonl --dry-run
trace generate -n 20000 --part '1 / lognormal:mean=90,sigma=1 / constant:3' -o o.jsonl.gz
trace import t.jsonl -o o.jsonl
trace plot t.jsonl -o o.png
trace devices generate --gpus 64 -o o.jsonl
model init o.dir
model init m --force
report run --plots o.dir
report run/batchgen --timeline o.json
profile -o o.json --quick --model m
validate replay run/batchgen
validate replay ran --no-fresh
validate agreement --model m -i in.jsonl --policies vllm
policy check order.arrival --cases 3
bench costs --out o.json
serve --model m --state o.dir --port 0 --threads 1
"""
)


def draw(rng: Random, place: Place) -> Case:
    """A command, and one or two signals."""
    rows = [{"prompt": "a" * n, "max_tokens": 30, "ignore_eos": True} for n in range(1, 20)]
    (place.folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = rng.choice(COMMANDS)
    after = rng.choice((0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0, 3.0)) * rng.random()
    kill = [[after, rng.choice(("SIGINT", "SIGTERM", "SIGHUP"))]]
    if rng.random() < 0.15:
        kill.append([after + rng.choice((0.001, 0.05, 0.3)), rng.choice(("SIGINT", "SIGTERM"))])
    if argv[0] == "serve":
        kill = [[1.0 + after, "SIGTERM"]]
    # What was there before is as it was or replaced, and the books of a job that can go on stay.
    outputs = ("o.jsonl", "o.jsonl.gz", "o.json", "o.png", "o.dir", "old.jsonl", "run", "m")
    return Case(argv=argv, outputs=outputs, is_partial=True, task={"kill": kill})


def more(case: Case, ended: Ended, place: Place) -> list[str]:
    """Whatever is there is whole."""
    from draw_disk import is_whole

    found = []
    for name in case.outputs:
        path = place.folder / name
        files = path.rglob("*") if path.is_dir() else [path]
        halves = [one.name for one in files if one.is_file() and not is_whole(one)]
        found += [f"half of {name}: {one}" for one in halves]
    if not (place.folder / "m" / "config.json").is_file():
        found.append("took away the model")
    return found

"""The folder of hostile cases: a small model, traces, rows, a sweep, a cluster, a profile, logs of
runs. Made once by the commands themselves, then copied."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drawing import SIM
from trying import Forks, Place, state_of

SWEEP = """\
name: small
trace: t.jsonl
model: llama-3.1-8b
gpu: h100
gpus: [2, 4]
policies: [vllm, batchgen]
layouts: [tp1]
options:
  plain: {}
  deep: {plan.depth: 2}
devices:
  healthy: null
  slow: [{at_s: 0.01, kind: slow, gpu: a, factor: 2, for_s: 0.1}]
seeds: 1
"""


def make(one: Forks, folder: Path) -> None:
    """Put all files there."""
    folder.mkdir()
    rows = [{"prompt_tokens": 30 * n + 1, "output_tokens": 9 * n + 1} for n in range(12)]
    rows[3]["arrival_s"] = 0.5  # type: ignore[assignment]
    rows[5]["max_output_tokens"] = 90
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chat = [{"role": "user", "content": "hello"}]
    prompts = [
        {"custom_id": "a", "prompt": "hello", "max_tokens": 3},
        {"custom_id": "b", "messages": chat, "max_tokens": 2, "temperature": 0.5, "seed": 3},
    ]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    trouble = [
        {"at_s": 0.001, "kind": "slow", "gpu": 0, "factor": 2},
        {"at_s": 0.05, "kind": "lost", "gpu": 1, "for_s": 0.1},
    ]
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in trouble))
    (folder / "s.yaml").write_text(SWEEP)
    clusters = Path(__file__).parents[2] / "batchgen" / "catalog" / "clusters"
    (folder / "c.yaml").write_text((clusters / "h20-ib.yaml").read_text())
    (folder / "keep").mkdir()
    (folder / "keep" / "thesis.txt").write_text("years of work\n")
    (folder / "old.jsonl").write_text("old\n")

    def done(*argv: str) -> None:
        ended = one.run(argv, folder)
        assert ended.code == 0, ended

    done("model", "init", "m")
    done("sim", "--trace", "t.jsonl", *SIM, "--out", "run", "--log", "full")
    done(
        "exec",
        "--model",
        "m",
        "-i",
        "in.jsonl",
        "-o",
        "a.jsonl",
        "--threads",
        "1",
        "--out",
        "ran",
        "--log",
        "full",
    )
    (folder / "a.jsonl").unlink()
    shutil.rmtree(folder / "run" / "vllm", ignore_errors=True)


class Reset:
    """A place that is as it was made whenever `fresh` is asked for."""

    def __init__(self, one: Forks, folder: Path) -> None:
        self.forks, self.folder = one, folder
        make(one, folder / "made")
        self._was = state_of(folder / "made")
        self._number = 0
        self.place: Place | None = None

    def fresh(self) -> Place:
        at = self.folder / "here"
        if self.place is None or {k: v for k, v in state_of(at).items() if k != "tmp"} != self._was:
            shutil.rmtree(at, ignore_errors=True)
            shutil.copytree(self.folder / "made", at)
            self.place = Place(self.forks, at)
        return self.place


@contextmanager
def made(folder: Path) -> Iterator[Reset]:
    """Processes and a place of their own."""
    one = Forks(folder)
    try:
        yield Reset(one, folder)
    finally:
        one.close()

"""Files whose rows, lines or fields are damaged, with a command that reads them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

from drawing import OUT, RUN, SIM, TRACE, damaged, dumps
from trying import Case, Place

STAGE = {"prompt_tokens": 3, "output_tokens": 2, "wait_s": 0.1}
TRACE_ROW: dict[str, Any] = {
    "prompt_tokens": 9,
    "output_tokens": 3,
    "max_output_tokens": 5,
    "arrival_s": 0.1,
    "group": 1,
    "prefix": [1, 2],
    "stages": [STAGE],
}
TRACE_HEAD: dict[str, Any] = {
    "batchgen_trace": 1,
    "name": "x",
    "prefix_block_tokens": 16,
    "expert_skew": 0.0,
}
REQUEST: dict[str, Any] = {
    "custom_id": "a",
    "prompt": "hello",
    "max_tokens": 3,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "seed": 3,
    "n": 1,
    "logprobs": 2,
    "stop": ["x"],
    "logit_bias": {"5": 1},
    "presence_penalty": 0.5,
    "repetition_penalty": 1.1,
    "min_tokens": 1,
    "min_p": 0.1,
}
MORE_OF_REQUESTS = (
    *("messages", "stream", "response_format", "tools", "ignore_eos", "stop_token_ids"),
)
SWEEP: dict[str, Any] = {
    "trace": "t.jsonl",
    "model": "llama-3.1-8b",
    "gpu": "h100",
    "gpus": [2],
    "policies": ["vllm"],
    "layouts": ["tp1"],
    "seeds": 1,
    "rows": 5,
    "options": {"a": {"plan.depth": 2}},
    "devices": {"slow": [{"at_s": 0.01, "kind": "slow", "gpu": "a", "factor": 2, "for_s": 0.1}]},
}
MORE_OF_SWEEPS = (
    *("limit", "arrivals", "max_output_tokens", "oracle", "costs", "cluster", "gpus_per_node"),
    *("name", "profile", "body"),
)
CLUSTER: dict[str, Any] = {
    "name": "mine",
    "source": "s",
    "gpu": "h20",
    "gpus_per_node": 8,
    "constants": {
        "network": {"value": 0.4, "range": [0.05, 1.0], "meaning": "m", "source": "s"},
    },
}


def put(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


def bad(value: dict[str, Any], rng: Random, known: Sequence[str] = ()) -> str:
    """A damaged copy, as JSON."""
    return dumps(damaged(deepcopy(value), rng, known))


def trace(rng: Random, at: Path) -> Case:
    row = dict(TRACE_ROW)
    for name in ("prefix", "stages"):
        if rng.random() < 0.5:
            del row[name]
    lines = [bad(row, rng)]
    if rng.random() < 0.4:
        lines.insert(0, bad(TRACE_HEAD, rng))
    put(at / "t.jsonl", "\n".join(lines) + "\n")
    readers = (
        (*TRACE, *SIM, "--arrivals", rng.choice(("batch", "trace"))),
        ("trace", "stats", "t.jsonl"),
        ("trace", "import", "t.jsonl", "-o", "o.jsonl", "--skip-bad"),
        ("plan", "--trace", "t.jsonl", *SIM[:6], "--workers", "1"),
    )
    return Case(argv=rng.choice(readers), outputs=OUT)


def devices(rng: Random, at: Path) -> Case:
    kind = rng.choice(("slow", "lost", "notice", "skew", "host"))
    row = {"at_s": 0.01, "kind": kind, "gpu": 0, "factor": 2, "for_s": 0.1, "deadline_s": 0.2}
    put(at / "d.jsonl", bad(row, rng) + "\n")
    readers = (
        (*TRACE, *SIM, "--devices", "d.jsonl"),
        ("trace", "devices", "stats", "d.jsonl"),
        ("trace", "devices", "import", "d.jsonl", "-o", "o.jsonl"),
    )
    return Case(argv=rng.choice(readers), outputs=OUT)


def requests(rng: Random, at: Path) -> Case:
    row = dict(REQUEST)
    for name in rng.sample(sorted(row), 7):
        if name != "prompt":
            del row[name]
    good = '{"prompt": "b", "max_tokens": 2}'
    put(at / "in.jsonl", f"{bad(row, rng, MORE_OF_REQUESTS)}\n{good}\n")
    readers = (RUN, ("validate", "input", "in.jsonl"), (*RUN[:5], "--dry-run"))
    return Case(argv=rng.choice(readers), outputs=OUT)


def sweep(rng: Random, at: Path) -> Case:
    put(at / "s.yaml", bad(SWEEP, rng, MORE_OF_SWEEPS))
    return Case(argv=("sweep", "s.yaml", "--out", "o.jsonl", "--workers", "1"), outputs=OUT)


def cluster(rng: Random, at: Path) -> Case:
    put(at / "c.yaml", bad(CLUSTER, rng))
    machine = ("--gpus", "8", "--cluster", "c.yaml", "--layout", "tp1")
    return Case(argv=(*TRACE, "--model", "llama-3.1-8b", *machine))


KINDS = (trace, devices, requests, sweep, cluster)


def in_files(rng: Random, place: Place) -> Case:
    """A row, a line or a field of a file."""
    return KINDS[rng.randrange(len(KINDS))](rng, place.folder)

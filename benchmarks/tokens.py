"""Time how fast the rows of a job become tokens, beside what the tokenizer alone does on one core.

    python benchmarks/tokens.py [--rows N] [--only KIND] [--output PATH]

Prints one JSON object. The tokenizer is a byte-level BPE of 8,000 merges trained on the project's
own docs; rows are prompts of 200 bytes with all that is around them, and chats of 200 and of 2,000.
For each kind, in turns: the tokenizer alone, in one thread, over the texts that the job encodes (of
chats what the template makes of them), one by one (`alone`); and a job's reading of the file
(`read`: JSON, checks, the chat template in its processes, tokens, columns, and the start of the
processes that do it). `share` is the second rate over the first times the cores: 1 would be a
reading that takes no time beside the tokenizer. Other programs stretch all times: `load_average`
says how busy the machine was, and `cpu_share` is the same by the time of processors (user and
system, of all processes; `cpu_us_per_row`), which is what `share` is where nobody else wants them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import tokenizers

from batchgen.cores import num_cores

TARGET = 0.7
KINDS = {"prompt-200": 200, "chat-200": 200, "chat-2000": 2000}
"""Bytes of a row."""
TURNS = 3
DOCS = Path(__file__).resolve().parents[1] / "docs"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--rows", type=int, default=100_000, help="of 200 bytes; fewer longer ones")
    parser.add_argument("--output", type=Path, help="write the JSON here as well")
    parser.add_argument("--only", action="append", choices=list(KINDS), help="of these kinds")
    options = parser.parse_args()
    if options.rows < 1000:
        parser.error("rows must be at least 1000")
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder) / "model")
        found = {
            kind: measure(model, Path(folder), kind, options.rows * 200 // KINDS[kind])
            for kind in options.only or KINDS
        }
    result = {
        "benchmark": "tokens",
        "machine": machine.describe(),
        "commit": machine.commit(),
        "load_average": [before, os.getloadavg()[0]],
        "cores": num_cores(),
        "target_share": TARGET,
        "rows": found,
    }
    machine.publish(result, options.output)
    return 0


def make_model(folder: Path) -> Path:
    """A checkpoint whose tokenizer has learned from the docs. No weights are used."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from batchgen.exec.init import init_model

    init_model(folder)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    bpe.train([str(path) for path in sorted(DOCS.glob("*.md"))], trainer)
    bpe.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text())
    config["vocab_size"] = bpe.get_vocab_size()
    (folder / "config.json").write_text(json.dumps(config))
    shutil.rmtree(folder / "weights", ignore_errors=True)
    return folder


def rows_of(kind: str, rows: int) -> Iterator[tuple[dict[str, Any], str]]:
    """Rows of a kind, and what is said in them."""
    text = " ".join(path.read_text() for path in sorted(DOCS.glob("*.md")))
    size = KINDS[kind]
    for number in range(rows):
        custom_id = f"request-{number:09d}"
        begin = number * 997 % (len(text) - size)
        if kind.startswith("prompt"):
            row: dict[str, Any] = {"custom_id": custom_id, "prompt": "", "max_tokens": 64}
            row["prompt"] = content = text[begin : begin + size - len(json.dumps(row)) - 1]
        else:
            body: dict[str, Any] = {"model": "m", "messages": [], "max_tokens": 64}
            row = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions"}
            row["body"] = body
            content = text[begin : begin + max(8, size - len(json.dumps(row)) - 31)]
            body["messages"] = [{"role": "user", "content": content}]
        yield row, content


def measure(model: Path, folder: Path, kind: str, rows: int) -> dict[str, Any]:
    """Rates in tokens/s."""
    from batchgen.exec.tokenizer import Tokenizer

    path = folder / f"{kind}.jsonl"
    tokenizer = Tokenizer(model)
    texts = []
    with path.open("w", encoding="utf-8") as file:
        for row, content in rows_of(kind, rows):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            texts.append(content)
    if kind.startswith("chat"):  # what the template makes of them
        chats = [[{"role": "user", "content": content}] for content in texts]
        texts = [tokenizer.written(ids) for ids in tokenizer.encode_conversations(chats)]
    library = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    alone: list[Spent] = []
    read: list[Spent] = []
    for turn in range(TURNS + 1):
        once, again = time_alone(library, texts), time_read(tokenizer, path)
        if turn:  # the first is for what is new
            alone.append(once)
            read.append(again)
    tokens = read[0].tokens
    rates = {
        name: statistics.median(one.tokens / one.wall_s for one in turns)
        for name, turns in (("alone", alone), ("read", read))
    }
    cpu_rates = {
        name: statistics.median(one.tokens / one.cpu_s for one in turns)
        for name, turns in (("alone", alone), ("read", read))
    }
    return {
        "rows": rows,
        "tokens": tokens,
        "tokens_per_s": rates,
        "rows_per_s": rates["read"] * rows / tokens,
        "share": rates["read"] / rates["alone"] / num_cores(),
        "tokens_per_cpu_s": cpu_rates,
        "cpu_us_per_row": tokens / rows / cpu_rates["read"] * 1e6,
        "cpu_share": cpu_rates["read"] / cpu_rates["alone"],
    }


@dataclass(frozen=True)
class Spent:
    """What some tokens took: seconds, and seconds of processors of this process and its own."""

    tokens: int
    wall_s: float
    cpu_s: float


def now() -> tuple[float, float]:
    """Seconds, and seconds of processors; those of other processes count when they have ended."""
    spent = [resource.getrusage(of) for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.perf_counter(), sum(one.ru_utime + one.ru_stime for one in spent)


def time_alone(tokenizer: tokenizers.Tokenizer, texts: list[str]) -> Spent:
    """One thread over plain texts, one after the other."""
    wall_s, cpu_s = now()
    tokens = sum(len(tokenizer.encode(text).ids) for text in texts)
    return _spent(tokens, wall_s, cpu_s)


def _spent(tokens: int, wall_s: float, cpu_s: float) -> Spent:
    again = now()
    return Spent(tokens=tokens, wall_s=again[0] - wall_s, cpu_s=again[1] - cpu_s)


def time_read(tokenizer: Any, path: Path) -> Spent:
    """Until a job has all its rows in columns."""
    from batchgen.exec.job import ExecJob
    from batchgen.exec.past import Past
    from batchgen.exec.prepare import read_all
    from batchgen.job.jsonl import InputDigest
    from batchgen.job.rows import RowLimits

    job = ExecJob(model=path.parent / "model", input=path, output=path.with_suffix(".out"))
    limits = RowLimits(max_context=1 << 20)
    wall_s, cpu_s = now()
    read = read_all(job, tokenizer, limits, InputDigest(), Past(), lambda row: None)
    return _spent(int(read.jobs.prompt_tokens().sum()), wall_s, cpu_s)


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    sys.exit(main())

"""The shipped small model: it fits its limits, loads, stops by itself and adds correctly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "models" / "sums-moe"
PROMPTS = ROOT / "examples" / "prompts" / "reasoning-200.jsonl"
NUM_SHORT = 20


def test_folder_is_small_and_says_what_it_is() -> None:
    from batchgen.exec.config import load_config
    from batchgen.exec.tokenizer import Tokenizer

    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 8_000_000
    config = load_config(FOLDER)
    assert config.family == "qwen3-moe"
    assert config.max_context == 2048
    tokenizer = Tokenizer(FOLDER)
    assert tokenizer.has_chat_template
    text = "any text: \u00e9\u4e2d\U0001f600\x00"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert "Apache-2.0" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_training_tokens_are_those_of_the_chat_template(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from batchgen.exec.tokenizer import Tokenizer
    from training.batches import encode
    from training.task import Problem, chat_text

    tokenizer = Tokenizer(FOLDER)
    problem = Problem(terms=(48, 21, 97))
    ids, prompt_tokens = encode(problem)
    messages = [{"role": "user", "content": problem.question}]
    assert ids[:prompt_tokens] == tokenizer.encode_messages(messages)
    assert ids[:prompt_tokens] == tokenizer.encode(chat_text(problem.question))
    assert tokenizer.decode(ids[prompt_tokens:]) == problem.answer
    assert ids[-1] in tokenizer.eos_token_ids


def test_short_problems_are_answered_right_through_the_executor(tmp_path: Path) -> None:
    import torch

    from batchgen.cli import main

    rows = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    short = [row for row in rows if row["num_terms"] <= 5][:NUM_SHORT]
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in short), encoding="utf-8")
    before = torch.get_num_threads()
    command = ["exec", "--model", str(FOLDER), "-i", str(prompts), "-o", str(answers)]
    try:
        code = main([*command, "--threads", "1", "--progress", "off"])
    finally:
        torch.set_num_threads(before)
    assert code == 0
    outputs = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    choices = [output["response"]["body"]["choices"][0] for output in outputs]
    assert {choice["finish_reason"] for choice in choices} == {"stop"}
    finals = [choice["message"]["content"].rsplit("\n=", 1)[-1] for choice in choices]
    right = [int(f) == int(row["expected"]) for f, row in zip(finals, short, strict=True)]
    assert sum(right) >= NUM_SHORT - 1


def test_experts_are_used_unevenly_and_none_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    import itertools

    import torch

    from training.evaluate import count_right
    from training.export import published, restore
    from training.model import CONFIG
    from training.task import problems

    model = restore(FOLDER)
    loads = torch.zeros(CONFIG["num_hidden_layers"], CONFIG["num_experts"], dtype=torch.int64)
    drawn = list(itertools.islice(problems(11, held_out=True), 60))
    assert count_right(model, drawn, loads) >= 54
    share = loads / loads.sum(-1, keepdim=True)
    even = 1 / CONFIG["num_experts"]
    assert (share.max(-1).values > 1.25 * even).all()
    assert share.max() > 2 * even
    assert (loads > 0).float().mean() > 0.75
    from safetensors.torch import load_file

    stored = load_file(FOLDER / "model.safetensors")
    again = published(model)
    assert stored.keys() == again.keys()
    assert all(torch.equal(stored[name], again[name]) for name in stored)

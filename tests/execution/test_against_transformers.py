"""Oracle: our ragged paged passes against Hugging Face transformers, teacher forced, float32."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from batchgen.exec.arena import KvArena
from batchgen.exec.batch import Segment, build_batch
from batchgen.exec.config import load_config
from batchgen.exec.init import init_model
from batchgen.exec.transformer import Transformer
from batchgen.exec.weights import Checkpoint
from batchgen.exec.worker import Worker

LENGTHS = (1, 7, 8, 9, 40, 61)
PAGE_TOKENS = 8

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CASES: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "llama": ("llama", False, {}),
    "llama-tied": ("llama", True, {}),
    "llama-3.1-rope": ("llama", False, {"rope_scaling": LLAMA3}),
    "llama-5-rope": ("llama", True, {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}}),
    "llama-linear-rope": ("llama", False, {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "qwen3": ("qwen3", False, {}),
    "qwen3-tied": ("qwen3", True, {"rope_theta": 1e6}),
    "qwen3-moe": ("qwen3-moe", False, {}),
    "qwen3-moe-plain-topk": ("qwen3-moe", True, {"norm_topk_prob": False}),
}


def our_logits(
    directory: Path, rows: Sequence[list[int]], num_prompts: Sequence[int], chunk: int
) -> list[torch.Tensor]:
    """Logits of every position: prompts in chunks of different rows together, then decode."""
    config = load_config(directory)
    model = Transformer(config, Checkpoint(directory, config), torch.float32)
    arena = KvArena(
        "hbm",
        64,
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        page_tokens=PAGE_TOKENS,
        head_dim=config.head_dim,
        dtype=torch.float32,
    )
    done = [0] * len(rows)
    logits: list[list[torch.Tensor]] = [[] for _ in rows]
    while any(n < len(row) for n, row in zip(done, rows, strict=True)):
        decodes, chunks = [], []
        for slot, row in enumerate(rows):
            left = num_prompts[slot] - done[slot]
            if left > 0:
                chunks.append(Segment(slot=slot, start=done[slot], length=min(chunk + slot, left)))
            elif done[slot] < len(row):
                decodes.append(Segment(slot=slot, start=done[slot], length=1))
        segments = [*decodes, *chunks]
        for s in segments:
            arena.reserve(s.slot, s.start + s.length)
        flat = [t for s in segments for t in rows[s.slot][s.start : s.start + s.length]]
        batch = build_batch(arena, np.array(flat, dtype=np.int64), decodes, chunks)
        out = model.forward(arena, batch, torch.arange(len(flat)))
        for s, part in zip(segments, out.split([s.length for s in segments]), strict=True):
            logits[s.slot].append(part)
            done[s.slot] += s.length
    return [torch.cat(parts) for parts in logits]


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_oracle(case: str, tmp_path: Path) -> None:
    arch, tied, changes = CASES[case]
    directory = init_model(tmp_path / "m", arch, "tiny", seed=3, tie_word_embeddings=tied)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    generator = np.random.default_rng(0)
    rows = [generator.integers(0, 256, n).tolist() for n in LENGTHS]
    num_prompts = [1, 3, 8, 9, 25, 30]
    ours = our_logits(directory, rows, num_prompts, chunk=5)
    oracle = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    for row, logits in zip(rows, ours, strict=True):
        with torch.inference_mode():
            expected = oracle(torch.tensor([row])).logits[0]
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_chunking_and_batching_change_no_logit_by_much(tmp_path: Path) -> None:
    directory = init_model(tmp_path / "m", "qwen3-moe", "tiny", seed=5)
    generator = np.random.default_rng(1)
    rows = [generator.integers(0, 256, n).tolist() for n in (50, 17)]
    whole = our_logits(directory, rows, [50, 17], chunk=64)
    pieces = our_logits(directory, rows, [50, 1], chunk=3)
    for a, b in zip(whole, pieces, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_the_transformers_5_layout_of_experts_is_read_too(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    directory = init_model(tmp_path / "m", "qwen3-moe", "tiny", seed=5)
    rows = [[1, 2, 3, 4]]
    before = our_logits(directory, rows, [4], chunk=8)[0]
    tensors = load_file(directory / "model.safetensors")
    for layer in range(2):
        prefix = f"model.layers.{layer}.mlp.experts."
        parts = {
            name: [tensors.pop(f"{prefix}{e}.{name}_proj.weight") for e in range(8)]
            for name in ("gate", "up", "down")
        }
        gate_up = [torch.cat(pair) for pair in zip(parts["gate"], parts["up"], strict=True)]
        tensors[prefix + "gate_up_proj"] = torch.stack(gate_up)
        tensors[prefix + "down_proj"] = torch.stack(parts["down"])
    save_file(tensors, directory / "model.safetensors")
    assert torch.equal(before, our_logits(directory, rows, [4], chunk=8)[0])


@pytest.mark.parametrize("arch", ["llama", "qwen3", "qwen3-moe"])
def test_greedy_tokens_equal_the_oracle_up_to_near_ties(arch: str, tmp_path: Path) -> None:
    """The worker's answers in a mixed batch; a parting needs a top-2 gap below 1e-3."""
    directory = init_model(tmp_path / "m", arch, "tiny", seed=2)
    generator = np.random.default_rng(3)
    prompts = [generator.integers(0, 256, n).tolist() for n in (1, 8, 23, 40)]
    worker = Worker(directory, page_tokens=PAGE_TOKENS, hbm_pages=64, host_pages=0)
    for row, ids in enumerate(prompts):
        worker.add_row(row, ids, max_output=24, stop_ids=frozenset())
    worker.run_pass([], [(0, 0, 1, True), (2, 0, 7, False)])
    worker.run_pass([0], [(1, 0, 8, True), (2, 7, 16, True), (3, 0, 40, True)])
    done: set[int] = set()
    while len(done) < len(prompts):
        running = [row for row in range(len(prompts)) if row not in done]
        done |= {row for row, _ in worker.run_pass(running, []).finished}
    oracle = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    for row, ids in enumerate(prompts):
        answer = worker.tokens(row)
        with torch.inference_mode():
            logits = oracle(torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1]
        top = logits.topk(2).values
        same = logits.argmax(-1) == torch.tensor(answer)
        assert bool((same | (top[:, 0] - top[:, 1] < 1e-3)).all())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_dtypes_run_near_the_float32_answer(dtype: str, tmp_path: Path) -> None:
    directory = init_model(tmp_path / "m", "qwen3-moe", "tiny", seed=2)
    answers = []
    for name in ("float32", dtype):
        worker = Worker(directory, page_tokens=8, hbm_pages=8, host_pages=0, dtype=name)
        for row in range(8):
            worker.add_row(row, [10 * row, 3], max_output=2, stop_ids=frozenset())
        worker.run_pass([], [(row, 0, 2, True) for row in range(8)])
        worker.run_pass(range(8), [])
        answers.append([worker.tokens(row)[0] for row in range(8)])
    assert sum(a == b for a, b in zip(*answers, strict=True)) >= 6

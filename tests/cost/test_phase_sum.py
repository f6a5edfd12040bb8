"""The phase-sum bound: passes of a list-scheduled batch, and times, each against a plain walk."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchgen.cli import main
from batchgen.cost.list_schedule import Passes, list_schedule
from batchgen.cost.phase_sum import PhaseSum
from batchgen.errors import UserError
from batchgen.model import load_model

FLOPS, BYTES = 7e14, 4e12


@dataclass
class Row:
    """One row of the plain walk, which looks at every row in every pass."""

    prompt: int
    output: int
    computed: int = 0
    produced: int = 0
    seated: bool = False


def walk(
    prompts: list[int], outputs: list[int], seats: int, budget: int
) -> list[tuple[int, int, int, int, int]]:
    """Each pass by asking each row."""
    rows = [Row(p, o) for p, o in zip(prompts, outputs, strict=True)]
    passes = []
    while any(row.produced < row.output for row in rows):
        for row in rows:
            taken = sum(one.seated for one in rows)
            if not row.seated and row.produced < row.output and taken < seats:
                row.seated = True
        decoding = [row for row in rows if row.seated and row.computed >= row.prompt]
        context = sum(row.computed + 1 for row in decoding)
        left = budget - len(decoding) if budget else 1 << 60
        tokens = pairs = lasts = 0
        for row in rows:
            size = min(row.prompt - row.computed, left) if row.seated else 0
            if row in decoding or size <= 0:
                continue
            pairs += (row.computed + size) ** 2 - row.computed**2
            row.computed += size
            left, tokens = left - size, tokens + size
            if row.computed == row.prompt:
                row.produced, lasts = 1, lasts + 1
                row.seated = row.output > 1
        for row in decoding:
            row.computed, row.produced = row.computed + 1, row.produced + 1
            row.seated = row.produced < row.output
        passes.append((len(decoding), context, tokens, pairs, len(decoding) + lasts))
    return passes


def seconds(name: str, load: tuple[int, int, int, int, int]) -> float:
    """A pass of a model of attention by groups in bfloat16, from its sizes alone."""
    m = load_model(name)
    decodes, context, chunks, pairs, samples = load
    tokens = decodes + chunks
    if not tokens:
        return 0.0
    attention = m.hidden * m.head_dim * (2 * m.num_heads + 2 * m.num_kv_heads)
    head = m.vocab * m.hidden
    used = 3 * m.hidden * (m.top_k * m.expert_ffn if m.is_moe else m.ffn)
    router = m.hidden * m.num_experts if m.is_moe else 0
    touched = m.num_experts * (1 - (1 - m.top_k / m.num_experts) ** tokens) if m.is_moe else 1
    held = 3 * m.hidden * (touched * m.expert_ffn if m.is_moe else m.ffn)
    weights = 2 * (m.num_layers * (attention + router + held) + head)
    flops = 2 * (tokens * m.num_layers * (attention + router + used) + samples * head)
    kv = 2 * 2 * m.num_layers * m.num_kv_heads * m.head_dim * context
    scores = 2 * m.num_layers * m.num_heads * m.head_dim * pairs  # causal: half of the square
    return max(weights / BYTES, flops / FLOPS) + kv / BYTES + scores / FLOPS


def bound(name: str) -> PhaseSum:
    return PhaseSum(model=load_model(name), matmul_flops_per_s=FLOPS, memory_bytes_per_s=BYTES)


def tuples(passes: Passes) -> list[tuple[int, ...]]:
    columns = (
        passes.decodes,
        passes.context,
        passes.chunk_tokens,
        passes.chunk_pairs,
        passes.samples,
    )
    return [tuple(one) for one in np.stack(columns, axis=1).tolist()]


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), min_size=1, max_size=12),
    st.integers(1, 5),
    st.sampled_from([0, 6, 7, 16, 50]),
)
def test_passes_are_those_of_a_plain_walk(
    rows: list[tuple[int, int]], seats: int, budget: int
) -> None:
    prompts, outputs = [p for p, _ in rows], [o for _, o in rows]
    passes = list_schedule(prompts, outputs, seats=seats, token_budget=budget)
    assert tuples(passes) == walk(prompts, outputs, seats, budget)
    assert passes.samples.sum() == sum(outputs)
    assert passes.chunk_tokens.sum() == sum(prompts)
    assert passes.chunk_pairs.sum() == sum(p**2 for p in prompts)


@pytest.mark.parametrize("name", ["qwen3-8b", "qwen3-30b-a3b"])
def test_times_follow_from_the_sizes_of_the_model(name: str) -> None:
    rng = np.random.default_rng(0)
    prompts, outputs = rng.integers(1, 900, 60).tolist(), rng.integers(1, 60, 60).tolist()
    loads = walk(prompts, outputs, 16, 1024)
    expected = [seconds(name, load) for load in loads]
    times = bound(name).phases_s(list_schedule(prompts, outputs, seats=16, token_budget=1024))
    # Norms are weights too, a millionth of them.
    assert times.total == pytest.approx(expected, rel=1e-4)
    for load, whole in zip(loads[:20], times.total.tolist(), strict=False):
        keys = ("decodes", "context_tokens", "chunk_tokens", "chunk_pairs", "samples")
        one = bound(name).pass_s(**dict(zip(keys, load, strict=True)))
        assert one == pytest.approx(whole, rel=1e-12)
    assert bound(name).pass_s(decodes=0, context_tokens=0) == 0.0


def test_a_long_batch_comes_to_the_steady_rate() -> None:
    """Rows whose ends are spread evenly, as the steady state has them."""
    seats, prompt, output = 300, 128, 300  # so many rows that products are bound by FLOPs
    prompts = [prompt] * 3000
    outputs = [1 + i for i in range(seats)] + [output] * (3000 - seats)
    passes = list_schedule(prompts, outputs, seats=seats)
    times = bound("qwen3-8b").phases_s(passes).total
    middle = slice(2 * output, len(passes) - 2 * output)
    rate = passes.samples[middle].sum() / times[middle].sum()
    alone = bound("qwen3-8b").steady_output_tokens_per_s(
        prompt_tokens=prompt, output_tokens=output, rows=seats
    )
    assert rate == pytest.approx(alone, rel=0.01)


@given(
    st.sampled_from(["qwen3-8b", "qwen3-30b-a3b"]),
    st.integers(1, 3000),
    st.integers(1, 60),
    st.integers(1, 40),
    st.integers(1, 120),
    st.sampled_from([0, 64, 300, 8192]),
)
def test_no_list_schedule_is_faster_than_the_steady_bound(
    name: str, prompt: int, output: int, seats: int, rows: int, budget: int
) -> None:
    """Few seats leave room for prompts behind the weights; there the bound was exceeded once."""
    passes = list_schedule([prompt] * rows, [output] * rows, seats=seats, token_budget=budget)
    rate = rows * output / bound(name).phases_s(passes).total.sum()
    steady = bound(name).steady_output_tokens_per_s(
        prompt_tokens=prompt, output_tokens=output, rows=seats
    )
    assert rate <= steady * (1 + 1e-6)  # touched experts are whole bytes


def test_what_cannot_be_scheduled_is_refused() -> None:
    with pytest.raises(UserError, match="0 seats take no row"):
        list_schedule([1], [1], seats=0)
    with pytest.raises(UserError, match="leaves no room for prompts beside 8 rows"):
        list_schedule([1], [1], seats=8, token_budget=8)
    assert len(list_schedule([], [], seats=1)) == 0


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict[str, float]]:
    assert main(["bench", "bound", "--model", "qwen3-8b", "--seats", "16", *arguments]) == 0
    found: dict[str, dict[str, float]] = json.loads(capsys.readouterr().out)
    return found


RATES = ("--tflops", "700", "--gb-per-s", "4000")
FIXED = ("--prompt-tokens", "100", "--output-tokens", "20")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, *RATES, *FIXED, "--json")
    expected = bound("qwen3-8b").steady_output_tokens_per_s(
        prompt_tokens=100, output_tokens=20, rows=16
    )
    assert found["steady"]["output_tokens_per_s"] == pytest.approx(expected)
    batch = run(capsys, *RATES, *FIXED, "--rows", "40", "--json")
    loads = walk([100] * 40, [20] * 40, 16, 8192)
    whole = batch["whole"]
    assert (whole["passes"], whole["output_tokens"]) == (len(loads), 800)
    assert whole["seconds"] == pytest.approx(sum(seconds("qwen3-8b", x) for x in loads), rel=1e-4)
    full = [load for load in loads if load[0] >= 0.8 * 16]
    assert batch["window"]["passes"] == len(full)
    assert batch["window"]["output_tokens"] == sum(load[4] for load in full)
    trace = tmp_path / "trace.jsonl"
    lines = [{"prompt_tokens": 100, "output_tokens": 20}] * 40
    trace.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    ceilings = {"matmul_bf16": {"median": 7e14}, "device_copy": {"median": 4e12}}
    for name, content in {
        "alone.json": {"ceilings": ceilings},
        "check.json": {"pieces": {"ceilings/all": {"result": {"ceilings": ceilings}}}},
    }.items():
        path = tmp_path / name
        path.write_text(json.dumps(content), encoding="utf-8")
        same = run(capsys, "--ceilings", str(path), "--trace", str(trace), "--json")
        assert (same["whole"], same["rates_of"]) == (whole, name)
    assert main(["bench", "bound", "--model", "qwen3-8b", "--seats", "16", *RATES, *FIXED]) == 0
    assert "steady" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (FIXED, "needs rates"),
        ((*RATES, *FIXED, "--ceilings", "none.json"), "both given"),
        ((*FIXED, "--ceilings", "none.json"), "does not exist"),
        ((*RATES, "--prompt-tokens", "5"), "a load is a trace or fixed lengths"),
        ((*RATES, *FIXED, "--trace", "x.jsonl"), "a load is a trace or fixed lengths"),
        ((*RATES, *FIXED, "--rows", "9", "--token-budget", "16"), "no room for prompts"),
        ((*RATES, *FIXED, "--rows", "0"), "--rows is 0"),
    ],
)
def test_mistakes_are_named(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "bound", "--model", "qwen3-8b", "--seats", "16", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_windowed_models_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "bound", "--model", "gpt-oss-20b", "--seats", "16", *RATES, *FIXED]
    assert main(command) == 2
    assert "sliding window" in capsys.readouterr().err


def test_an_embedding_of_any_width_is_not_read() -> None:
    model = replace(load_model("llama-3.1-8b"), weight_dtype="fp32", embedding_dtype="fp32")
    assert not model.tied
    read = model.weight_bytes - 4 * model.embedding_parameters
    bound = PhaseSum(model=model, matmul_flops_per_s=1e30, memory_bytes_per_s=BYTES)
    assert bound.pass_s(decodes=1, context_tokens=0) == pytest.approx(read / BYTES)

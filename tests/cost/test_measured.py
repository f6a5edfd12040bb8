"""Sums of measured kernels: exact integer times, agreement of paths, sizes that make sense."""

from __future__ import annotations

import json
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchgen.cli import main
from batchgen.cost.api import PS_PER_S, PassLoad
from batchgen.cost.build import build_cost
from batchgen.cost.measured import MeasuredCost
from batchgen.cost.table import IntTable
from batchgen.errors import UserError
from batchgen.hardware import load_gpu
from batchgen.layout import parse_layout
from batchgen.model import load_model

CASES = [
    ("llama-3.1-8b", "h100", "tp1", 1),
    ("llama-3.1-70b", "h200", "tp4", 4),
    ("qwen3-30b-a3b", "a100", "tp2", 2),
    ("gpt-oss-120b", "b200", "tp1", 1),
    ("deepseek-r1", "h200", "tp8+ep8", 8),
    ("mixtral-8x7b", "h20", "tp2", 2),
]
LOCKSTEP = ("deepseek-r1", "h200", "dpa8+ep8", 8)


@cache
def cost(model: str, gpu: str, spec: str, gpus: int, skew: float = 0.0) -> MeasuredCost:
    made = build_cost(
        load_model(model),
        load_gpu(gpu),
        parse_layout(spec, gpus),
        costs="measured",
        expert_skew=skew,
    )
    assert isinstance(made, MeasuredCost)
    return made


PROFILES = Path(__file__).parents[2] / "traces" / "engines" / "op_profiles"


def random_load(num_ranks: int, num_passes: int, seed: int) -> PassLoad:
    load, rng = PassLoad.zeros(num_ranks, num_passes), np.random.default_rng(seed)
    shape = (num_ranks, num_passes)
    load.decodes[:] = rng.integers(0, 300, shape) * (rng.random(shape) < 0.8)
    load.context[:] = load.decodes * rng.integers(1, 20_000, shape)
    load.chunk_tokens[:] = rng.integers(0, 9000, shape) * (rng.random(shape) < 0.5)
    start = rng.integers(0, 50_000, shape) * (load.chunk_tokens > 0)
    load.chunk_pairs[:] = (start + load.chunk_tokens) ** 2 - start**2
    load.chunk_reads[:] = start
    load.samples[:] = load.decodes + (load.chunk_tokens > 0)
    return load


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", [*CASES, LOCKSTEP], ids=str)
def test_paths_agree_and_runs_split_anywhere(case: tuple[str, str, str, int], seed: int) -> None:
    engine = cost(*case)
    load = random_load(engine.num_ranks, 8, seed)
    whole = engine.pass_ps(load)
    assert whole.dtype == np.int64
    parts = [engine.pass_ps(load.window(a, b)) for a, b in ((0, 3), (3, 8))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    for p in range(8):
        one = [
            tuple(int(getattr(load, field.name)[rank, p]) for field in fields(load))
            for rank in range(engine.num_ranks)
        ]
        assert engine.time_ps(one) == whole[p]
        if engine.num_ranks == 1:
            assert engine.pass_one_ps(*one[0]) == whole[p]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_decodes_are_affine_in_their_context(case: tuple[str, str, str, int]) -> None:
    engine = cost(*case)
    for decodes in (1, 7, 64, 500):
        start, slope = engine.decode_affine(decodes, False)
        for context in (1, 10_000, 10**7):
            assert engine.pass_one_ps(decodes, context, samples=decodes) == start + slope * context


@pytest.mark.parametrize("case", [*CASES, LOCKSTEP], ids=str)
def test_more_work_takes_longer(case: tuple[str, str, str, int]) -> None:
    engine = cost(*case)
    rows = [engine.pass_one_ps(n, n * 2000, samples=n) for n in (1, 8, 32, 128, 512)]
    assert rows == sorted(rows)
    prompts = [
        engine.pass_one_ps(0, 0, chunk_tokens=n, chunk_pairs=n * n, samples=1)
        for n in (64, 512, 2048, 8192, 16384)
    ]
    assert prompts == sorted(prompts)


@pytest.mark.parametrize("case", [*CASES, LOCKSTEP], ids=str)
def test_attention_of_many_row_counts_is_that_of_each(case: tuple[str, str, str, int]) -> None:
    """Tables of decodes are filled by blocks, with the values of single look-ups."""
    engine = cost(*case)
    counts = np.array([1, 2, 3, 17, 64, 255, 1000, 1023, 1500, 4000])
    for function in (engine._slope_ps, engine._fixed_ps):
        singly = [round(float(function(np.array([float(n)]))[0])) for n in counts]
        assert IntTable(function).take(counts).tolist() == singly


def test_a_table_of_row_counts_asks_for_few_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = cost("llama-3.1-8b", "h100", "tp1", 1)
    asked = []
    seconds = engine.kernels.seconds

    def counted(*names: str, **sizes: Any) -> Any:
        asked.append(names)
        return seconds(*names, **sizes)

    monkeypatch.setattr(engine.kernels, "seconds", counted)
    engine.pass_one_ps(3000, 10**7, samples=3000)
    assert 0 < len(asked) < 100


def test_known_sizes() -> None:
    """One H100 reads the weights of an 8B model (16 GB) in 4.8 ms at its peak; published decode
    steps of one row are about 7 ms. 8,192 prompt tokens need 131 TFLOP, 0.13 s at the peak."""
    engine = cost("llama-3.1-8b", "h100", "tp1", 1)
    one = engine.pass_one_ps(1, 1000, samples=1) / PS_PER_S
    assert 0.0055 < one < 0.0085
    prompt = engine.pass_one_ps(0, 0, chunk_tokens=8192, chunk_pairs=8192**2, samples=1) / PS_PER_S
    assert 0.15 < prompt < 0.32


def test_what_is_not_measured_is_told() -> None:
    engine = cost("mixtral-8x7b", "h20", "tp2", 2)
    engine.pass_one_ps(4, 4000, samples=4)
    told = engine.describe()
    assert told["kind"] == "measured"
    assert {"gemm bf16", "experts bf16"} <= set(told["extrapolated"])
    assert not cost("llama-3.1-8b", "h100", "tp1", 1).describe()["extrapolated"]
    with pytest.raises(UserError, match="sub-batches"):
        build_cost(
            load_model("llama-3.1-8b"),
            load_gpu("h100"),
            parse_layout("tp1", 1),
            costs="measured",
            plan_b_attn=4,
        )


@pytest.mark.parametrize(
    ("case", "most"),
    [(("llama-3.1-8b", "h100", "tp1", 1), 0.30), (("deepseek-r1", "h200", "tp8+ep8", 8), 0.35)],
    ids=str,
)
def test_attention_of_prompts_is_that_of_its_kernel(
    case: tuple[str, str, str, int], most: float
) -> None:
    """Many short prompts, one long, and one long in chunks, against the kernels themselves."""
    engine = cost(*case)
    layers = engine.model.num_layers
    for prompts, tokens in ((1, 2048), (1, 8192), (1, 16384), (8, 1024), (16, 512), (64, 128)):
        load = PassLoad.zeros(1, 1)
        load.chunk_tokens[:], load.samples[:] = prompts * tokens, prompts
        load.chunk_pairs[:] = prompts * tokens**2
        scores = engine._chunk_ps(load) + engine._chunk_overhead.take(load.chunk_tokens)
        found = int(scores[0, 0]) / PS_PER_S
        sizes = {"rows": float(prompts), "tokens": float(tokens)}
        if engine._is_latent:
            kernel = engine.kernels.seconds("mla_prefill", **sizes, **engine._latent)
        else:
            sizes["window"] = 0.0
            kernel = engine.kernels.seconds("prefill_attention", **sizes, **engine._heads)
        whole = engine.pass_ps(load)[0] / PS_PER_S
        # Relative to the pass where attention is a small part of it.
        off = abs(found - layers * float(kernel)) / max(layers * float(kernel), 0.2 * whole)
        assert off < most, (prompts, tokens, found, layers * float(kernel))


def test_what_no_table_covers_is_refused() -> None:
    for layout, gpus in (("tp16", 16), ("dpa16+ep16", 16)):
        with pytest.raises(UserError, match="16 GPUs exchange"):
            cost("deepseek-r1", "h200", layout, gpus)


def test_skew_costs() -> None:
    even = cost("qwen3-30b-a3b", "h100", "tp4+ep4", 4)
    skewed = cost("qwen3-30b-a3b", "h100", "tp4+ep4", 4, 1.2)
    load = {"chunk_tokens": 8192, "chunk_pairs": 8192**2, "samples": 1}
    assert skewed.pass_one_ps(0, 0, **load) > even.pass_one_ps(0, 0, **load)


def test_the_simulator_takes_them_and_says_what_it_guessed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.jsonl"
    trace_rows = "".join(
        json.dumps({"prompt_tokens": 500 + n, "output_tokens": 20 + n}) + "\n" for n in range(40)
    )
    trace.write_text(json.dumps({"batchgen_trace": 1, "name": "t"}) + "\n" + trace_rows)
    times = {}
    for gpu in ("h100", "h20"):
        for costs in ("roofline", "measured"):
            command = ["sim", "--trace", str(trace), "--model", "qwen3-8b", "--gpu", gpu]
            command += ["--gpus", "2", "--costs", costs]
            assert main([*command, "--json"]) == 0
            (run,) = json.loads(capsys.readouterr().out)["runs"]
            assert run["finished_rows"] == 40
            assert (run["guessed_kernels"] != "") == ((gpu, costs) == ("h20", "measured"))
            times[gpu, costs] = run["bct_s"]
            assert main(command) == 0
            printed = " ".join(capsys.readouterr().out.split())
            told = "not measured on this GPU, guessed by its peaks from others:"
            assert (told in printed) == ((gpu, costs) == ("h20", "measured"))
    for gpu in ("h100", "h20"):
        assert 0.5 < times[gpu, "measured"] / times[gpu, "roofline"] < 2.0


@pytest.mark.parametrize("source", [["--costs", "measured"], ["--profile", str(PROFILES)]])
def test_constants_of_the_roofline_are_refused_beside_measured_kernels(
    source: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"prompt_tokens": 50, "output_tokens": 50}\n' * 10)
    command = ["sim", "--trace", str(trace), "--model", "llama-3.1-8b", "--gpu", "rtx-pro-6000"]
    command += ["--gpus", "1", "--layout", "tp1", "--json", *source]
    times = []
    for more in ([], ["--set", "cost.step_s=0.01"]):
        assert main([*command, *more]) == 0
        times.append(json.loads(capsys.readouterr().out)["runs"][0]["bct_s"])
    assert times[0] < times[1]
    assert main([*command, "--set", "cost.engine=0.5"]) == 2
    assert "--set cost.engine: of the roofline" in capsys.readouterr().err

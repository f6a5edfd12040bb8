"""The profile of this machine: every table is there, positive, and adds up to what passes cost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from batchgen.cli import main
from batchgen.cost.profile import ProfiledCost, gemm_shapes, load_profile
from batchgen.exec.config import load_config
from batchgen.exec.init import init_model
from batchgen.exec.profile import measure
from batchgen.exec.profile_grid import Grid
from batchgen.exec.profile_operators import fit_copies
from batchgen.exec.profile_passes import read_prompts, run_passes
from batchgen.exec.weights import expected_shapes
from batchgen.exec.worker import Worker
from batchgen.layout import Layout
from batchgen.model import load_model

TINY = Grid(
    tokens=(1, 16),
    rows=(1, 4),
    contexts=(16, 64),
    chunks=(8, 16),
    starts=(0, 16),
    pages=(1, 4),
    seconds=0.0,
    max_kv_tokens=1 << 10,
    prompts=6,
    outputs=12,
    seats=(2, 4),
    max_prefill_tokens=100,
    rounds=1,
)


@pytest.mark.parametrize("arch", ["llama", "qwen3-moe"])
def test_a_profile_is_what_the_cost_model_reads(arch: str, tmp_path: Path) -> None:
    model = init_model(tmp_path / "m", arch, "tiny")
    document = measure(model, grid=TINY, page_tokens=16)
    path = tmp_path / "p.json"
    path.write_text(json.dumps(document, allow_nan=False))
    profile = load_profile(path)
    spec = load_model(model)
    assert {(p.n, p.k) for p in profile.gemm} == set(gemm_shapes(spec).values())
    assert {p.dtype for p in profile.gemm} == {"fp32"}
    assert len(profile.decode_attention) == len(profile.prefill_attention) == 4
    assert {(p.heads, p.kv_heads, p.head_dim) for p in profile.decode_attention} == {(4, 2, 16)}
    assert len(profile.experts) == (len(TINY.tokens) if arch == "qwen3-moe" else 0)
    cost = ProfiledCost(spec, profile, Layout())
    # No order between the two: a stall in a single short measurement could turn it around.
    assert min(cost.pass_one_ps(4, 4 * 64, samples=4), cost.pass_one_ps(1, 64, samples=1)) > 0
    # How well it fits is no test: a busy machine would fail it. `fit` reports it to the reader.
    assert all(kind["count"] > 0 and kind["median_error"] >= 0 for kind in document["fit"].values())
    assert {"decode", "prefill"} <= set(document["fit"])


def test_passes_are_measured_on_the_rows_that_are_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = init_model(tmp_path / "m", "qwen3", "tiny")
    rows = tmp_path / "rows.jsonl"
    lengths = [3, 17, 40]
    rows.write_text(
        "".join(
            json.dumps({"prompt": [7] * n, "max_tokens": 9, "ignore_eos": True}) + "\n"
            for n in lengths
        )
        + "broken\n"
    )
    worker = Worker(model, page_tokens=16, hbm_pages=0, host_pages=0, threads=1)
    prompts = read_prompts(rows, model, worker, TINY)
    assert [len(prompt.ids) for prompt in prompts] == lengths
    passes = run_passes(worker, prompts, TINY)
    alone = {p.chunk_tokens for p in passes if not p.decodes and p.samples == 1}
    assert alone == set(lengths)
    assert max(p.decodes for p in passes) == 3
    # Per number of seats one job of all rows and one of the short half, cut to two tokens: a row
    # decodes all its tokens but the first, which its prompt gave.
    assert sum(p.decodes for p in passes) == 2 * (3 * 8 + 2 * 1)
    assert all(p.seconds > 0 for p in passes)
    assert worker.pages_used("hbm") == 0
    rows.write_text("broken\n")
    out = tmp_path / "p.json"
    arguments = ["profile", "--model", str(model), "--prompts", str(rows), "-o", str(out)]
    assert main([*arguments, "--quick"]) == 2
    assert "holds no row that can run" in capsys.readouterr().err


@pytest.mark.parametrize("arch", ["llama", "qwen3-moe"])
def test_every_weight_matrix_has_its_product(arch: str, tmp_path: Path) -> None:
    """Stacked projections aside, no matrix of the checkpoint is left out of the table."""
    model = init_model(tmp_path / "m", arch, "tiny")
    shapes = set(gemm_shapes(load_model(model)).values())
    stacked = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "embed_tokens")
    for name, shape in expected_shapes(load_config(model)).items():
        if len(shape) == 2 and not any(part in name for part in stacked):
            assert shape in shapes, name


def test_a_known_link_is_found_again() -> None:
    points = [{"bytes": n, "seconds": 1e-5 + n / 2e9} for n in (1000, 10_000, 1_000_000)]
    assert fit_copies(points) == pytest.approx({"host_bytes_per_s": 2e9, "host_latency_s": 1e-5})


def test_the_command_writes_once_and_never_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchgen.exec.profile.measure", lambda *_, **__: {"schema": 1})
    path = tmp_path / "p.json"
    assert main(["profile", "-o", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(path.read_text()) == {"schema": 1}
    assert main(["profile", "-o", str(path)]) == 2
    assert "exists" in capsys.readouterr().err
    assert main(["profile", "-o", str(tmp_path / "no" / "p.json")]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["p.json"]

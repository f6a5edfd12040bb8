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
from batchgen.exec.profile_operators import Grid, fit_copies
from batchgen.exec.profile_passes import MeasuredPass, fit_overheads
from batchgen.exec.weights import expected_shapes
from batchgen.layout import Layout
from batchgen.model import load_model
from batchgen.units import PS_PER_US

TINY = Grid(
    tokens=(1, 16),
    rows=(1, 4),
    contexts=(16, 64),
    chunks=(8, 16),
    starts=(0, 16),
    pages=(1, 4),
    seconds=0.0,
    max_kv_tokens=1 << 10,
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
    assert document["fit"]["median_absolute"] >= 0.0
    assert document["fit"]["passes"] == len(document["passes"]) > 4


@pytest.mark.parametrize("arch", ["llama", "qwen3-moe"])
def test_every_weight_matrix_has_its_product(arch: str, tmp_path: Path) -> None:
    """Stacked projections aside, no matrix of the checkpoint is left out of the table."""
    model = init_model(tmp_path / "m", arch, "tiny")
    shapes = set(gemm_shapes(load_model(model)).values())
    stacked = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "embed_tokens")
    for name, shape in expected_shapes(load_config(model)).items():
        if len(shape) == 2 and not any(part in name for part in stacked):
            assert shape in shapes, name


class KnownCost:
    """A cost without overheads: 1 us per token and 2 us per sample."""

    def pass_one_ps(
        self,
        decodes: int,
        context: int,
        chunk_tokens: int = 0,
        chunk_pairs: int = 0,
        chunk_reads: int = 0,
        samples: int = 0,
        checkpoint: int = 0,
    ) -> int:
        return (decodes + chunk_tokens + 2 * samples) * PS_PER_US


def test_known_overheads_are_found_again() -> None:
    layers, step, row, sample, layer, token = 3, 100e-6, 5e-6, 7e-6, 20e-6, 1e-6
    passes = []
    for decodes, chunks, chunk in ((1, 0, 0), (16, 0, 0), (0, 1, 64), (0, 4, 16), (0, 1, 256)):
        samples, tokens = decodes + chunks, decodes + chunks * chunk
        bare = step + row * decodes + (sample + 2e-6) * samples
        passes.append(
            MeasuredPass(
                decodes=decodes,
                context=10 * decodes,
                chunk_tokens=chunks * chunk,
                chunk_pairs=chunks * chunk**2,
                samples=samples,
                seconds=bare + tokens * 1e-6 + layers * (layer + token * tokens),
                seconds_without_layers=bare,
            )
        )
    found = fit_overheads(KnownCost(), layers, passes)
    expected = {"step_s": step, "row_s": row, "sample_s": sample}
    assert found == pytest.approx(expected | {"layer_s": layer, "layer_token_s": token}, rel=1e-6)


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

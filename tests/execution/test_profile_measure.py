"""The profile of this machine: every table is there, positive, and adds up to what passes cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from batchgen.cli import main
from batchgen.exec.config import load_config
from batchgen.exec.init import init_model
from batchgen.exec.profile import measure
from batchgen.exec.profile_operators import Grid, gemm_shapes
from batchgen.exec.profile_passes import overheads
from batchgen.exec.weights import expected_shapes

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
def test_a_profile_holds_every_table(arch: str, tmp_path: Path) -> None:
    model = init_model(tmp_path / "m", arch, "tiny")
    document = measure(model, grid=TINY, page_tokens=16)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    shapes = {(p["n"], p["k"]) for p in document["gemm"]}
    assert shapes == set(gemm_shapes(load_config(model)))
    tables = ("gemm", "decode_attention", "prefill_attention", "copies", "passes")
    for table in (*tables, *(["experts"] if arch == "qwen3-moe" else [])):
        assert document[table]
        assert all(point["seconds"] > 0 for point in document[table])
    assert len(document["decode_attention"]) == len(document["prefill_attention"]) == 4
    assert {p["kind"] for p in document["overhead"]} == {"decode", "prefill"}
    assert set(document["copy_bytes_per_s"]) == {"hbm_to_host", "host_to_hbm"}
    assert document["machine"]["threads"] >= 1


@pytest.mark.parametrize("arch", ["llama", "qwen3-moe"])
def test_every_weight_matrix_has_its_product(arch: str, tmp_path: Path) -> None:
    """Stacked projections aside, no matrix of the checkpoint is left out of the table."""
    config = load_config(init_model(tmp_path / "m", arch, "tiny"))
    shapes = set(gemm_shapes(config))
    stacked = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    for name, shape in expected_shapes(config).items():
        if len(shape) == 2 and not any(part in name for part in stacked):
            assert shape in shapes, name


def test_overheads_are_what_is_left(tmp_path: Path) -> None:
    config = load_config(init_model(tmp_path / "m", "llama", "tiny"))
    gemm = [
        {"m": m, "n": n, "k": k, "seconds": 0.001 * m}
        for m in (1, 9)
        for n, k in gemm_shapes(config)
    ]
    decode = [{"rows": 5, "context": c, "seconds": 0.0001 * c} for c in (10, 30)]
    prefill = [{"chunk": 7, "start": 0, "seconds": 0.5}]
    passes: list[dict[str, Any]] = [
        {"kind": "decode", "rows": 5, "context": 20, "seconds": 1.0, "seconds_without_layers": 0.1},
        {"kind": "prefill", "chunk": 7, "start": 0, "seconds": 2.0, "seconds_without_layers": 0.2},
    ]
    one, two = overheads(config, gemm, decode, prefill, [], passes)
    # Four products per layer and the head; two layers.
    assert one["layer_s"] == pytest.approx((1.0 - 0.1) / 2 - 4 * 0.005 - 0.002)
    assert one["step_s"] == pytest.approx(0.1 - 0.005)
    assert two["layer_s"] == pytest.approx((2.0 - 0.2) / 2 - 4 * 0.007 - 0.5)
    assert two["step_s"] == pytest.approx(0.2 - 0.001)


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

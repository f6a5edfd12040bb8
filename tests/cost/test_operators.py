"""Costs of kernels: floors by hand, fits that find what was put in, files, the shipped ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from batchgen.cost.operators import sample, store
from batchgen.cost.operators.assess import BARS, assess
from batchgen.cost.operators.base import element_bytes, peak_flops
from batchgen.cost.operators.fitted import errors, fit, held_out
from batchgen.cost.operators.kinds import OPERATORS
from batchgen.cost.operators.points import Points
from batchgen.cost.operators.ship import ship
from batchgen.cost.operators.tables import read_tables
from batchgen.errors import DataError, UserError
from batchgen.hardware import load_gpu

TABLES = Path(__file__).parents[3] / "shared" / "traces" / "hw_profiles" / "aiconfigurator"
GPU = load_gpu("h100")


def columns(operator: str, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)

    def power(low: int, high: int) -> np.ndarray:
        return 2.0 ** rng.integers(low, high + 1, count)

    if operator == "gemm":
        return {"m": power(0, 14), "n": power(7, 14), "k": power(7, 14)}
    if operator.startswith("mla"):
        return {
            "rows": power(0, 8),
            "tokens": power(4, 13),
            "heads": power(3, 7),
            "kv_bytes": rng.integers(1, 3, count).astype(float),
        }
    if operator == "collectives":
        return {"gpus": power(1, 3), "bytes": power(8, 30)}
    if operator == "experts":
        experts = power(3, 8)
        return {
            "tokens": power(0, 14),
            "hidden": power(11, 13),
            "width": power(9, 11),
            "top_k": np.minimum(power(0, 3), experts),
            "experts": experts,
            "tp": power(0, 2),
            "ep": np.minimum(power(0, 3), experts),
            "skew": rng.integers(0, 3, count).astype(float),
        }
    kv_heads = power(0, 3)
    return {
        "rows": power(0, 8),
        "tokens": power(4, 13),
        "heads": kv_heads * power(0, 4),
        "kv_heads": kv_heads,
        "head_dim": power(6, 8),
        "window": np.where(rng.random(count) < 0.3, 128.0, 0.0),
    }


def made(operator: str, count: int, seed: int = 0, gpu: str = "h100") -> Points:
    """Points that take a smooth multiple of their floor."""
    one = OPERATORS[operator]
    values = columns(operator, count, seed)
    logs = one.logs(values)
    slow = 1.2 + 0.05 * sum(np.abs(part) for part in logs.values())
    seconds = one.floor_s(load_gpu(gpu), "bf16", values) * slow
    return Points(operator=operator, gpu=gpu, variant="bf16", columns=values, seconds=seconds)


def test_floors_by_hand() -> None:
    bandwidth, peak = GPU.hbm_bytes_per_s, GPU.peak_for("bf16")
    one = {"m": 1.0, "n": 4096.0, "k": 8192.0}
    many = one | {"m": 65536.0}
    gemm = OPERATORS["gemm"].floor_s

    def array(values: dict[str, float]) -> dict[str, np.ndarray]:
        return {name: np.array([value]) for name, value in values.items()}

    moved = (4096 * 8192 + 8192) * 2 + 4096 * 2
    assert gemm(GPU, "bf16", array(one)) == pytest.approx(moved / bandwidth + 2e-6)
    assert gemm(GPU, "bf16", array(many)) == pytest.approx(2 * 65536 * 4096 * 8192 / peak + 2e-6)
    row = {"rows": 8.0, "tokens": 4096.0, "heads": 32.0, "kv_heads": 8.0, "head_dim": 128.0}
    decode, prefill = (OPERATORS[f"{x}_attention"].floor_s for x in ("decode", "prefill"))
    read = 8 * 4096 * 2 * 8 * 128 * 2 + 8 * 32 * 128 * 4
    assert decode(GPU, "bf16", array(row | {"window": 0.0})) == pytest.approx(
        read / bandwidth + 4e-6
    )
    seen = decode(GPU, "bf16", array(row | {"window": 128.0}))
    assert seen == pytest.approx((read - 8 * 3968 * 2 * 8 * 128 * 2) / bandwidth + 4e-6)
    pairs = 8 * 4096 * 4097 / 2
    full = prefill(GPU, "bf16", array(row | {"window": 0.0}))
    assert full == pytest.approx(4 * pairs * 32 * 128 / peak + 4e-6)
    windowed = prefill(GPU, "bf16", array(row | {"window": 128.0}))
    pairs = 8 * sum(min(i, 128) for i in range(1, 4097))
    moved = 8 * 4096 * 128 * 2 * (32 + 8) * 2
    assert windowed == pytest.approx(max(4 * pairs * 32 * 128 / peak, moved / bandwidth) + 4e-6)
    reduce = {"gpus": 8.0, "bytes": 2.0**20}
    collectives = OPERATORS["collectives"].floor_s
    sent = 2**20 * 7 / 8 / GPU.intra_bytes_per_s
    assert collectives(GPU, "all_gather", array(reduce)) == pytest.approx(sent + 4e-6)
    assert collectives(GPU, "all_reduce", array(reduce)) == pytest.approx(2 * sent + 4e-6)
    expert = {"tokens": 1.0, "hidden": 2048.0, "width": 768.0, "top_k": 8.0, "experts": 128.0}
    expert |= {"tp": 1.0, "ep": 1.0, "skew": 0.0}
    weights = 8 * 3 * 2048 * 768 * 2
    traffic = 8 * (2 * 2048 + 3 * 768) * 2 + 2048 * 4
    least = OPERATORS["experts"].floor_s(GPU, "bf16", array(expert))
    assert least == pytest.approx((weights + traffic) / bandwidth + 20e-6)


def test_dtypes_of_tables() -> None:
    assert element_bytes("nvfp4") == 0.5625
    assert element_bytes("fp8_block") == element_bytes("fp8")
    assert peak_flops(GPU, "fp8_block") == GPU.peak_for("fp8")
    assert peak_flops(load_gpu("b200"), "nvfp4") == load_gpu("b200").peak_flops["fp4"]


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_smooth_table_is_predicted_where_it_was_not_seen(operator: str) -> None:
    points = made(operator, 3000)
    found = errors(held_out(OPERATORS[operator], points), points.seconds)
    assert found.median < 0.03
    assert found.p90 < 0.08
    assert abs(found.bias) < 0.01


def test_no_shape_is_in_both_parts() -> None:
    for operator in OPERATORS:
        points = made(operator, 3000)
        ours, shipped = sample.split(points)
        shape = OPERATORS[operator].shape
        rows = [
            set(zip(*(part.columns[n] for n in shape), strict=True)) for part in (ours, shipped)
        ]
        assert not rows[0] & rows[1]
        assert len(shipped) <= sample.MOST_POINTS
        assert 0 < len(shipped) < len(ours)


def test_files_keep_what_was_fitted(tmp_path: Path) -> None:
    tables = [made(name, 1500, gpu=gpu) for name in OPERATORS for gpu in ("h100", "h200")]
    fitted_path, sample_path = ship(tables, tmp_path)
    fitted, details = store.load(fitted_path)
    assert "Apache-2.0" in details["source"]
    assert {gpu for _, gpu, _ in fitted} == {"h100", "h200", store.ANY_GPU}
    shipped = sample.load(sample_path)
    assert {(one.operator, one.gpu) for one in shipped} == {(t.operator, t.gpu) for t in tables}
    for points in tables[:4]:
        ours, _ = sample.split(points)
        again = fit(OPERATORS[points.operator], [ours]).seconds(GPU, points.columns)
        kept = fitted[points.operator, points.gpu, "bf16"].seconds(GPU, points.columns)
        assert kept == pytest.approx(again, rel=0.02)  # half floats


def test_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.npz"
    for content in (b"", b"PK\x03\x04 no archive", b"\x93NUMPY"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="no fitted operators"):
            store.load(path)
    np.savez(path, a=np.zeros(3))
    with pytest.raises(DataError, match="no fitted operators"):
        store.load(path)
    with pytest.raises(DataError, match="no sample"):
        sample.load(path)
    store.save(path, {}, {})
    assert store.load(path)[0] == {}
    with pytest.raises(UserError, match="no tables of a GPU"):
        read_tables(tmp_path)
    folder = tmp_path / "h100_sxm"
    folder.mkdir()
    pd.DataFrame({"gemm_dtype": ["bfloat16"], "m": [1.0]}).to_parquet(
        folder / "x__gemm_perf.parquet"
    )
    with pytest.raises(DataError, match="has no column"):
        read_tables(tmp_path)
    (folder / "x__gemm_perf.parquet").write_text("text")
    with pytest.raises(DataError, match="no table of gemm"):
        read_tables(tmp_path)


def test_every_point_of_a_table_is_taken_or_counted(tmp_path: Path) -> None:
    folder = tmp_path / "h100_sxm"
    folder.mkdir()
    good = {"gemm_dtype": "bfloat16", "m": 64.0, "n": 512.0, "k": 512.0, "latency": 0.02}
    bad = {
        "latency is no positive number": [{"latency": np.nan}, {"latency": 0.0}, {"latency": -1.0}],
        "m is unknown or out of range": [{"m": np.nan}],
        "n is unknown or out of range": [{"n": 0.0, "k": 0.0}],
        "no gemm_dtype": [{"gemm_dtype": None}],
        "dtype without a model of ours": [{"gemm_dtype": "int3"}],
        "timed outside of a graph: launches are most of it": [{"gemm_dtype": "fp8_block"}],
    }
    rows = [good, good] + [good | change for changes in bad.values() for change in changes]
    pd.DataFrame(rows).to_parquet(folder / "x__gemm_perf.parquet")
    skews = ["balanced", "power_law_1.01", "power_law_9"]
    experts = {"moe_dtype": "bfloat16", "num_tokens": 8, "hidden_size": 1024, "inter_size": 512}
    experts |= {"topk": 2, "num_experts": 8, "moe_tp_size": 1, "moe_ep_size": 1, "latency": 0.1}
    pd.DataFrame([experts | {"distribution": skew} for skew in skews]).to_parquet(
        folder / "x__moe_perf.parquet"
    )
    found, dropped = read_tables(tmp_path)
    assert [(one.operator, len(one)) for one in found] == [("gemm", 2), ("experts", 2)]
    counts = {one.reason: one.points for one in dropped if one.operator == "gemm"}
    assert counts == {reason: len(changes) for reason, changes in bad.items()}
    told = [(one.gpu, one.variant, one.reason) for one in dropped if one.operator == "experts"]
    assert told == [("h100", "bfloat16", "skew is unknown or out of range")]


def test_a_fit_of_other_terms_is_not_misread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ship([made("gemm", 500)], tmp_path)
    path = tmp_path / store.SHIPPED.name
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    for wrong in (np.full_like(arrays["gemm|h100|bf16|0"], np.nan), np.zeros((2, 2), np.float16)):
        np.savez(tmp_path / "other.npz", **(arrays | {"gemm|h100|bf16|0": wrong}))
        with pytest.raises(DataError, match="not those of its terms"):
            store.load(tmp_path / "other.npz")
    np.savez(tmp_path / "other.npz", **(arrays | {"gemm|h100": wrong}))
    with pytest.raises(DataError, match="no fitted operators"):
        store.load(tmp_path / "other.npz")
    monkeypatch.setattr(store, "load_gpu", lambda name: load_gpu("h20"))
    with pytest.raises(DataError, match="other terms, floors or peaks of gemm any bf16"):
        store.load(path)


def test_what_is_shipped_meets_the_bars_on_shapes_that_it_has_not_seen() -> None:
    fitted, details = store.load()
    assert store.SHIPPED.stat().st_size + sample.SHIPPED.stat().st_size < 3e6
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for points in sample.load():
        one = fitted[points.operator, points.gpu, points.variant]
        found = one.seconds(load_gpu(points.gpu), points.columns)
        pairs.setdefault(points.operator, []).append((found, points.seconds))
        assert (points.operator, store.ANY_GPU, points.variant) in fitted
        assert details["points"][f"{points.operator} {points.gpu} {points.variant}"] > len(points)
    assert set(pairs) == set(OPERATORS)
    for operator, both in pairs.items():
        found = errors(*(np.concatenate(side) for side in zip(*both, strict=True)))
        assert BARS[operator].met(found), (operator, found)


def test_every_gpu_is_left_out_once() -> None:
    tables = [made("gemm", 800, gpu=gpu) for gpu in ("h100", "h200", "a100")]
    rows = list(assess(tables))
    assert [(row.gpu, row.left_out) for row in rows] == [
        (gpu, left) for gpu in ("h100", "h200", "a100") for left in ("shapes", "gpu")
    ] + [("all", "gpu"), ("all", "shapes")]
    # The same multiple of the floor everywhere: another GPU says as much as the same one.
    assert all(row.errors.median < 0.03 for row in rows)


@pytest.mark.slow
@pytest.mark.skipif(not TABLES.is_dir(), reason="the full tables are not here")
def test_the_full_tables_meet_the_bars() -> None:
    totals = [row for row in assess(read_tables(TABLES)[0]) if row.gpu == "all"]
    assert len(totals) == 2 * len(OPERATORS) + sum(bool(one.model) for one in OPERATORS.values())
    for row in totals:
        if row.left_out == "shapes":
            assert BARS[row.operator].met(row.errors), row

"""Profiles: one-line errors, recovery of a known machine, exact integer times."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgen.cost.api import PS_PER_S, PassLoad
from batchgen.cost.build import build_cost
from batchgen.cost.fit import Curve, nonnegative_fit
from batchgen.cost.profile import ProfiledCost, gemm_shapes, load_profile, parse_profile
from batchgen.cost.residency import Residency
from batchgen.errors import DataError, UserError
from batchgen.hardware import load_gpu
from batchgen.layout import Layout, parse_layout
from batchgen.model import ModelSpec, load_model

# A machine with simple rates: what a profile of it must give back.
GEMM_S_PER_FLOP = 1e-12
GEMM_FIXED_S = 5e-6
KV_S_PER_TOKEN = 2e-9
PAIR_S = 3e-12


def tiny(**changes: Any) -> ModelSpec:
    fields: dict[str, Any] = {
        "name": "tiny",
        "family": "qwen3",
        "num_layers": 4,
        "hidden": 256,
        "attention": "gqa",
        "num_heads": 8,
        "num_kv_heads": 2,
        "head_dim": 32,
        "ffn": 512,
        "vocab": 1000,
        "max_context": 4096,
        "weight_dtype": "fp32",
        "kv_dtype": "fp32",
    }
    return ModelSpec(**{**fields, **changes})


def measured(model: ModelSpec) -> dict[str, Any]:
    """The profile that an ideal measurement of the machine above would write."""
    heads = {
        "heads": model.num_heads,
        "kv_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
    }
    return {
        "schema": 2,
        "kind": "batchgen-profile",
        "machine": {"device": "cpu", "name": "ideal"},
        "gemm": [
            {"m": m, "n": n, "k": k, "dtype": "fp32", "seconds": _gemm_s(m, n, k)}
            for n, k in sorted(set(gemm_shapes(model).values()))
            for m in (1, 8, 64, 512, 4096)
        ],
        "decode_attention": [
            {
                **heads,
                "rows": rows,
                "context": context,
                "seconds": 1e-6 * rows + KV_S_PER_TOKEN * rows * context,
            }
            for rows in (1, 8, 64)
            for context in (128, 1024, 4096)
        ],
        "prefill_attention": [
            {
                **heads,
                "chunk": chunk,
                "start": start,
                "seconds": 2e-6 + PAIR_S * ((start + chunk) ** 2 - start**2) + 1e-9 * start,
            }
            for chunk in (64, 256, 1024)
            for start in (0, 512, 4096)
        ],
        "overheads": {
            "step_s": 1e-4,
            "context": [[1, 2e-10]],
            "decode": [[1, 1e-5], [64, 64e-5]],
            "prefill": [[100, 1e-4], [400, 4e-4]],
        },
        "copies": {"host_bytes_per_s": 5e9},
    }


def _gemm_s(m: int, n: int, k: int) -> float:
    return GEMM_FIXED_S + 2 * m * n * k * GEMM_S_PER_FLOP


def profiled(model: ModelSpec) -> ProfiledCost:
    return ProfiledCost(model, parse_profile(measured(model)), Layout())


def test_a_known_machine_is_recovered() -> None:
    model = tiny()
    cost = profiled(model)
    rows, context = 32, 32 * 700
    linear = sum(
        (1 if name == "lm_head" else 4) * _gemm_s(rows, n, k)
        for name, (n, k) in gemm_shapes(model).items()
    )
    attention = 4 * (1e-6 * rows + KV_S_PER_TOKEN * context)
    expected = linear + attention + 1e-4 + rows * 1e-5 + context * 2e-10
    found = cost.pass_one_ps(rows, context, samples=rows) / PS_PER_S
    assert found == pytest.approx(expected, rel=1e-6)

    chunk, start = 300, 800
    pairs = (start + chunk) ** 2 - start**2
    linear = sum(
        4 * _gemm_s(chunk, n, k) for name, (n, k) in gemm_shapes(model).items() if name != "lm_head"
    )
    attention = 4 * (2e-6 + PAIR_S * pairs + 1e-9 * start)
    expected = linear + attention + 1e-4 + chunk * 1e-6
    found = cost.pass_one_ps(0, 0, chunk, pairs, start) / PS_PER_S
    assert found == pytest.approx(expected, rel=1e-6)
    assert cost.copy_ps(1000, "host") / PS_PER_S == pytest.approx(
        1000 * model.kv_bytes_per_token / 5e9 + 1e-5
    )


@settings(max_examples=40, deadline=None)
@given(
    decodes=st.integers(1, 500),
    contexts=st.lists(st.integers(1, 10**7), min_size=1, max_size=6),
    checkpoint=st.booleans(),
    moe=st.booleans(),
)
def test_decode_is_affine_and_paths_agree(
    decodes: int, contexts: list[int], checkpoint: bool, moe: bool
) -> None:
    experts = {"num_experts": 8, "top_k": 2, "expert_ffn": 128, "expert_dtype": "fp32"}
    cost = profiled(tiny(**experts) if moe else tiny())
    load = PassLoad.zeros(1, len(contexts))
    load.decodes[:] = load.samples[:] = decodes
    load.context[0] = contexts
    load.checkpoint[:] = decodes if checkpoint else 0
    start, slope = cost.decode_affine(decodes, checkpoint)
    assert [start + slope * context for context in contexts] == cost.pass_ps(load).tolist()
    load.chunk_tokens[0], load.chunk_pairs[0], load.chunk_reads[0] = 100, 30_000, 100
    whole = cost.pass_ps(load)
    one = [
        cost.pass_one_ps(decodes, c, 100, 30_000, 100, decodes, decodes if checkpoint else 0)
        for c in contexts
    ]
    assert whole.tolist() == one


def test_build_reads_a_file(tmp_path: Path) -> None:
    model = tiny()
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(measured(model)))
    cost = build_cost(model, load_gpu("h100"), parse_layout("dp4", 4), profile=file)
    assert cost.describe()["kind"] == "profile"
    with pytest.raises(UserError, match="layout tp2 has engines of 2 GPUs"):
        build_cost(model, load_gpu("h100"), parse_layout("tp2", 2), profile=file)
    with pytest.raises(UserError, match="latent attention"):
        ProfiledCost(load_model("deepseek-r1"), load_profile(file), Layout())
    with pytest.raises(UserError, match="cannot read profile"):
        load_profile(tmp_path / "none.json")
    file.write_text("[")
    with pytest.raises(DataError, match="not valid JSON"):
        load_profile(file)


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (("schema",), 1, "field 'schema': schema 1 is not 2"),
        (("kind",), "x", "not a profile"),
        (("gemm",), [], r"field 'gemm': must be a list with at least one point"),
        (("gemm", 0, "m"), 0, r"field 'gemm\[0\].m': must be an integer >= 1, got 0"),
        (("gemm", 3, "seconds"), -1.0, r"field 'gemm\[3\].seconds': must be positive"),
        (("decode_attention", 1, "rows"), "8", r"decode_attention\[1\].rows"),
        (("overheads", "step"), 1.0, r"field 'overheads.step': is unknown; known: step_s"),
        (("overheads", "step_s"), -1.0, r"'overheads.step_s': must not be negative"),
        (("overheads", "decode", 1), [1, 2.0], r"decode\[1\]': must begin with an integer >= 2"),
        (("overheads", "prefill", 0), [3], r"prefill\[0\]': must be a count and seconds"),
        (("overheads", "prefill"), 3, r"'overheads.prefill': must be a list"),
        (("copies",), {}, "field 'copies.host_bytes_per_s': must be positive"),
        (("copies", "host_bytes_per_s"), float("nan"), "must be a finite number"),
    ],
)
def test_mistakes_name_the_field(path: tuple[Any, ...], value: Any, text: str) -> None:
    data = copy.deepcopy(measured(tiny()))
    place = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(DataError, match=text):
        parse_profile(data, "p.json")


def test_measured_experts_replace_the_mean_share() -> None:
    model = tiny(num_experts=8, top_k=2, expert_ffn=128, expert_dtype="fp32")
    document = measured(model)
    shape = {"hidden": 256, "width": 128, "num_experts": 8, "top_k": 2}
    document["experts"] = [{**shape, "m": m, "seconds": 1e-3 + 1e-5 * m} for m in (1, 64, 512)]
    whole = ProfiledCost(model, parse_profile(document), Layout())
    load = PassLoad.zeros(1, 1)
    load.decodes[:] = load.samples[:] = 32
    load.context[:] = 3200
    assert whole.union_ps(load)[0] / PS_PER_S == pytest.approx(4 * (1e-3 + 32e-5))
    # Of another shape: not used.
    document["experts"][0]["top_k"] = document["experts"][1]["top_k"] = 1
    document["experts"].pop()
    other = ProfiledCost(model, parse_profile(document), Layout())
    assert other.pass_ps(load)[0] == profiled(model).pass_ps(load)[0]


def test_shapes_that_were_not_measured_scale_by_area() -> None:
    cost = ProfiledCost(tiny(ffn=640), parse_profile(measured(tiny())), Layout())
    assert cost.pass_one_ps(8, 800) > profiled(tiny()).pass_one_ps(8, 800)


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=8), st.floats(0, 1e5))
def test_curves_never_fall(ys: list[float], x: float) -> None:
    curve = Curve([2.0**i for i in range(len(ys))], ys)
    assert curve.at(x) <= curve.at(x + 1.0) + 1e-12
    assert curve.at(0.0) == pytest.approx(ys[0])


def test_nonnegative_fit_drops_what_noise_makes_negative() -> None:
    x = np.array([1.0, 2.0, 4.0, 8.0])
    columns = np.stack([np.ones_like(x), x], 1)
    assert nonnegative_fit(columns, 3.0 + 2.0 * x) == pytest.approx([3.0, 2.0])
    fitted = nonnegative_fit(columns, 2.0 * x - 0.5)
    assert fitted[0] == 0.0
    assert fitted[1] > 0.0


def test_a_real_profile_is_read(tmp_path: Path) -> None:
    """What `batchgen profile` measures here is accepted and gives positive, growing times."""
    pytest.importorskip("torch")
    from batchgen.exec.init import init_model
    from batchgen.exec.profile import measure
    from batchgen.exec.profile_grid import Grid

    folder = init_model(tmp_path / "m", "qwen3-moe", "tiny")
    grid = Grid(
        tokens=(1, 16),
        rows=(1, 4),
        contexts=(16, 64),
        chunks=(8, 16),
        starts=(0, 16),
        pages=(1, 4),
        seconds=0.0,
        max_kv_tokens=1 << 10,
    )
    document = measure(folder, grid=grid, page_tokens=16)
    cost = ProfiledCost(load_model(folder), parse_profile(document), Layout())
    few = cost.pass_one_ps(1, 16, samples=1)
    assert 0 < few <= cost.pass_one_ps(1, 160, samples=1)
    assert cost.pass_one_ps(0, 0, 16, 256, 0, 1) > 0
    assert cost.copy_ps(64, "host") > 0


def test_streams_cross_the_link_that_was_measured(tmp_path: Path) -> None:
    """Whatever GPU the catalog would take for the machine."""
    model, path = tiny(), tmp_path / "profile.json"
    document = measured(model)
    document["copies"]["host_bytes_per_s"] = 1e6  # so slow that nothing else counts
    path.write_text(json.dumps(document))
    for name in ("h100", "t4"):
        cost = build_cost(
            model,
            load_gpu(name),
            Layout(),
            profile=path,
            residency=Residency(weights="layers"),
            streamed_bytes=10**7,
        )
        assert cost.pass_one_ps(1, 100, samples=1) == 10 * PS_PER_S

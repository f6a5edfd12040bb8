"""Operator profiles of an engine: interpolation, skew, paths that agree, files that are wrong."""

from __future__ import annotations

import gzip
from dataclasses import fields
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from batchgen.cost.api import PassDetail, PassLoad
from batchgen.cost.attention_grid import Attention, AttentionGrid, SkewTable, TwoGrids
from batchgen.cost.build import build_cost
from batchgen.cost.efficiency import Efficiency
from batchgen.cost.engine_profile import EngineProfileCost
from batchgen.cost.engine_tables import read_engine_tables
from batchgen.errors import DataError, UserError
from batchgen.hardware import load_gpu
from batchgen.layout import parse_layout
from batchgen.model import load_model

SHIPPED = Path(__file__).parents[2] / "traces" / "engines" / "op_profiles"
OTHERS = Path(__file__).parents[3] / "shared/traces/llmservingsim_vllm_groundtruth/op_profiles"
CASES = [("llama-3.1-8b", "tp1", 1), ("qwen3-32b", "tp2", 2)]


@cache
def cost(model: str, spec: str, gpus: int, gpu: str = "rtx-pro-6000") -> EngineProfileCost:
    folder = SHIPPED if gpu == "rtx-pro-6000" and model != "qwen3-30b-a3b" else OTHERS
    made = build_cost(load_model(model), load_gpu(gpu), parse_layout(spec, gpus), profile=folder)
    assert isinstance(made, EngineProfileCost)
    return made


def random_detail(num_ranks: int, num_passes: int, seed: int) -> tuple[PassLoad, PassDetail]:
    """A load with up to three prompt pieces in all, and what its sums leave out."""
    load, rng = PassLoad.zeros(num_ranks, num_passes), np.random.default_rng(seed)
    pieces = int(rng.integers(0, 4))
    ranks = rng.integers(0, num_ranks, pieces)
    tokens = np.repeat(rng.integers(1, 2049, (pieces, 1)), num_passes, axis=1)
    starts = rng.integers(0, 5000, (pieces, 1)) + tokens * np.arange(num_passes)
    for rank, size, start in zip(ranks, tokens, starts, strict=True):
        load.chunk_tokens[rank] += size
        load.chunk_pairs[rank] += (start + size) ** 2 - start**2
        load.chunk_reads[rank] += start
    count = rng.integers(0, 200, (num_ranks, num_passes))
    shortest = rng.integers(1, 2000, count.shape)
    longest = shortest + rng.integers(0, 9000, count.shape)
    load.decodes[:] = count
    load.context[:] = count * (shortest + (longest - shortest) // 3)
    load.samples[:] = count
    busy = count > 0
    detail = PassDetail(longest * busy, shortest * busy, ranks, tokens, starts)
    return load, detail


# -- interpolation ---------------------------------------------------------------------------------


def toy_points() -> dict[tuple[int, int, int, int], float]:
    rng = np.random.default_rng(3)
    points = {}
    for chunk, history in product((0, 16, 32, 64), (0, 16, 64)):
        for rows, context in [(0, 0), *product((1, 2, 4), (16, 64, 256))]:
            if (chunk or not history) and (chunk or rows):
                points[chunk, history, rows, context] = float(rng.uniform(5, 50))
    return points


def by_hand(
    points: dict[Any, float], chunk: float, history: float, rows: float, kv: float
) -> float:
    """The multilinear formula, corner by corner; inside the grid, with prompts and decodes."""
    axes = ((16, 32, 64), (0, 16, 64), (1, 2, 4), (16, 64, 256))
    total = 0.0
    spans = []
    for axis, value in zip(axes, (chunk, history, rows, kv), strict=True):
        high = next(i for i in range(1, len(axis)) if value <= axis[i])
        low, top = axis[high - 1], axis[high]
        spans.append(((low, (top - value) / (top - low)), (top, (value - low) / (top - low))))
    for corner in product(*spans):
        weight = float(np.prod([part for _, part in corner]))
        total += weight * points[tuple(size for size, _ in corner)]
    return total


def test_interpolation_is_multilinear() -> None:
    points, rng = toy_points(), np.random.default_rng(0)
    grid = AttentionGrid(points)
    sizes = [rng.uniform(16, 64, 200), rng.uniform(0, 64, 200), rng.uniform(1, 4, 200)]
    sizes.append(rng.uniform(16, 256, 200))
    found = grid.time(*sizes)
    for index in range(200):
        wanted = by_hand(points, *(float(column[index]) for column in sizes))
        assert found[index] == pytest.approx(wanted)


def test_measured_points_and_what_lies_beyond() -> None:
    points = toy_points()
    grid = AttentionGrid(points)
    for point, wanted in points.items():
        assert grid.time(*(np.array([float(size)]) for size in point))[0] == pytest.approx(wanted)

    def at(*sizes: float) -> float:
        return float(grid.time(*(np.array([float(size)]) for size in sizes))[0])

    assert at(0, 0, 0, 0) == 0.0
    assert at(5, 0, 0, 0) == at(16, 0, 0, 0) == grid.launch  # the shortest prompt is a launch
    assert at(0, 0, 1, 3) == at(0, 0, 1, 16)  # and the shortest context
    slope = (points[0, 0, 4, 256] - points[0, 0, 4, 64]) / (256 - 64)
    assert at(0, 0, 4, 1000) == pytest.approx(points[0, 0, 4, 256] + slope * 744)


def test_a_hole_in_the_grid_is_named() -> None:
    points = toy_points()
    del points[32, 16, 2, 64]
    with pytest.raises(ValueError, match="chunk 32, history 16, rows 2, KV 64"):
        AttentionGrid(points)
    with pytest.raises(ValueError, match="fewer than two sizes of chunk"):
        AttentionGrid({(0, 0, 1, 16): 1.0})


def test_most_rows_were_not_measured_beside_prompts() -> None:
    """They are as much slower than alone as the row count below."""
    points = toy_points()
    for context in (16, 64, 256):
        points[0, 0, 8, context] = 2 * points[0, 0, 4, context]
    grid = AttentionGrid(points)
    found = grid.time(*(np.array([float(x)]) for x in (32, 0, 8, 64)))[0]
    alone = points[32, 0, 0, 0]
    assert found == pytest.approx(alone + 2 * (points[32, 0, 4, 64] - alone))


def test_the_closer_grid_is_used_where_it_was_measured() -> None:
    tables = read_engine_tables(SHIPPED, load_model("llama-3.1-8b"), load_gpu("rtx-pro-6000"), 1)
    grid = tables.attention.grid
    assert grid.close is not None
    assert grid.close.chunk.tolist()[1:4] == [16, 24, 36]
    assert {512, 768, 1152, 1728} <= set(grid.close.context.tolist())

    def at(grid: TwoGrids | AttentionGrid, *sizes: float) -> float:
        return float(grid.time(*(np.array([float(size)]) for size in sizes))[0])

    inside, short = (600, 800, 100, 1500), (600, 800, 100, 100)
    assert at(grid, *inside) == at(grid.close, *inside) != at(grid.wide, *inside)
    assert at(grid, *short) == at(grid.wide, *short)
    # Between 1,024 and 2,048 lies a jump, so a straight line between them is 10 % and more off.
    assert at(grid.wide, 512, 0, 128, 1700) > 1.1 * at(grid.close, 512, 0, 128, 1700)


# -- skew and several prompts ----------------------------------------------------------------------


def attention(alpha: float | None) -> Attention:
    skew = None
    if alpha is not None:
        table = np.zeros((2, 2, 2, 1, 1))
        table[0, 1, 0] = alpha  # no prompt, more than two rows, rate up to a half
        skew = SkewTable(
            chunk=np.array([0.0, 64.0]),
            rows=np.array([2.0, 99.0]),
            rate=np.array([0.5, 1.0]),
            longest=np.array([1e9]),
            history=np.array([1e9]),
            alpha=table,
        )
    return Attention(grid=TwoGrids(toy_points()), skew=skew)


def pass_time(
    one: Attention, rows: int, context: int, longest: int, shortest: int, *pieces: Any
) -> float:
    sizes = np.array([size for size, _ in pieces], dtype=np.int64).reshape(-1, 1)
    starts = np.array([start for _, start in pieces], dtype=np.int64).reshape(-1, 1)
    counts = (np.array([value]) for value in (rows, context, longest, shortest))
    return float(one.pass_time(*counts, sizes, starts)[0])


def test_uneven_contexts_lift_the_time_towards_that_of_the_longest() -> None:
    even, uneven = attention(None), attention(0.25)
    mean, most = pass_time(even, 4, 400, 100, 100), pass_time(even, 4, 4 * 220, 220, 220)
    assert pass_time(uneven, 4, 400, 100, 100) == mean
    assert pass_time(uneven, 4, 400, 220, 40) == pytest.approx(mean + 0.25 * (most - mean))
    assert pass_time(uneven, 2, 200, 220, 40) == pass_time(even, 2, 200, 220, 40)  # another bucket
    assert pass_time(uneven, 4, 480, 140, 40) == pass_time(even, 4, 480, 0, 0)  # rate 0.8


def test_further_prompts_run_without_a_launch_beside_the_largest() -> None:
    one = attention(None)
    launch = one.grid.launch
    largest, second = (48, 20), (20, 3)
    beside = pass_time(one, 3, 300, 100, 100, largest)
    alone = pass_time(one, 0, 0, 0, 0, second)
    both = pass_time(one, 3, 300, 100, 100, second, largest)
    assert both == pytest.approx(beside + max(alone - launch, 0.0))


# -- the cost model --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_runs_split_anywhere(case: tuple[str, str, int], seed: int) -> None:
    engine = cost(*case)
    load, detail = random_detail(engine.num_ranks, 8, seed)
    whole = engine.pass_ps(load, detail)
    assert whole.dtype == np.int64
    for begin, end in ((0, 1), (1, 5), (5, 8)):
        part = PassDetail(
            detail.longest[:, begin:end],
            detail.shortest[:, begin:end],
            detail.piece_ranks,
            detail.piece_tokens[:, begin:end],
            detail.piece_starts[:, begin:end],
        )
        found = engine.pass_ps(load.window(begin, end), part)
        np.testing.assert_array_equal(found, whole[begin:end])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_scalars_equal_arrays(case: tuple[str, str, int]) -> None:
    engine = cost(*case)
    load, _ = random_detail(1, 8, 5)
    whole = engine.pass_ps(load)
    for p in range(8):
        one = tuple(int(getattr(load, field.name)[0, p]) for field in fields(load))
        assert engine.pass_one_ps(*one) == engine.time_ps([one]) == whole[p]
    assert engine.pass_one_ps(0, 0) == 0
    with pytest.raises(ValueError, match="not affine"):
        engine.decode_affine(4, False)


def test_a_decode_pass_is_the_sum_of_its_rows_in_the_tables() -> None:
    """32 rows at 1,024 tokens of KV: every operator is a measured point."""
    folder, stem = SHIPPED, "RTXPRO6000__meta-llama__Llama-3.1-8B__bf16__tp1__"

    def table(kind: str) -> list[list[str]]:
        text = gzip.decompress((folder / f"{stem}{kind}.csv.gz").read_bytes()).decode()
        return [line.split(",") for line in text.splitlines()[1:]]

    dense = {row[0]: float(row[2]) for row in table("dense") if row[1] == "32"}
    head = {row[0]: float(row[2]) for row in table("per_sequence") if row[1] == "32"}
    (scores,) = (float(row[4]) for row in table("attention") if row[:4] == ["0", "0", "32", "1024"])
    names = ("qkv_proj", "rotary_emb", "o_proj", "gate_up_proj", "act_fn", "down_proj")
    layer = 2 * dense["layernorm"] + sum(dense[name] for name in names) + scores
    once = dense["embedding"] + dense["final_layernorm"] + head["lm_head"] + head["sampler"]
    wanted_us = 32 * layer + once + Efficiency().step_s * 1e6
    found = cost("llama-3.1-8b", "tp1", 1).pass_one_ps(32, 32 * 1024, samples=32)
    assert found == pytest.approx(wanted_us * 1e6, rel=1e-9)


def test_two_gpus_sum_over_their_link() -> None:
    """Two rings a layer and one gather of logits."""
    engine, gpu, model = (
        cost("qwen3-32b", "tp2", 2),
        load_gpu("rtx-pro-6000"),
        load_model("qwen3-32b"),
    )
    slow = EngineProfileCost(
        model,
        gpu,
        parse_layout("tp2", 2),
        engine.tables,
        efficiency=Efficiency(pcie_peer=0.125),
    )
    tokens, more = (
        512,
        slow.pass_one_ps(0, 0, 512, 512**2, 0, 1) - engine.pass_one_ps(0, 0, 512, 512**2, 0, 1),
    )
    sent = 2 * 64 * tokens * 5120 * 2 + 151_936  # two bytes of a logit, half of them sent
    rate = 64e9 * 0.25
    assert more == pytest.approx(sent / rate * 1e12, rel=1e-6)


def test_a_run_tells_that_it_read_an_engines_profile() -> None:
    assert cost("llama-3.1-8b", "tp1", 1).describe()["kind"] == "engine profile"


@pytest.mark.skipif(not OTHERS.is_dir(), reason="the other profiles are not here")
@pytest.mark.parametrize(
    ("model", "spec", "gpus", "gpu"),
    [
        ("llama-3.1-8b", "tp1", 1, "rtx-4090"),
        ("qwen3-30b-a3b", "tp2", 2, "rtx-pro-6000"),
        ("qwen3-30b-a3b", "dpa2+ep2", 2, "rtx-pro-6000"),
    ],
)
def test_other_profiles_can_be_read(model: str, spec: str, gpus: int, gpu: str) -> None:
    engine = cost(model, spec, gpus, gpu)
    assert (engine.tables.attention.skew is None) == (gpu == "rtx-4090")  # not measured there
    ranks = engine.num_ranks
    times = [engine.time_ps([(n, n * 1000, 0, 0, 0, n, 0)] * ranks) for n in (1, 8, 32, 128)]
    assert sorted(times) == times
    assert 2e9 < times[0] < times[-1] < 60e9


GRID = "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us"

# -- files -----------------------------------------------------------------------------------------


def write_profile(folder: Path, *, tp: int = 1, moe: bool = False, **changed: str) -> Path:
    """A small profile of Llama-3.1-8B (or Qwen3-30B-A3B) in the nested layout."""
    place = folder / "RTXPRO6000" / "model" / "bf16"
    (place / f"tp{tp}").mkdir(parents=True)
    layers = ["layernorm", "qkv_proj", "rotary_emb", "o_proj", "embedding", "final_layernorm"]
    layers += ["qk_norm"] if moe else ["gate_up_proj", "act_fn", "down_proj"]
    dense = [f"{layer},{tokens},{tokens / 10 + 1}" for layer in layers for tokens in (1, 64, 2048)]
    heads = [f"{name},{n},{n / 10}" for name in ("lm_head", "sampler") for n in (1, 256)]
    grid = [f"{','.join(map(str, point))},{time}" for point, time in toy_points().items()]
    files = {
        "dense.csv": "\n".join(["layer,tokens,time_us", *dense]),
        "per_sequence.csv": "\n".join(["layer,sequences,time_us", *heads]),
        "attention.csv": "\n".join([GRID, *grid]),
        "moe.csv": "tokens,activated_experts,time_us\n1,8,50\n64,8,60\n64,128,800\n2048,128,1000",
    }
    name = "Qwen/Qwen3-30B-A3B-Instruct-2507" if moe else "meta-llama/Llama-3.1-8B"
    meta = {"hardware": "RTXPRO6000", "model": name, "skew_fit": {"enabled": False}}
    (place / "meta.yaml").write_text(changed.pop("meta", yaml.safe_dump(meta)))
    for file, text in (files | {k.replace("__", "."): v for k, v in changed.items()}).items():
        (place / f"tp{tp}" / file).write_text(text)
    return folder


def read(folder: Path, tp: int = 1, model: str = "llama-3.1-8b") -> Any:
    return read_engine_tables(folder, load_model(model), load_gpu("rtx-pro-6000"), tp)


def test_nested_folders_are_read_too(tmp_path: Path) -> None:
    tables = read(write_profile(tmp_path))
    assert tables.layers["o_proj"].at(np.array([32.5]))[0] == pytest.approx(4.25)
    assert tables.attention.skew is None
    assert tables.experts is None


def test_a_release_has_the_sizes_of_its_model(tmp_path: Path) -> None:
    tables = read(write_profile(tmp_path, moe=True), model="qwen3-30b-a3b")
    grid = tables.experts
    found = grid.at(np.array([64.0, 64.0, 64.0]), np.array([2.0, 8.0, 68.0]))
    assert found.tolist() == pytest.approx([60.0, 60.0, 430.0])


def test_curves_go_on_beyond_their_last_point(tmp_path: Path) -> None:
    curve = read(write_profile(tmp_path)).layers["o_proj"]
    assert curve.at(np.array([4096.0]))[0] == pytest.approx(410.6)
    assert curve.at(np.array([0.5]))[0] == pytest.approx(1.1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dense__csv": "layer,tokens\nx,1"}, "field 'time_us': missing in the header"),
        ({"dense__csv": "layer,tokens,time_us\nlayernorm,1,2"}, "no points of qkv_proj"),
        ({"dense__csv": "layer,tokens,time_us\nlayernorm,1,nan"}, "dense.csv:2: field 'time_us'"),
        ({"dense__csv": "layer,tokens,time_us\nlayernorm,1.5,2"}, "expected a count, got '1.5'"),
        ({"dense__csv": "layer,tokens,time_us\nlayernorm,1"}, "2 columns, the header has 3"),
        ({"dense__csv": "layer,tokens,time_us\nlayernorm,-4,2"}, "expected a number, got '-4'"),
        ({"attention__csv": f"{GRID}\n0,0,1,16,3"}, "attention.csv: fewer than two sizes of"),
        ({"meta": "a: [1"}, "meta.yaml: cannot be read"),
        ({"meta": "- 1"}, "meta.yaml: is no mapping"),
        ({"meta": "hardware: 7\nmodel: m"}, "meta.yaml: field 'hardware': is no text"),
        ({"meta": "hardware: RTX4090\nmodel: Llama-3.1-8B"}, "none is of llama-3.1-8b on rtx-pro"),
        (
            {
                "meta": "hardware: RTXPRO6000\nmodel: Llama-3.1-8B\nskew_fit: {enabled: true}",
                "skew_fit__csv": "pc\n",
            },
            "has no buckets of skew",
        ),
    ],
)  # fmt: skip
def test_wrong_files_are_named(tmp_path: Path, changed: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(write_profile(tmp_path, **changed))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_was_not_profiled_is_named(tmp_path: Path) -> None:
    folder = write_profile(tmp_path)
    with pytest.raises(UserError, match="has no dense of tp4"):
        read(folder, tp=4)
    with pytest.raises(UserError, match="none is of qwen3-32b"):
        read(folder, model="qwen3-32b")
    with pytest.raises(UserError, match=r"has no meta\.yaml"):
        read(tmp_path / "RTXPRO6000" / "model" / "bf16" / "tp1")
    (folder / "RTXPRO6000/model/bf16/tp1/dense.csv").write_bytes(b"\x1f\x8bnot gzip")
    with pytest.raises(DataError, match="damaged"):
        read(folder)
    with pytest.raises(UserError, match="know no sub-batches"):
        build_cost(
            load_model("llama-3.1-8b"),
            load_gpu("rtx-pro-6000"),
            parse_layout("tp1", 1),
            profile=folder,
            plan_b_attn=4,
        )

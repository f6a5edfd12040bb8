"""Inter-token times of engines: cleaning counts every row once, fits against what they must find,
bars on the shipped measurements."""

from __future__ import annotations

import gzip
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchgen.cost.silicon import assess as assessing
from batchgen.cost.silicon import clean as cleaning
from batchgen.cost.silicon.assess import Assessment, assess, family, fit_launches, weighted_median
from batchgen.cost.silicon.clean import Case, Cleaned, clean
from batchgen.cost.silicon.loop import Prediction
from batchgen.cost.silicon.report import document, measure
from batchgen.cost.silicon.rows import SHIPPED, Row, read_rows
from batchgen.cost.silicon.setup import Setup, parallelism, setup
from batchgen.errors import DataError
from batchgen.hardware import load_gpu
from batchgen.layout import Layout
from batchgen.model import load_model

ROW = Row(
    line=2,
    source="source_file=2026-04-06.csv; silicon_concurrency=8",
    backend="vllm",
    version="0.12.0",
    model="meta-llama/Llama-3.1-70B",
    gpu="h100_sxm",
    precision="fp8",
    mode="agg",
    prompt_tokens=1024,
    output_tokens=1024,
    batch=8,
    tp=4,
    attention_dp=1,
    expert_tp=1,
    ep=1,
    ttft_s=0.1,
    tpot_s=0.012,
)
OTHERS = "source_file=Qwen_Qwen3-32B.csv; silicon_concurrency=8"
DYNAMO = "source_file=x.csv; dynamo_version=0.8.0"


@pytest.fixture(scope="module")
def shipped() -> tuple[int, Cleaned, Assessment]:
    return measure()


# The shipped measurements ---------------------------------------------------------------------


def test_every_row_is_told_or_left_out_for_one_reason(
    shipped: tuple[int, Cleaned, Assessment],
) -> None:
    num_rows, cleaned, _ = shipped
    rows = read_rows()
    assert num_rows == len(rows) == 3157
    assert sum(cleaned.left_out.values()) + len(cleaned.cases) == num_rows
    lines = [case.row.line for case in cleaned.cases]
    assert len(set(lines)) == len(lines)
    # What needs no prediction can be counted from the table alone.
    agg = [row for row in rows if row.mode == "agg"]
    assert cleaned.left_out[cleaning.DISAGGREGATED] == num_rows - len(agg) == 1070
    for name, reason in (("Qwen3.5", cleaning.LINEAR), ("GLM-5", cleaning.SPARSE)):
        assert cleaned.left_out[reason] == sum(name in row.model for row in agg)
    models = Counter(case.setup.model.name for case in cleaned.cases)
    assert set(models) == {
        *("deepseek-r1", "gpt-oss-120b", "llama-3.1-8b", "llama-3.1-70b"),
        *("minimax-m2.5", "qwen3-32b"),
    }


def test_the_bars_are_met(shipped: tuple[int, Cleaned, Assessment]) -> None:
    num_rows, cleaned, found = shipped
    assert found.missed == []
    overall = found.rows[0]
    assert (overall.table, overall.count) == ("all", len(cleaned.cases))
    # With room below the bars: a change of the costs that takes it should be looked at.
    assert overall.errors["physics"].median < 0.09
    assert overall.errors["left out"].median < 0.12
    assert overall.errors["corrected"].p90 < 0.25
    told = document(num_rows, cleaned, found)
    assert told["gpus_without_tables"] == ["b300"]
    for table in ("GPU", "engine", "model", "family", "precision", "GPUs", "rows"):
        counts = [row["count"] for row in told["tables"] if row["table"] == table]
        assert sum(counts) == len(cleaned.cases)


def test_what_is_shipped_is_what_its_note_says() -> None:
    note = SHIPPED.with_name("SILICON.md").read_text(encoding="utf-8")
    assert hashlib.sha256(SHIPPED.read_bytes()).hexdigest() in note


# Cleaning -------------------------------------------------------------------------------------


def predicted(tpot_s: float = 0.012, prefill_s: float = 0.04) -> Prediction:
    return Prediction(decode_s=tpot_s, prefill_s=prefill_s, tpot_s=tpot_s, launches=80.0)


def reasons(rows: Sequence[Row], prediction: Prediction | None = None) -> dict[str, int]:
    found = clean(rows, lambda one: prediction or predicted())
    assert sum(found.left_out.values()) + len(found.cases) == len(rows)
    return found.left_out


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        (cleaning.DISAGGREGATED, {"mode": "disagg"}),
        (cleaning.MISLABELLED, {"gpu": "gb200", "tp": 12}),
        (cleaning.SPECULATIVE, {"model": "nvidia/DeepSeek-R1-NVFP4", "backend": "trtllm"}),
        (cleaning.LINEAR, {"model": "Qwen/Qwen3.5-397B-A17B"}),
        (cleaning.SPARSE, {"model": "zhipuai/GLM-5"}),
        (cleaning.UNKNOWN, {"model": "nobody/Nothing-1B"}),
        (cleaning.UNKNOWN, {"gpu": "abacus"}),
        (cleaning.UNKNOWN, {"precision": "fp3"}),
        (cleaning.UNKNOWN, {"batch": 0}),
        (cleaning.UNKNOWN, {"tp": 3}),
        (cleaning.UNKNOWN, {"precision": "", "tp": 1}),  # 141 GB on 80
        (cleaning.QUEUED, {"ttft_s": 1.0 + 8 * 0.04 + 0.001}),
        (cleaning.WORKERS, {"source": DYNAMO, "tpot_s": 0.0241}),
    ],
)
def test_each_reason_is_reached(reason: str, change: dict[str, Any]) -> None:
    assert reasons(
        [ROW, replace(ROW, line=3, ttft_s=0.2, **change)]
        if "ttft_s" not in change
        else [ROW, replace(ROW, line=3, **change)]
    ) == {reason: 1}


def test_rules_stop_where_they_say() -> None:
    assert reasons([replace(ROW, ttft_s=1.0 + 8 * 0.04)]) == {}
    assert reasons([replace(ROW, source=DYNAMO, tpot_s=0.024)]) == {}
    # Far off is no reason: only a deployment of several workers is left out for its time.
    assert reasons([replace(ROW, tpot_s=0.5), replace(ROW, tpot_s=0.0001, line=3)]) == {}
    assert reasons([replace(ROW, gpu="gb200", tp=8)]) == {}
    assert (
        reasons(
            [replace(ROW, model="deepseek-ai/DeepSeek-R1", backend="sglang", gpu="h200_sxm", tp=8)]
        )
        == {}
    )


def test_duplicates() -> None:
    again = replace(ROW, line=3, version="", source="db-dump/2026-04-27")
    assert reasons([ROW, again]) == {cleaning.DUPLICATE: 1}
    assert reasons([ROW, replace(again, tpot_s=0.0121)]) == {}
    # The same run, coded as 16 and as 4 GPUs.
    coded = {"model": "openai/gpt-oss-120b", "precision": "fp4", "gpu": "h200_sxm"}
    right = replace(ROW, **coded, expert_tp=1, ep=4)
    wrong = replace(ROW, **coded, tp=16, expert_tp=4, ep=4)
    assert reasons([right, wrong]) == {cleaning.DUPLICATE: 1}


def test_flat_rows() -> None:
    slow = [replace(ROW, batch=n, tpot_s=0.025 + n * 1e-5, line=n) for n in (8, 16, 32)]
    assert reasons(slow) == {cleaning.EAGER: 3}
    assert reasons([replace(row, tpot_s=row.tpot_s - 0.002) for row in slow]) == {}  # 0.29 ms
    assert reasons([*slow, replace(ROW, batch=64, tpot_s=0.04)]) == {}  # it grows
    assert reasons([slow[0], replace(slow[0], batch=12, line=3)]) == {}  # less than twice


# What ran ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("coded", "layout", "batch"),
    [  # tp, attention_dp, expert_tp, ep, batch
        ((8, 1, 8, 1, 32), "tp8", 32),
        ((8, 1, 1, 8, 32), "tp8+ep8", 32),
        ((1, 8, 1, 8, 4), "dpa8+ep8", 4),
        ((64, 1, 8, 8, 32), "tp8+ep8", 32),
        ((16, 0, 4, 4, 32), "tp4+ep4", 32),
        ((1, 64, 8, 8, 4), "dpa8+ep8", 32),
        ((1, 4, 2, 2, 64), "dpa2+ep2", 128),
        ((4, 4, 1, 16, 8), "dpa4+ep4", 8),
        ((2, 2, 1, 4, 16), "dpa2+ep2", 16),
    ],
)
def test_parallelism(coded: tuple[int, ...], layout: str, batch: int) -> None:
    tp, ranks, expert_tp, ep, rows = coded
    row = replace(ROW, tp=tp, attention_dp=ranks, expert_tp=expert_tp, ep=ep, batch=rows)
    found = parallelism(row, load_model("minimax-m2.5"))
    assert (str(found[0]), found[1]) == (layout, batch)
    # GPUs and rows in all are those of the concurrency that the converters divided.
    if tp * ranks == found[0].gpus_per_engine:
        assert rows * max(ranks, 1) == batch * found[0].attention_dp


def test_only_ids_that_tell_are_repaired() -> None:
    row = replace(ROW, source=OTHERS, tp=4, expert_tp=2, ep=2)
    layout, _ = parallelism(row, load_model("gpt-oss-120b"))
    assert (layout.tp, layout.ep, layout.expert_tp) == (4, 2, 2)


def test_setups() -> None:
    one = setup(ROW)
    assert (one.model.weight_dtype, one.model.kv_dtype, one.spread) == ("fp8", "fp8", True)
    assert one.prompt_tokens == one.output_tokens == pytest.approx(0.9 * 1024)
    other = setup(replace(ROW, source=OTHERS))
    assert (other.model.kv_dtype, other.spread, other.prompt_tokens) == ("bf16", False, 1024.0)
    dense = setup(replace(ROW, precision="fp4", gpu="b200_sxm")).model
    assert (dense.weight_dtype, dense.expert_dtype) == ("nvfp4", "nvfp4")
    experts = {"model": "deepseek-ai/DeepSeek-V3", "backend": "sglang", "tp": 8}
    latent = setup(replace(ROW, **experts, precision="fp4", gpu="b200_sxm")).model
    assert (latent.name, latent.expert_dtype, latent.kv_dtype) == ("deepseek-r1", "nvfp4", "fp8")
    oss = setup(replace(ROW, model="openai/gpt-oss-120b", precision="fp8")).model
    assert (oss.weight_dtype, oss.expert_dtype) == ("bf16", "mxfp4")


def test_rows_beyond_the_memory_wait() -> None:
    """Four H100 hold 77 GB of 85.5 each; 17.7 GB are weights, 1 to 2 GB workspace; fp8 KV takes
    80 x 2 x 8 x 128 bytes a token."""
    some = setup(replace(ROW, batch=100_000))
    rows = 4 * (0.9 * 85.5e9 - 17.7e9 - 1.6e9) / (80 * 2 * 8 * 128) / (1.5 * 0.9 * 1024)
    assert some.running == pytest.approx(rows, rel=0.05)
    assert some.batch == 100_000
    assert setup(replace(ROW, batch=100_000, tp=8)).running > 2 * some.running
    assert setup(replace(ROW, batch=7)).running == 7


# Fits -------------------------------------------------------------------------------------------


def cases(
    engine: str, model: str, factor: float, launch_s: float, *, gpu: str = "h200", count: int = 12
) -> list[Case]:
    """Rows whose measured time is (kernels + launches) * factor, over four layouts."""
    rng = np.random.default_rng(len(engine) + len(model))
    found = []
    for number in range(count):
        kernels, launches = float(rng.uniform(0.005, 0.05)), 80.0
        setup_ = Setup(
            engine=engine,
            model=replace(load_model("llama-3.1-70b"), name=model),
            gpu=load_gpu(gpu),
            layout=Layout(tp=(1, 2, 4, 8)[number % 4]),
            batch=8,
            running=8,
            admitted=8,
            prompt_tokens=1000.0,
            output_tokens=1000.0,
            spread=True,
        )
        prediction = Prediction(decode_s=kernels, prefill_s=0.1, tpot_s=kernels, launches=launches)
        row = replace(ROW, tpot_s=(kernels + launch_s * launches) * factor)
        found.append(Case(row=row, setup=setup_, prediction=prediction))
    return found


def test_constants_are_found_and_never_negative() -> None:
    both = cases("vllm", "a", 1.0, 20e-6) + cases("trtllm", "a", 1.0, -10e-6)
    found = fit_launches(both)
    assert found["vllm"] == pytest.approx(20e-6)
    assert found["trtllm"] == 0.0


def test_weighted_median_has_the_least_sum() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        values, weights = rng.normal(size=15), rng.uniform(0.1, 2.0, 15)
        best = weighted_median(values, weights)
        sums = [float((weights * np.abs(values - at)).sum()) for at in values]
        assert float((weights * np.abs(values - best)).sum()) == pytest.approx(min(sums))


def test_factors_are_of_other_configurations() -> None:
    some = cases("vllm", "a", 1.2, 0.0) + cases("vllm", "b", 1.0, 0.0, count=40)
    found = assess(some)
    assert found.launch_s == {"vllm": 0.0}
    corrected = {row.name: row.errors["corrected"].median for row in found.rows}
    assert corrected["a"] == pytest.approx(0.0, abs=1e-9)
    assert {row.name: row.errors["physics"].bias for row in found.rows}["a"] == pytest.approx(
        1 / 1.2 - 1
    )
    # A configuration that is measured otherwise changes the others, not itself.
    odd = [
        replace(case, row=replace(case.row, tpot_s=3 * case.row.tpot_s))
        if family(case)[1] == "a" and case.setup.layout.tp == 8
        else case
        for case in some
    ]
    other = assess(odd)
    for number, case in enumerate(some):
        if case.setup.layout.tp == 8:
            assert other.predicted["corrected"][number] == pytest.approx(
                found.predicted["corrected"][number]
            )


def test_few_rows_are_not_corrected() -> None:
    few = cases("vllm", "a", 1.2, 0.0, count=8) + cases("vllm", "b", 1.0, 0.0, count=40)
    found = assess(few)
    np.testing.assert_allclose(found.predicted["corrected"][:8], found.predicted["kernels"][:8])


def test_constants_without_the_model_itself() -> None:
    some = cases("vllm", "a", 1.0, 30e-6, count=30) + cases("vllm", "b", 1.0, 10e-6, count=12)
    found = assess(some)
    assert found.launch_s["vllm"] == pytest.approx(30e-6)
    left_out = found.predicted["left out"] - found.predicted["kernels"]
    np.testing.assert_allclose(left_out[:30], 80 * 10e-6)
    np.testing.assert_allclose(left_out[30:], 80 * 30e-6)


def test_a_missed_bar_is_named() -> None:
    assert assess(cases("vllm", "a", 1.0, 20e-6)).missed == []
    rng = np.random.default_rng(0)
    wild = [
        replace(case, row=replace(case.row, tpot_s=case.row.tpot_s * float(rng.uniform(0.2, 5))))
        for case in cases("vllm", "a", 1.0, 0.0, count=40)
    ]
    assert assess(wild).missed == ["physics", "corrected"]
    with pytest.raises(ValueError, match="no rows"):
        assess([])
    assert set(assessing.BARS) <= set(assessing.KINDS)


# Reading ----------------------------------------------------------------------------------------

HEADER = (
    "id,silicon_data_source,backend,backend_version,model_path,system,precision,mode,isl,osl,"
    "batch_size,tp_size,attention_dp_size,moe_tp_size,moe_ep_size,silicon_ttft_ms,silicon_tpot_ms"
)
LINE = "a,s,vllm,1,Qwen/Qwen3-32B,h100_sxm,,agg,1024,128,16.0,2.0,,1.0,1.0,350.5,12.25"


def test_reading(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text(f"{HEADER}\n{LINE}\n")
    (row,) = read_rows(table)
    assert (row.batch, row.attention_dp, row.precision, row.line) == (16, 0, "", 2)
    assert (row.ttft_s, row.tpot_s) == pytest.approx((0.3505, 0.01225))
    zipped = tmp_path / "table.csv.gz"
    zipped.write_bytes(gzip.compress(table.read_bytes()))
    assert read_rows(zipped) == [row]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column 'id'"),
        (HEADER, "has no rows"),
        (HEADER.replace(",osl", ""), "1: has no column 'osl'"),
        (f"{HEADER}\n{LINE},7", "2: has not as many fields"),
        (f"{HEADER}\n{LINE}\na,b", "3: has not as many fields"),
        (f"{HEADER}\n{LINE.replace('16.0', 'many')}", "2: field 'batch_size': must be a number"),
        (f"{HEADER}\n{LINE.replace('16.0', '1.5')}", "must be a whole number, got '1.5'"),
        (f"{HEADER}\n{LINE.replace('16.0', '-1')}", "must be a number of 0 or more"),
        (f"{HEADER}\n{LINE.replace('16.0', 'inf')}", "must be a number of 0 or more"),
        (f"{HEADER}\n{LINE.replace('12.25', '0')}", "field 'silicon_tpot_ms': must be above 0"),
        (f"{HEADER}\n{LINE.replace('350.5', '')}", "field 'silicon_ttft_ms': must be a number"),
        (f'{HEADER}\n"{LINE}', "is no CSV table"),
    ],
)
def test_bad_tables(text: str, message: str, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text(text)
    with pytest.raises(DataError, match=message):
        read_rows(table)


def test_bad_bytes(tmp_path: Path) -> None:
    table = tmp_path / "table.csv.gz"
    for content in (b"\x1f\x8bnothing", gzip.compress(b"\xff\xfe"), b"\x00\xff\xfe\n", b"\x1f\x8b"):
        table.write_bytes(content)
        with pytest.raises(DataError):
            read_rows(table)
    table.write_bytes(gzip.compress(f"{HEADER}\n{LINE}".encode(), mtime=0)[:-12])
    with pytest.raises(DataError, match="is no CSV table"):
        read_rows(table)

"""Metrics against numbers worked out by hand, and properties over random records."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchgen.report import metrics, style, tail
from batchgen.report.record import RunRecord

S = 10**12

# Two engines: 0 with one GPU, 1 with three. Window 1 s .. 11 s (BCT 10 s, 40 GPU-seconds).
#   engine 0: prefill 1..2 s, decode 2..6 s (8 passes, 16 tokens)
#   engine 1: mixed 1..4 s, decode 4..11 s (10 passes, 10 tokens), and a ghost step 11..13 s
# GPU-seconds: prefill 1, decode 4 + 21 = 25, mixed 9, idle 40 - 35 = 5.


def hand_record(synthetic: ModuleType, **changes: Any) -> RunRecord:
    rows = synthetic.empty_columns(synthetic.ROW_COLUMNS, 4)
    rows["row"][:] = range(4)
    rows["prompt_tokens"][:] = (100, 200, 300, 400)
    rows["output_tokens"][:] = (8, 8, 11, 3)
    rows["engine"][:] = (0, 0, 1, 1)
    rows["arrival_ps"][:] = S
    rows["first_token_ps"][:] = (2 * S, 2 * S, 7 * S // 2, 2 * S)
    rows["end_ps"][:] = (6 * S, 6 * S, 11 * S, 3 * S)
    rows["preemptions"][:] = (0, 2, 0, 0)
    rows["recomputed_tokens"][:] = (0, 50, 0, 0)
    rows["adopted_tokens"][:] = (0, 0, 64, 0)
    rows["status"][:] = (0, 0, 0, 1)
    steps = synthetic.empty_columns(synthetic.STEP_COLUMNS, 5)
    steps["engine"][:] = (0, 0, 1, 1, 1)
    steps["q0"][:] = (0, 1, 0, 1, 11)
    steps["passes"][:] = (1, 8, 1, 10, 1)
    steps["start_ps"][:] = (1 * S, 2 * S, 1 * S, 4 * S, 11 * S)
    steps["duration_ps"][:] = (1 * S, 4 * S, 3 * S, 7 * S, 2 * S)
    steps["kind"][:] = (2, 0, 1, 0, 0)
    steps["running"][:] = (2, 2, 2, 1, 0)
    steps["prompt_tokens"][:] = (536, 0, 400, 0, 0)
    steps["output_tokens"][:] = (2, 16, 2, 10, 0)
    steps["kv_pages"][:] = (4, 8, 10, 15, 0)
    steps["flops"][:] = (10.0, 20.0, 30.0, 20.0, 0.0)
    steps["hbm_bytes"][:] = (2.0, 4.0, 6.0, 8.0, 0.0)
    fields: dict[str, Any] = {
        "policy": "vllm",
        "backend": "sim",
        "model": "toy",
        "gpu": "h20",
        "layout": "tp1",
        "num_gpus": 4,
        "config": {},
        "rows": rows,
        "row_reasons": ["length", "length", "stop", "bad_row"],
        "steps": steps,
        "marks": [{"t_ps": S, "engine": 0, "kind": "fault", "text": "slow"}],
        "engines": [
            {"engine": 0, "node": 0, "num_gpus": 1, "hbm_pages_total": 10}
            | {"peak_flops": 4.0, "peak_bw": 1.0},
            {"engine": 1, "node": 0, "num_gpus": 3, "hbm_pages_total": 30}
            | {"peak_flops": 12.0, "peak_bw": 3.0},
        ],
        "wall_s": 0.25,
        "gpu_price_per_hour": 1.8,
    }
    return RunRecord(**(fields | changes))


def test_every_metric_of_a_hand_made_record(synthetic: ModuleType) -> None:
    expected = {
        "policy": "vllm",
        "overrides": "",
        "backend": "sim",
        "model": "toy",
        "gpu": "h20",
        "layout": "tp1",
        "num_gpus": 4,
        "num_engines": 2,
        "rows": 4,
        "finished_rows": 3,
        "failed_rows": 1,
        "failed_by_code": {"bad_row": 1},
        "bct_s": 10.0,
        "output_tokens_per_s": 2.7,  # 27 tokens of finished rows
        "total_tokens_per_s": 62.7,
        "busy_fraction": 35 / 40,
        "mfu": 80 / 160,
        "mbu": 20 / 40,
        "tail10_s": 0.0,  # 90 % of 4 rows are all 4
        "done99_s": 10.0,
        **dict.fromkeys(map(tail.column, tail.CAUSES)),  # nobody has taken the tail apart
        "barrier_prompts_s": None,
        "barrier_decodes_s": None,
        "without_faults_bct_s": None,
        "without_faults_done99_s": None,
        "without_faults_tail10_s": None,
        "predictor_tau": None,  # nobody has looked
        "predicted_rows": None,
        # Of the rows that finished: first tokens at 2, 2 and 3.5 s, 7, 7 and 10 tokens after them.
        "mean_ttft_s": 4.5 / 3,
        "p50_ttft_s": 1.0,
        "p90_ttft_s": 1.0 + 0.8 * 1.5,
        "p99_ttft_s": 1.0 + 0.98 * 1.5,
        "mean_tpot_s": (4 / 7 + 4 / 7 + 7.5 / 10) / 3,
        "p50_tpot_s": 4 / 7,
        "p90_tpot_s": 4 / 7 + 0.8 * (0.75 - 4 / 7),
        "p99_tpot_s": 4 / 7 + 0.98 * (0.75 - 4 / 7),
        "mean_latency_s": 20 / 3,
        "p50_latency_s": 5.0,
        "p90_latency_s": 5.0 + 0.8 * 5.0,
        "p99_latency_s": 5.0 + 0.98 * 5.0,
        "preemptions": 2,
        "recomputed_tokens": 50,
        "adopted_tokens": 64,
        "prefix_hit_fraction": 64 / (64 + 936),
        "migrations": 0,
        "suspensions": 0,
        "kv_peak_fraction": 0.8,  # engine 0: 8 of 10
        "kv_mean_fraction": (4 * 1 + 8 * 4 + 10 * 3 + 15 * 7) / (40 * 10),
        "mean_running": (2 * 1 + 2 * 4 + (2 * 3 - 1) + 1 * 7) / 10,  # one ends 1 s before its step
        "mean_decode_batch": 28 / 20,  # 19 decode passes, a ghost's among them, and a mixed one
        "gpu_hours": 40 / 3600,
        "cost_usd": 1.8 * 40 / 3600,
        "passes": 21,
        "steps": 5,
        "decode_s": 25 / 4,
        "mixed_s": 9 / 4,
        "prefill_s": 1 / 4,
        "idle_s": 5 / 4,
        "longest_row_bound_s": None,  # no cost model worked any out
        "work_bound_s": None,
        "balance_bound_s": 35 / 4,  # the longest row alone: 10 passes of 0.5 s
        "prompt_tokens": 600,
        "output_tokens": 27,
        "faults": 1,
        "residual": None,
        "layout_search": None,
        "guessed_kernels": "",
        "wall_s": 0.25,
    }
    result = metrics.summary(hand_record(synthetic))
    assert list(result) == list(expected)
    assert result.pop("failed_by_code") == expected.pop("failed_by_code")
    assert result == pytest.approx(expected)


def test_times_of_rows_are_none_where_no_row_has_them(synthetic: ModuleType) -> None:
    record = hand_record(synthetic)
    record.rows["first_token_ps"][:] = -1
    found = metrics.row_statistics(record)
    assert found["mean_ttft_s"] is found["p99_tpot_s"] is None
    assert found["mean_latency_s"] == pytest.approx(20 / 3)
    record.rows["status"][:] = 1
    assert set(metrics.row_statistics(record).values()) == {None}


def test_summary_has_every_key_that_the_design_promises(synthetic: ModuleType) -> None:
    promised = {
        *("policy", "bct_s", "output_tokens_per_s", "total_tokens_per_s", "busy_fraction"),
        *("tail10_s", "preemptions", "recomputed_tokens", "kv_peak_fraction", "gpu_hours"),
        *("cost_usd", "passes", "steps", "wall_s"),
    }
    assert promised <= set(metrics.summary(hand_record(synthetic)))


@pytest.mark.parametrize(("num_rows", "expected"), [(1, 0), (9, 0), (10, 1), (11, 1), (100, 10)])
def test_tail_counts_from_the_end_of_ninety_percent(
    synthetic: ModuleType, num_rows: int, expected: int
) -> None:
    record = hand_record(synthetic)
    record.rows = synthetic.empty_columns(synthetic.ROW_COLUMNS, num_rows)
    record.rows["end_ps"][:] = np.arange(1, num_rows + 1)[::-1] * S
    assert metrics.tail10_s(record) == expected


def test_a_long_row_is_a_bound_of_its_own(synthetic: ModuleType) -> None:
    record = hand_record(synthetic)
    record.rows["output_tokens"][2] = 20  # 19 passes of 0.5 s = 9.5 s, more than 8.75 s of work
    assert metrics.balance_bound_s(record) == pytest.approx(9.5)
    record.rows["output_tokens"][2] = 1000
    assert metrics.balance_bound_s(record) == 10.0  # what was reached is no less than the bound


def test_gpus_without_an_engine_are_idle(synthetic: ModuleType) -> None:
    record = hand_record(synthetic, num_gpus=8)
    assert metrics.busy_fraction(record) == pytest.approx(35 / 80)
    assert metrics.time_split_s(record)["idle"] == pytest.approx(45 / 8)


def test_unknown_hardware_and_empty_runs_give_none_not_nonsense(synthetic: ModuleType) -> None:
    record = hand_record(synthetic, gpu_price_per_hour=0.0)
    record.steps["flops"][:] = 0
    record.engines[0]["peak_bw"] = record.engines[1]["peak_bw"] = 0.0
    result = metrics.summary(record)
    assert (result["mfu"], result["mbu"], result["cost_usd"]) == (None, None, None)

    nothing = synthetic.toy_record(num_rows=0)
    result = metrics.summary(nothing)
    assert result["bct_s"] == 0
    assert result["output_tokens_per_s"] is None
    assert result["busy_fraction"] is None
    json.dumps(result, allow_nan=False)


def test_sums_survive_clusters_beyond_int64(synthetic: ModuleType) -> None:
    record = hand_record(synthetic, num_gpus=10**7)
    day = 86_400 * S
    record.engines[1]["num_gpus"] = 10**7 - 1
    for column in ("arrival_ps", "end_ps"):
        record.rows[column] *= day // S
    for column in ("start_ps", "duration_ps"):
        record.steps[column] *= day // S
    split = metrics.time_split_s(record)
    assert sum(split.values()) == pytest.approx(metrics.bct_s(record))
    assert 0 <= metrics.busy_fraction(record) <= 1


def test_columns_are_checked(synthetic: ModuleType) -> None:
    with pytest.raises(ValueError, match="row_reasons has 1 entries"):
        hand_record(synthetic, row_reasons=["length"])
    with pytest.raises(ValueError, match=r"steps lacks the columns"):
        hand_record(synthetic, steps={})
    floats = dict(hand_record(synthetic).rows, end_ps=np.array([1.5, 2.5, 3.5, 4.5]))
    with pytest.raises(ValueError, match=r"rows\['end_ps'\] is float64, not int64"):
        hand_record(synthetic, rows=floats)
    small = {k: v.astype(np.int32) for k, v in synthetic.toy_record(num_rows=4).rows.items()}
    small["end_ps"] = np.full(4, 2 * S)
    assert hand_record(synthetic, rows=small).rows["status"].dtype == np.int64
    with pytest.raises(ValueError, match=r"engines that are not in engines: \[0, 1\]"):
        hand_record(synthetic, engines=[])


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    num_rows=st.integers(1, 40),
    num_engines=st.integers(1, 6),
    gpus=st.integers(1, 3),
    slots=st.integers(1, 9),
    refill=st.booleans(),
    seed=st.integers(0, 999),
)
def test_fractions_and_parts_stay_in_bounds(
    synthetic: ModuleType,
    num_rows: int,
    num_engines: int,
    gpus: int,
    slots: int,
    refill: bool,
    seed: int,
) -> None:
    record = synthetic.toy_record(
        num_rows=num_rows,
        num_engines=num_engines,
        gpus_per_engine=gpus,
        slots=slots,
        refill=refill,
        seed=seed,
    )
    result = metrics.summary(record)
    bct = result["bct_s"]
    assert 0 <= result["busy_fraction"] <= 1
    assert 0 <= result["tail10_s"] <= bct
    assert 0 < result["balance_bound_s"] <= bct
    parts = [result[f"{k}_s"] for k in ("decode", "mixed", "prefill", "idle")]
    assert min(parts) >= 0
    assert sum(parts) == pytest.approx(bct)
    assert 0 <= result["kv_mean_fraction"] <= result["kv_peak_fraction"] <= 1
    assert result["mean_decode_batch"] is None or 0 < result["mean_decode_batch"] <= slots
    assert result["mean_running"] <= slots * num_engines
    order = np.random.default_rng(seed).permutation(len(record.steps["q0"]))
    record.steps = {name: column[order] for name, column in record.steps.items()}
    shuffled = metrics.summary(record)
    assert shuffled.pop("failed_by_code") == result.pop("failed_by_code") == {}
    assert shuffled == pytest.approx(result)  # the order of steps carries no meaning


@pytest.mark.parametrize(
    ("policies", "changes", "expected"),
    [
        (["vllm"], ["a.b=1"], ["vllm"]),
        (["vllm", "orca"], ["a.b=1", ""], ["vllm", "orca"]),
        (["vllm", "vllm"], ["", "a.b=1"], ["vllm", "vllm a.b=1"]),
        (["vllm", "vllm"], ["a.b=1", "a.b=1"], ["vllm (1)", "vllm (2)"]),
        (["vllm", "vllm", "vllm"], ["", "a.b=1", ""], ["vllm (1)", "vllm a.b=1", "vllm (2)"]),
    ],
)
def test_runs_have_names_of_their_own(
    policies: list[str], changes: list[str], expected: list[str]
) -> None:
    assert metrics.names(policies, changes) == expected


def test_what_was_changed_is_told(synthetic: ModuleType) -> None:
    record = hand_record(synthetic)
    record.config["job"] = {"overrides": [["order.part", "longest"], ["plan.depth", "2"]]}
    assert metrics.summary(record)["overrides"] == "order.part=longest plan.depth=2"


def test_a_policy_looks_the_same_in_every_figure() -> None:
    alone = {name: style.looks([name])[0] for name in style.POLICIES}
    for names in (["orca", "mine", "vllm"], ["batchgen", "vllm", "vllm", "static"]):
        looks = style.looks(names)
        assert len(set(looks)) == len(names)
        for index, name in enumerate(names):
            if name in alone and name not in names[:index]:
                assert looks[index] == alone[name]
    assert len(set(style.looks([f"p{number}" for number in range(8)]))) == 8

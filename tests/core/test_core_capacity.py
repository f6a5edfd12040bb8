"""Rows that can never fit end by name, with the number that was short, and spare the others."""

from __future__ import annotations

import pytest
from core_cases import NAMES, Case, Row, run
from core_invariants import Invariants

from batchgen.log import Entry
from batchgen.runtime.core import Runtime
from batchgen.step import Step


@pytest.mark.parametrize("preset", NAMES)
@pytest.mark.parametrize("host", [0, 8, 10_000])
@pytest.mark.parametrize("depth", [1, 2])
def test_rows_too_large_fail_by_name_and_spare_the_rest(preset: str, host: int, depth: int) -> None:
    """Larger than the pool; outgrowing the pool alone; just fitting; and a small one behind."""
    rows = (
        Row(prompt=100, budget=5, output=5),  # 26 pages of 8
        Row(prompt=10, budget=90, output=90),  # 3 pages, then far more than 8
        Row(prompt=27, budget=5, output=5),  # 7 pages, then 8
        Row(prompt=1, budget=1, output=1),
    )
    for seqs in (1, 4):
        case = Case(preset=preset, rows=rows, hbm_pages=8, host_pages=host, seqs=seqs, depth=depth)
        outcome = run(case, checker=Invariants(case))
        assert outcome.reasons == {0: "capacity", 1: "capacity", 2: "length", 3: "length"}
        assert outcome.walker.why[0] == "100 tokens and the next need 26 pages of 4, a rank has 8"
        assert outcome.walker.why[1] == "needs 9 pages of 4 tokens, its rank has 8"


def test_a_row_larger_than_the_watermark_leaves_runs_alone() -> None:
    """Admission keeps a part of the pool free; an empty rank takes the next row all the same."""
    case = Case(
        preset="vllm",
        rows=(Row(prompt=30, budget=1, output=1), Row(prompt=4, budget=2, output=2)),
        hbm_pages=8,
        overrides={"admission.watermark": "0.5"},
    )
    assert run(case, checker=Invariants(case)).reasons == {0: "length", 1: "length"}


def test_a_host_that_is_full_fails_nobody() -> None:
    """Rows that fit in HBM end as they should, however small the host share is."""
    rows = tuple(Row(prompt=20, budget=40, output=40) for _ in range(12))
    for host in (0, 1, 7, 20):
        for depth in (1, 2):
            case = Case(
                preset="batchgen", rows=rows, hbm_pages=40, host_pages=host, engines=2, depth=depth
            )
            outcome = run(case, checker=Invariants(case))
            assert set(outcome.reasons.values()) == {"length"}


@pytest.mark.parametrize("preset", ["orca", "static"])
def test_no_pass_exceeds_the_token_budget(preset: str) -> None:
    rows = tuple(Row(prompt=40, budget=9, output=1 + index % 9) for index in range(20))
    case = Case(preset=preset, rows=rows, hbm_pages=1000, seqs=20, budget=100)
    outcome = run(case)
    sizes = [
        len(decodes) + sum(size for _, _, size, _ in chunks)
        for _, decodes, chunks, _ in outcome.passes()[0]
    ]
    assert 50 < max(sizes) <= 100


@pytest.mark.parametrize("preset", ["static", "vllm", "orca"])
def test_dead_rows_count_in_the_token_budget(preset: str) -> None:
    """Rows that have ended in a static batch are computed in every pass, and have their places."""
    rows = tuple(Row(prompt=7, budget=40, output=1 + 9 * (index % 4)) for index in range(60))
    overrides = {} if preset == "static" else {"batching.part": "static"}
    case = Case(preset=preset, overrides=overrides, rows=rows, hbm_pages=1000, seqs=8, budget=32)
    most = [0]

    def computed(runtime: Runtime, entry: Entry) -> None:
        for action in entry.actions:
            if isinstance(action, Step):
                rank = runtime.cluster.engines[0].ranks[0]
                sizes = [size for _, _, size, _ in action.chunks]
                prompts = max(sizes, default=0) * len(sizes)
                most.append(prompts + len(rank.running) + len(rank.dead))
                assert len(rank.running) + len(rank.dead) + len(rank.prefilling) <= 8

    run(case, checker=computed)
    assert 16 < max(most) <= 32


def test_lanes_share_the_pass_budget() -> None:
    """Short prompts get their share of every pass while a long one is prefilled."""
    rows = (Row(prompt=6400, budget=2, output=2), *[Row(prompt=16, budget=2, output=2)] * 20)
    first = {}
    for order in ("arrival", "by-prompt"):
        overrides = {"order.part": order}
        if order == "by-prompt":
            overrides |= {"order.threshold_tokens": "100", "order.long_share": "0.5"}
        case = Case(preset="vllm", overrides=overrides, rows=rows, hbm_pages=4000, seqs=64)
        outcome = run(case)
        first[order] = outcome.times()[0]
        if order == "by-prompt":
            early = [chunks for _, _, chunks, _ in outcome.passes()[0]][:5]
            assert all(sum(size for row, _, size, _ in one if row == 0) >= 30 for one in early)
    assert max(first["by-prompt"][1:]) < first["by-prompt"][0] / 5
    assert min(first["arrival"][1:]) >= first["arrival"][0]


def test_the_peak_of_used_pages_is_that_of_the_end_of_a_step() -> None:
    rows = (Row(prompt=2, budget=90, output=90),)
    peaks = []
    for reference in (False, True):
        seen = [0]
        case = Case(preset="vllm", rows=rows, hbm_pages=30)
        run(case, reference=reference, checker=lambda rt, _, s=seen: s.append(rt.kv_pages(0)))
        peaks.append(max(seen))
    assert peaks == [23, 23]  # 91 tokens with KV, in pages of 4


def test_a_row_that_fits_does_not_fail_because_others_pause() -> None:
    """The last row of a rank pauses for pages that a row about to grow, or a dead row, holds."""
    growing = Case(
        preset="vllm",
        rows=(
            Row(prompt=34, budget=19, output=18),
            Row(prompt=21, budget=36, output=4),
            Row(prompt=31, budget=20, output=8, stages=((1, 6, 30000), (7, 9, 400000))),
        ),
        overrides={"order.part": "by-prompt", "order.threshold_tokens": "4"},
        engines=2,
        hbm_pages=11,
        page=8,
        boundary=16,
        seqs=64,
        copy_ps=10,
    )
    growing.overrides["order.long_share"] = "0.8"
    dead = Case(
        preset="static",
        rows=(
            Row(prompt=56, budget=31, output=7, stages=((3, 10, 0), (2, 9, 0))),
            Row(prompt=17, budget=33, output=19, stages=((8, 7, 0), (9, 4, 1))),
            Row(prompt=40, budget=58, output=1),
            Row(prompt=29, budget=31, output=21),
        ),
        overrides={
            "order.part": "by-prompt",
            "order.threshold_tokens": "16",
            "order.long_share": "0.3",
            "admission.part": "lazy-pages",
        },
        engines=4,
        roles=("prefill", "prefill", "decode", "decode"),
        engines_per_node=2,
        hbm_pages=17,
        page=8,
        boundary=5,
        seqs=64,
        depth=2,
        bad_copies=4,
    )
    for case in (growing, dead):
        outcome = run(case, checker=Invariants(case))
        assert set(outcome.reasons.values()) <= {"stop", "length"}

"""The tail by cause: loads in which exactly one thing is wrong, and that it always adds up."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchgen.policy.presets import PRESETS
from batchgen.report.metrics import summary
from batchgen.report.tail import CAUSES, column, tail_line
from batchgen.sim.faults import Fault
from batchgen.sim.run import simulate
from batchgen.sim.tail import speeds_of
from batchgen.simjob import SimJob


def simulated(
    folder: Path,
    rows: Iterable[tuple[int, int]],
    faults: Iterable[dict[str, Any]] = (),
    **job: Any,
) -> dict[str, Any]:
    """The summary of (prompt, output) rows on A100s with Llama-3.1-8B."""
    trace, trouble = folder / "trace.jsonl", folder / "faults.jsonl"
    trace.write_text(
        "".join(json.dumps({"prompt_tokens": p, "output_tokens": o}) + "\n" for p, o in rows)
    )
    lines = [json.dumps(one) for one in faults]
    trouble.write_text("\n".join(lines))
    machine: dict[str, Any] = {"model": "llama-3.1-8b", "gpu": "a100-80g", "layout": "tp1"}
    machine |= {"policy": "vllm", "faults": str(trouble) if lines else None}
    return summary(simulate(SimJob(trace=str(trace), **(machine | job))))


def shares(result: dict[str, Any]) -> dict[str, float]:
    """Parts of the tail by cause; they add up to it."""
    parts = {cause: result[column(cause)] for cause in CAUSES}
    assert sum(parts.values()) == pytest.approx(result["tail10_s"], rel=1e-9)
    assert min(parts.values()) >= 0
    return {cause: part / result["tail10_s"] for cause, part in parts.items()}


def test_one_long_row(tmp_path: Path) -> None:
    found = simulated(tmp_path, [(100, 50)] * 39 + [(100, 1000)], gpus=4)
    assert shares(found)["long_rows"] > 0.97
    assert "long rows" in str(tail_line(found))


@pytest.mark.parametrize("per_engine", [1, 6])
def test_one_slow_device(tmp_path: Path, per_engine: int) -> None:
    slow = [{"at_s": 0, "kind": "slow", "gpu": 3, "factor": 2}]
    rows = [(100, 300)] * (16 * per_engine)
    found = simulated(tmp_path, rows, slow, gpus=16)
    assert shares(found)["slow_devices"] > 0.95
    assert found["tail10_s"] == pytest.approx(found["bct_s"] / 2, rel=0.05)


def test_one_lost_device(tmp_path: Path) -> None:
    """Its row is computed again elsewhere; there it decodes beside another one, first while others
    are busy too (other rows), then while they have nothing to do (imbalance)."""
    lost = [{"at_s": 3, "kind": "lost", "gpu": 3}]
    found = simulated(tmp_path, [(16_000, 300)] * 32, lost, gpus=32)
    parts = shares(found)
    assert parts["slow_devices"] > 0.75
    assert parts["long_rows"] < 0.02
    assert found["recomputed_tokens"] > 16_000


def test_one_engine_with_all_the_work(tmp_path: Path) -> None:
    """Ten rows after each other on one engine while 15 have nothing to do: had they been spread,
    one row's time would remain, and that is long rows'."""
    rows = [(10, 500 if i % 16 == 0 else 1) for i in range(160)]
    found = simulated(tmp_path, rows, gpus=16, overrides=(("plan.max_num_seqs", "1"),))
    parts = shares(found)
    assert parts["imbalance"] == pytest.approx(0.9, abs=0.02)
    assert parts["long_rows"] == pytest.approx(0.1, abs=0.02)


def test_one_row_without_a_seat(tmp_path: Path) -> None:
    """Twenty rows, nineteen seats: the last row waits for one while nobody is idle."""
    found = simulated(tmp_path, [(10, 400)] * 20, gpus=1, overrides=(("plan.max_num_seqs", "19"),))
    assert shares(found)["memory"] > 0.95


def test_one_row_without_pages(tmp_path: Path) -> None:
    """The same for want of pages: nineteen rows fill the pool to their ends."""
    less = (("plan.memory_fraction", "0.25"),)
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"prompt_tokens": 10, "output_tokens": 2}\n')
    job = SimJob(
        trace=str(trace),
        model="llama-3.1-8b",
        gpu="a100-80g",
        gpus=1,
        layout="tp1",
        policy="orca",
        overrides=less,
    )
    pages = simulate(job).config["plan"]["hbm_pages_per_rank"]
    tokens = pages // 19 * simulate(job).config["plan"]["page_tokens"]
    rows = [(tokens - 400, 400)] * 20
    found = simulated(tmp_path, rows, gpus=1, policy="orca", overrides=less)
    assert shares(found)["memory"] > 0.9


def test_one_uneven_engine(tmp_path: Path) -> None:
    """Sixteen engines of four ranks in lockstep, a row on each; one rank of the first has all the
    context of its engine, elsewhere it is spread evenly. What is no barrier is the longer prompt of
    that row, and idle engines in the end."""

    def row(i: int) -> tuple[int, int]:
        engine, rank = i % 16, i // 16
        return (8000, 6000) if engine else (31_970 if rank == 0 else 10, 6000)

    machine = {"model": "qwen3-30b-a3b", "gpu": "h100", "layout": "dpa4,dp16", "gpus": 64}
    found = simulated(tmp_path, [row(i) for i in range(16 * 4)], **machine)
    assert shares(found)["barrier"] > 0.75


def test_few_rows_on_many_ranks_are_no_barrier(tmp_path: Path) -> None:
    """Rows cannot be cut: three on four ranks are as even as can be."""
    machine = {"model": "qwen3-30b-a3b", "gpu": "h100", "layout": "dpa4,dp1", "gpus": 4}
    rows = [(100, 50)] * 37 + [(100, 1500)] * 3
    parts = shares(simulated(tmp_path, rows, **machine))
    assert parts["barrier"] < 0.02
    assert parts["long_rows"] > 0.8


def test_rows_with_bodies_have_no_causes(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    stage = {"prompt_tokens": 5, "output_tokens": 5, "wait_s": 3}
    rows = [
        {"prompt_tokens": 9, "output_tokens": 9, "stages": [stage] * (i == 0)} for i in range(30)
    ]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = SimJob(trace=str(trace), model="llama-3.1-8b", gpu="a100-80g", gpus=1, layout="tp1")
    found = summary(simulate(job))
    assert found["tail10_s"] > 0
    assert {found[column(cause)] for cause in CAUSES} == {None}
    assert tail_line(found) is None


def test_speeds_follow_the_worst_trouble() -> None:
    faults = [
        Fault(10, "slow", 0, 2000),
        Fault(20, "lost", 1),
        Fault(25, "slow", 1, 3000),
        Fault(30, "back", 1),
        Fault(40, "slow", 1, 1000),
    ]
    speeds = speeds_of(faults, 4, (2, 2))
    assert speeds[0] == speeds[1] == [(0, 1000), (10, 2000), (20, 0), (30, 3000), (40, 2000)]
    assert speeds[2] == speeds[3] == [(0, 1000)]


MACHINES = (
    {"gpus": 4, "layout": "tp1"},
    {"gpus": 8, "layout": "tp2,pp2"},
    {"gpus": 8, "layout": "dpa4+ep4", "model": "qwen3-30b-a3b", "gpu": "h100"},
)
WHERE = {"at_s": st.floats(0, 20), "gpu": st.integers(0, 3)}
TROUBLE = st.one_of(
    st.fixed_dictionaries(
        WHERE | {"kind": st.just("slow"), "factor": st.sampled_from([0.5, 2, 5])}
    ),
    st.fixed_dictionaries(WHERE | {"kind": st.just("host"), "factor": st.sampled_from([2, 5])}),
    st.fixed_dictionaries(WHERE | {"kind": st.just("notice"), "deadline_s": st.floats(0, 20)}),
    st.fixed_dictionaries(WHERE | {"kind": st.sampled_from(["lost", "back"])}),
    st.fixed_dictionaries(
        {"at_s": st.floats(0, 20), "kind": st.just("skew"), "factor": st.sampled_from([0.0, 0.8])}
    ),
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(
        st.tuples(st.sampled_from([1, 50, 3000]), st.sampled_from([1, 5, 100, 900])),
        min_size=1,
        max_size=40,
    ),
    times=st.integers(1, 6),
    machine=st.sampled_from(MACHINES),
    policy=st.sampled_from(sorted(PRESETS)),
    trouble=st.lists(TROUBLE, max_size=4),
    more=st.sampled_from([(), (("plan.max_num_seqs", "3"),), (("plan.memory_fraction", "0.5"),)]),
    depth=st.sampled_from(["1", "2"]),
)
def test_it_always_adds_up(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[int, int]],
    times: int,
    machine: dict[str, Any],
    policy: str,
    trouble: list[dict[str, Any]],
    more: tuple[tuple[str, str], ...],
    depth: str,
) -> None:
    if machine.get("model"):
        more = tuple(pair for pair in more if pair[0] != "plan.memory_fraction")
    if policy in ("static", "orca"):
        depth = "1"
    found = simulated(
        tmp_path_factory.mktemp("tail"),
        rows * times,
        trouble,
        **machine,
        policy=policy,
        overrides=(*more, ("plan.depth", depth)),
    )
    if found["tail10_s"]:
        shares(found)
    else:
        assert {found[column(cause)] for cause in CAUSES} == {None}

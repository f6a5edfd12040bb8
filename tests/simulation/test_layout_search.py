"""Layouts by simulation: what is tried, and that the best is found and run as if it were given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgen.errors import UserError
from batchgen.layout import check_layout, parse_layout
from batchgen.layout_search import search
from batchgen.layouts import candidates
from batchgen.model import load_model
from batchgen.report.metrics import bct_s, summary
from batchgen.search import estimate, find
from batchgen.search.estimate import Estimator
from batchgen.search.fit import Fitter
from batchgen.search.space import LAYOUTS, Candidate
from batchgen.sim.run import simulate
from batchgen.simjob import SimJob
from batchgen.trace.schema import load
from batchgen.trace.table import Trace


def load_of(path: Path, rows: Sequence[tuple[int, int]]) -> str:
    file = path / "trace.jsonl"
    lines = [{"prompt_tokens": prompt, "output_tokens": output} for prompt, output in rows]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(file)


def ragged(count: int, seed: int = 0) -> list[tuple[int, int]]:
    rng = np.random.default_rng(seed)
    prompts = np.clip(rng.lognormal(6.5, 0.8, count), 1, 8000).astype(int)
    outputs = np.clip(rng.lognormal(5.5, 0.9, count), 1, 4000).astype(int)
    return list(zip(prompts.tolist(), outputs.tolist(), strict=True))


@settings(deadline=None)  # the first example reads the catalog
@given(
    model=st.sampled_from(["llama-3.1-8b", "qwen3-30b-a3b", "deepseek-r1", "mixtral-8x7b"]),
    gpus=st.sampled_from([1, 2, 6, 8, 16, 24, 72, 128]),
    node=st.sampled_from([1, 4, 8, 72]),
)
def test_candidates_are_layouts_of_the_model_on_all_gpus(model: str, gpus: int, node: int) -> None:
    spec = load_model(model)
    found = candidates(spec, gpus, min(node, gpus))
    piped = candidates(spec, gpus, min(node, gpus), pipelines=True)
    assert set(found) == {one for one in piped if one.pp == 1}
    for layout in piped:
        check_layout(spec, layout)
        assert layout.num_gpus == gpus
        assert layout == parse_layout(str(layout), gpus)
    assert len(set(found)) == len(found) > 0
    for layout in found:
        check_layout(spec, layout)
        assert layout.num_gpus == gpus
        size = layout.gpus_per_engine
        assert min(node, gpus) % size == 0 or size % min(node, gpus) == 0
        assert layout.ep in (1, size)
        assert spec.is_moe or layout.attention_dp == 1


CASES = (
    ("llama-3.1-8b", "a100-80g", 4, 150, "vllm"),
    ("llama-3.1-8b", "a100-80g", 4, 900, "batchgen"),
    ("qwen3-32b", "h100", 4, 150, "orca"),
    ("qwen3-30b-a3b", "h100", 2, 300, "vllm"),
    ("qwen3-30b-a3b", "h100", 4, 100, "static"),
)


@pytest.mark.parametrize(("model", "gpu", "gpus", "rows", "policy"), CASES)
def test_nothing_that_was_left_out_is_better(
    tmp_path: Path, model: str, gpu: str, gpus: int, rows: int, policy: str
) -> None:
    job = SimJob(
        trace=load_of(tmp_path, ragged(rows)), model=model, gpu=gpu, gpus=gpus, policy=policy
    )
    trace = load(job.trace)
    record = search(job, simulate, trace)
    every = [
        Candidate(layout=layout, options=options)
        for layout in {one.candidate.layout for one in Fitter(job, trace, LAYOUTS).layouts()}
        for options in [
            (),
            *((("plan.prefill_engines", str(p)),) for p in range(1, layout.num_engines)),
        ]
    ]
    times = {str(one): bct_s(simulate(one.of(job), trace=trace)) for one in every}
    told = record.config["layout_search"]
    won = told["candidates"][0]
    named = " ".join([won["layout"], *(f"{k}={v}" for k, v in won["options"].items())])
    assert bct_s(record) == times[named]  # searching changes nothing of the run itself
    assert times[named] <= 1.03 * min(times.values())
    assert record.config["job"]["overrides"] == [list(pair) for pair in won["options"].items()]
    assert {one["layout"] for one in told["candidates"]} == {str(one.layout) for one in every}
    for one in told["candidates"]:
        time = times[" ".join([one["layout"], *(f"{k}={v}" for k, v in one["options"].items())])]
        if one["how"] == "simulated":
            assert one["seconds"] == time
        elif one["how"] in ("at least", "ideal passes"):
            assert time > 0.97 * times[named]
    assert record.config["layout_reason"].startswith(f"{named}: the fastest of")
    assert summary(record)["layout_search"]["candidates"] == len(told["candidates"])


def test_the_search_is_the_same_on_two_processes(tmp_path: Path) -> None:
    job = SimJob(trace=load_of(tmp_path, ragged(300)), model="qwen3-30b-a3b", gpu="h100", gpus=4)
    trace = load(job.trace)
    one, two = (search(job, simulate, trace, workers=workers) for workers in (1, 2))
    assert one.config["layout_search"] == two.config["layout_search"]
    assert one.config["layout_reason"] == two.config["layout_reason"]
    np.testing.assert_array_equal(one.rows["end_ps"], two.rows["end_ps"])


class Spy:
    """The simulator, with a list of what it was asked for."""

    def __init__(self) -> None:
        self.jobs: list[tuple[SimJob, int]] = []

    def __call__(
        self, job: SimJob, *, progress: Any = None, trace: Trace | None = None, part: bool = False
    ) -> Any:
        assert trace is not None
        self.jobs.append((job, len(trace)))
        return simulate(job, progress=progress, trace=trace, part=part)


def test_large_loads_are_sampled_and_the_winner_runs_whole(tmp_path: Path) -> None:
    job = SimJob(trace=load_of(tmp_path, ragged(4000)), model="llama-3.1-8b", gpu="h100", gpus=8)
    spy, trace = Spy(), load(job.trace)
    record = search(job, spy, trace)
    whole = [one for one, rows in spy.jobs if rows == len(trace)]
    assert 1 <= len(whole) <= find.MOST_WHOLE + 1
    assert record.layout in {one.layout for one in whole}
    shares = [(one, rows) for one, rows in spy.jobs if rows < len(trace)]
    assert shares
    for one, rows in shares:
        assert rows <= 2 * estimate.MOST_ROWS
        assert one.max_output_tokens == trace.longest_output
        assert one.gpus_per_node == 8


@pytest.mark.parametrize("policy", ["orca", "vllm", "batchgen"])
def test_a_share_tells_the_time_of_all_engines(tmp_path: Path, policy: str) -> None:
    """It has the longest row, which alone ends after all others here."""
    rows = ragged(4000)
    rows[3333] = (700, 4001)
    job = SimJob(
        trace=load_of(tmp_path, rows), model="llama-3.1-8b", gpu="h100", gpus=8, policy=policy
    )
    trace = load(job.trace)
    estimator = Estimator(job, simulate, trace)
    for one in Fitter(job, trace, LAYOUTS).layouts():
        if one.candidate.layout.pp > 2:
            continue
        engines, share = estimator.share(one.candidate)
        assert 3333 in share
        found = estimator.estimate(one.candidate, None)
        whole = bct_s(simulate(one.candidate.of(job), trace=trace))
        assert found.seconds == pytest.approx(whole, rel=0.12), (one.candidate, engines)


def test_a_layout_that_loses_rows_is_the_last_resort(tmp_path: Path) -> None:
    """One GPU per engine would be fastest, but cannot hold the longest row."""
    rows = [*[(4000, 8)] * 600, (100_000, 20)]
    small = SimJob(
        trace=load_of(tmp_path, rows[:-1]),
        model="llama-3.1-8b",
        gpu="h100",
        gpus=4,
        policy="vllm",
        overrides=(("plan.memory_fraction", "0.3"), ("plan.max_num_seqs", "16")),
    )
    alone = search(small, simulate, load(small.trace))
    assert "tp" not in alone.layout
    long = replace(small, trace=load_of(tmp_path, rows))
    record = search(long, simulate, load(long.trace))
    assert summary(record)["failed_rows"] == 0
    assert "tp" in record.layout


def test_roles_bodies_and_arrivals_are_not_thinned(tmp_path: Path) -> None:
    trace_file = load_of(tmp_path, ragged(2500))
    plain = SimJob(trace=trace_file, model="llama-3.1-8b", gpu="h100", gpus=4, policy="vllm")
    trace = load(trace_file)
    for job in (
        replace(plain, overrides=(("plan.prefill_engines", "2"),)),
        replace(plain, body="batchgen.coroutine:default_body"),
    ):
        spy = Spy()
        record = search(job, spy, trace)
        assert {rows for _, rows in spy.jobs} == {len(trace)}
        assert {one.gpus for one, _ in spy.jobs} == {4}
        assert summary(record)["failed_rows"] == 0
    spy = Spy()
    search(replace(plain, arrivals="trace"), spy, trace)
    assert min(rows / one.gpus for one, rows in spy.jobs) == len(trace) / 4


def test_troubles_to_come_are_not_known_beforehand(tmp_path: Path) -> None:
    faults = tmp_path / "faults.jsonl"
    faults.write_text('{"at_s": 1, "kind": "slow", "gpu": 3, "factor": 2}\n')
    job = SimJob(
        trace=load_of(tmp_path, ragged(300)),
        model="llama-3.1-8b",
        gpu="h100",
        gpus=4,
        faults=str(faults),
    )
    spy = Spy()
    record = search(job, spy, load(job.trace))
    assert spy.jobs[0][0].faults is None
    assert spy.jobs[-1][0].faults == str(faults)
    assert summary(record)["faults"] == 1


def test_mistakes_in_the_load_are_those_of_all_rows(tmp_path: Path) -> None:
    """Not of the share that a stand-in gets."""
    rows = [(5, 5)] * 2000
    for row in (777, 1500, 1999):
        rows[row] = (50_000, 5)
    job = SimJob(trace=load_of(tmp_path, rows), model="qwen3-8b", gpu="h100", gpus=8)
    trace = load(job.trace)
    with pytest.raises(UserError) as whole:
        simulate(replace(job, layout="dp8"), trace=trace)
    with pytest.raises(UserError) as searched:
        search(job, simulate, trace)
    assert "row 777" in str(whole.value)
    assert "(3 such rows)" in str(whole.value)
    assert str(searched.value) == str(whole.value)


def test_a_model_that_fits_nowhere_says_what_would_help(tmp_path: Path) -> None:
    """No host and no disk of such a machine has room for it."""
    job = SimJob(trace=load_of(tmp_path, [(5, 5)]), model="deepseek-r1", gpu="t4", gpus=1)
    with pytest.raises(UserError, match="does not fit on 1 x t4") as caught:
        search(job, simulate, load(job.trace))
    assert "--gpus" in caught.value.remedy
    with pytest.raises(UserError, match="unknown policy"):
        search(replace(job, policy="nothing"), simulate, load(job.trace))


def test_a_model_that_fits_no_gpu_runs_from_the_host(tmp_path: Path) -> None:
    """Unless places are given; a layout that is given is refused with places that would do."""
    path = load_of(tmp_path, [(50, 5)] * 20)
    job = SimJob(trace=path, model="mixtral-8x7b", gpu="a5000", gpus=1)
    record = search(job, simulate, load(path))
    assert summary(record)["finished_rows"] == 20
    options = dict(record.config["job"]["overrides"])
    assert options["plan.weights"] in ("spill", "experts", "layers")
    assert "plan.weights" in record.config["layout_reason"]
    held = replace(job, overrides=(("plan.weights", "hbm"),))
    with pytest.raises(UserError, match="does not fit"):
        search(held, simulate, load(path))
    with pytest.raises(UserError, match="does not fit") as caught:
        simulate(replace(job, layout="dp1"))
    _, _, way = caught.value.remedy.partition("on the host: ")
    words = way.split()
    assert words[:2] == ["--layout", "dp1"] or words[:2] == ["--layout", "tp1"]
    pairs = tuple(tuple(word.split("=")) for word in words[3::2])
    record = simulate(replace(job, layout=words[1], overrides=pairs))
    assert summary(record)["finished_rows"] == 20

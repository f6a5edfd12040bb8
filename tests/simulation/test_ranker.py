"""Lengths known with an error of a stated size, and the system that goes by them."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from batchgen.cli import main
from batchgen.errors import UserError
from batchgen.policy.predictor import Ranker, normal
from batchgen.report.metrics import summary
from batchgen.report.ranks import kendall_tau_b
from batchgen.report.record import RunRecord
from batchgen.sequence import Table
from batchgen.sim.run import simulate
from batchgen.simjob import SimJob

LENGTHS = np.random.default_rng(5).lognormal(5, 1, 4000).astype(int) + 1


def predicted(sigma: float, seed: int = 0, budget: int = 1 << 30) -> np.ndarray:
    """What the part makes of `LENGTHS`; rows come in two lots."""
    part = Ranker(Ranker.Config(sigma=sigma, seed=seed))
    table = Table([1] * len(LENGTHS), [budget] * len(LENGTHS))
    table.predicted[:] = LENGTHS
    for rows in (range(1000, len(LENGTHS)), range(1000)):
        part.on_arrival(table, list(rows), part.new_state())
    return table.predicted.copy()


def test_errors_are_normal_and_as_large_as_stated() -> None:
    draws = np.array([normal(row, 3) for row in range(20_000)])
    assert abs(draws.mean()) < 0.03
    assert abs(draws.std() - 1) < 0.03
    assert abs((np.abs(draws) < 1).mean() - 0.6827) < 0.015
    long = LENGTHS > 100  # rounding to tokens is small against the error
    errors = np.log(predicted(0.5)[long] / LENGTHS[long])
    assert abs(errors.std() - 0.5) < 0.03
    assert abs(np.corrcoef(draws[:4000], [normal(row, 4) for row in range(4000)])[0, 1]) < 0.06


def test_a_prediction_is_a_length_that_the_row_may_have() -> None:
    assert (predicted(0) == LENGTHS).all()
    assert (predicted(0, budget=10) == LENGTHS).all()  # more stages than one
    wild = predicted(10, budget=5000)
    assert wild.min() == 1
    assert wild.max() == 5000


def test_a_larger_error_orders_worse() -> None:
    taus = [kendall_tau_b(predicted(sigma), LENGTHS) for sigma in (0, 0.25, 0.5, 1, 2, 4)]
    assert taus[0] == 1
    assert all(a - 0.05 > b > 0 for a, b in pairwise(taus))  # type: ignore[operator]


def test_another_process_predicts_the_same() -> None:
    """Hashes of Python's own would differ from process to process."""
    code = "from batchgen.policy.predictor import normal; print([normal(r, 7) for r in range(50)])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(told.stdout) == [normal(row, 7) for row in range(50)]
    assert (predicted(1, seed=7) == predicted(1, seed=7)).all()
    assert (predicted(1, seed=7) != predicted(1, seed=8)).any()


@pytest.fixture
def job(tmp_path: Path) -> SimJob:
    """120 rows on two GPUs of four seats each."""
    path = tmp_path / "load.jsonl"
    rows = [{"prompt_tokens": 50, "output_tokens": int(n)} for n in LENGTHS[:120]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SimJob(
        trace=str(path),
        model="llama-3.1-8b",
        gpu="h100",
        gpus=2,
        layout="tp1",
        policy="longest-first",
        overrides=(("plan.max_num_seqs", "4"),),
        oracle=True,
        log="full",
    )


def changed(job: SimJob, **options: str) -> SimJob:
    pairs = tuple((key.replace("__", "."), value) for key, value in options.items())
    return replace(job, overrides=(*job.overrides, *pairs))


def decisions(record: RunRecord) -> list[tuple[object, object]]:
    """What was told and decided; no header and no checksums, which hang on the options."""
    lines = gzip.decompress(b"".join(record.decisions or ())).decode().splitlines()
    entries = [entry for entry in map(json.loads, lines) if "event" in entry]
    assert len(entries) > 10
    return [(entry["event"], entry["actions"]) for entry in entries]


def test_without_error_it_is_the_oracle(job: SimJob) -> None:
    ours = simulate(changed(job, predictor__sigma="0"))
    theirs = simulate(changed(job, predictor__part="oracle"))
    assert (ours.rows["end_ps"] == theirs.rows["end_ps"]).all()
    known = decisions(ours)
    assert known == decisions(theirs)
    assert summary(ours)["predictor_tau"] == summary(theirs)["predictor_tau"] == 1
    unsure = simulate(changed(job, predictor__sigma="1"))
    assert decisions(unsure) != known


def test_a_run_states_how_good_its_predictor_is(job: SimJob) -> None:
    found = summary(simulate(changed(job, predictor__sigma="0.7")))
    budget = int(LENGTHS[:120].max())
    wanted = kendall_tau_b(predicted(0.7, budget=budget)[:120], LENGTHS[:120])
    assert found["predictor_tau"] == wanted
    assert found["predicted_rows"] == 120


def test_who_predicts_nothing_is_told_nothing(job: SimJob) -> None:
    """`--oracle --set predictor.part=none` gave perfect lengths to the order part."""
    ignorant = changed(job, predictor__part="none")
    found = summary(simulate(ignorant))
    assert found["predictor_tau"] is None
    assert found["predicted_rows"] is None
    assert decisions(simulate(ignorant)) == decisions(simulate(replace(ignorant, oracle=False)))
    assert found["bct_s"] > summary(simulate(changed(job, predictor__sigma="0")))["bct_s"]


def test_long_rows_begin_first(job: SimJob) -> None:
    rows = simulate(changed(job, predictor__sigma="0")).rows
    began = np.argsort(rows["first_token_ps"], kind="stable")
    assert set(began[:8].tolist()) == set(np.argsort(-LENGTHS[:120], kind="stable")[:8].tolist())


def test_it_is_refused_where_nobody_tells_lengths(
    job: SimJob, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="part ranker needs lengths; give --oracle") as caught:
        simulate(replace(job, oracle=False))
    assert "\n" not in str(caught.value)
    line = ["sim", "--trace", job.trace, "--policy", "longest-first", "--layout", "rule"]
    assert main(line) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "give --oracle to `batchgen sim`" in told


def test_the_report_has_its_quality_in_one_line(
    job: SimJob, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["sim", "--trace", job.trace, "--policy", "longest-first", "--layout", "tp1"]
    assert main([*line, "--model", job.model, "--gpu", job.gpu, "--gpus", "2", "--oracle"]) == 0
    lines = [one for one in capsys.readouterr().out.splitlines() if "Kendall's tau-b" in one]
    assert len(lines) == 1
    assert "0." in lines[0]

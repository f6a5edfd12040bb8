"""Rows that would outgrow a model's context end at it, in `sim` and `plan` alike."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgen.cli import main
from batchgen.errors import UserError
from batchgen.model import load_model
from batchgen.outputs import outputs_of
from batchgen.planning import PlanOptions
from batchgen.report import text
from batchgen.report.metrics import summary
from batchgen.report.record import RunRecord
from batchgen.search.fit import Fitter
from batchgen.search.space import PLANS
from batchgen.sim.run import simulate
from batchgen.simjob import SimJob
from batchgen.trace.table import Trace, make_trace

MODEL = load_model("moonlight-16b-a3b")
CONTEXT = 40


def trace_of(rows: list[tuple[int, int, int]]) -> Trace:
    """Rows of prompt, true output and own budget (0: none)."""
    prompts, outputs, budgets = (np.array(column) for column in zip(*rows, strict=True))
    return make_trace(
        name="drawn", prompt_tokens=prompts, output_tokens=outputs, max_output_tokens=budgets
    )


def job_of(path: Path, **more: object) -> SimJob:
    job = SimJob(trace=str(path), model=MODEL.name, gpu="h100", gpus=1, layout="tp1", policy="vllm")
    return dataclasses.replace(job, **more)  # type: ignore[arg-type]


def run(path: Path, trace: Trace, context: int | None, **more: object) -> RunRecord:
    told = () if context is None else (("plan.max_context", str(context)),)
    return simulate(job_of(path, overrides=told, **more), trace=trace)


def same(one: RunRecord, other: RunRecord) -> bool:
    """But for what the job was told, and what it took the machine."""
    first, second = (
        {k: v for k, v in summary(record).items() if k not in ("overrides", "wall_s")}
        for record in (one, other)
    )
    rows = [one.rows[name].tolist() == other.rows[name].tolist() for name in one.rows]
    steps = [one.steps[name].tolist() == other.steps[name].tolist() for name in one.steps]
    return first == second and one.row_reasons == other.row_reasons and all(rows + steps)


ROWS = st.lists(
    st.tuples(st.integers(1, CONTEXT - 1), st.integers(1, 70), st.integers(0, 70)),
    min_size=1,
    max_size=8,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with some rows: it gives runs their digest, the rows are handed over."""
    file = tmp_path_factory.mktemp("context") / "t.jsonl"
    file.write_text('{"prompt_tokens": 1, "output_tokens": 1}\n')
    return file


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, given_budget=st.none() | st.integers(1, 70), oracle=st.booleans())
def test_a_row_ends_where_its_budget_or_the_context_does(
    path: Path, rows: list[tuple[int, int, int]], given_budget: int | None, oracle: bool
) -> None:
    trace = trace_of(rows)
    record = run(path, trace, CONTEXT, max_output_tokens=given_budget, oracle=oracle)
    default = given_budget or max(output for _, output, _ in rows)
    cut = 0
    for number, (prompt, output, own) in enumerate(rows):
        budget = own or default
        wanted = min(output, budget)
        ends = min(wanted, CONTEXT - prompt)
        cut += ends < wanted
        assert record.rows["output_tokens"][number] == ends
        is_length = ends < wanted or ends == budget
        assert record.row_reasons[number] == ("length" if is_length else "stop")
    told = summary(record)
    assert (told.get("cut_rows"), told.get("context_tokens")) == (
        (cut, CONTEXT) if cut else (None, None)
    )
    fitter = Fitter(
        job_of(path, max_output_tokens=given_budget, overrides=(("plan.max_context", "40"),)),
        trace,
        PLANS,
    )
    assert fitter._outputs.tolist() == record.rows["output_tokens"].tolist()


@settings(max_examples=25, deadline=None)
@given(rows=ROWS, oracle=st.booleans(), policy=st.sampled_from(["vllm", "static", "batchgen"]))
def test_nothing_changes_where_all_rows_fit(
    path: Path, rows: list[tuple[int, int, int]], oracle: bool, policy: str
) -> None:
    """However far their budgets reach: what a scheduler sees is what was asked for."""
    rows = [(prompt, min(output, CONTEXT - prompt), own) for prompt, output, own in rows]
    trace = trace_of(rows)
    tight, wide = (run(path, trace, one, oracle=oracle, policy=policy) for one in (CONTEXT, None))
    assert same(tight, wide)
    assert "cut_rows" not in summary(tight)
    outputs = outputs_of(job_of(path), trace, MODEL, PlanOptions(max_context=CONTEXT))
    assert outputs.budgets.tolist() == [own or trace.longest_output for _, _, own in rows]


@settings(max_examples=25, deadline=None)
@given(rows=ROWS)
def test_a_cut_row_is_one_with_so_much_budget(path: Path, rows: list[tuple[int, int, int]]) -> None:
    """The oracle: the same run as of a trace that says what the context leaves."""
    default = max(output for _, output, _ in rows)
    said = []
    for prompt, output, own in rows:
        budget, room = own or default, CONTEXT - prompt
        said.append((prompt, output, room if min(output, budget) > room else budget))
    trace = trace_of(rows)
    known = run(path, trace_of(said), None)
    found = run(path, trace, CONTEXT)
    assert found.rows["end_ps"].tolist() == known.rows["end_ps"].tolist()
    assert found.row_reasons == known.row_reasons


def test_a_prompt_without_room_is_refused_by_sim_and_plan_alike(path: Path) -> None:
    trace = trace_of([(5, 5, 0), (MODEL.max_context, 5, 0)])
    line = f"row 1 has 8192 prompt tokens, {MODEL.name} takes 8192 in all \\(1 such rows\\)"
    with pytest.raises(UserError, match=line):
        run(path, trace, None)
    with pytest.raises(UserError, match=line):
        Fitter(job_of(path), trace, PLANS)


def test_both_commands_say_how_many_rows_are_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "t.jsonl"
    rows = [{"prompt_tokens": 8000, "output_tokens": n} for n in (5, 192, 193, 2000)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--trace", str(file), "--model", MODEL.name, "--gpu", "h100", "--gpus", "1"]
    line = text.cut_line({"cut_rows": 2, "context_tokens": 8192})
    assert line is not None
    assert main(["sim", *words, "--layout", "tp1"]) == 0
    assert capsys.readouterr().out.count(line) == 1
    assert main(["plan", *words, "--workers", "1"]) == 0
    assert capsys.readouterr().out.count(line) == 1
    wide = ["--set", "plan.max_context=99999"]
    assert main(["sim", *words, "--layout", "tp1", *wide, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["runs"]
    assert found["output_tokens"] == 5 + 192 + 193 + 2000
    assert "cut_rows" not in found

"""The search of plans: held against full enumerations of random small spaces, and what it leaves
out and says."""

from __future__ import annotations

import json
import random
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchgen.cli import main
from batchgen.cli.plan import seconds_of
from batchgen.cost.bounds import bounds
from batchgen.errors import UserError
from batchgen.layout import Layout
from batchgen.machine import resolve
from batchgen.report.metrics import bct_s
from batchgen.report.record import STATUS_DONE
from batchgen.search.crew import Ask, Crew
from batchgen.search.estimate import Estimate, Estimator
from batchgen.search.find import Finder
from batchgen.search.fit import Fitter
from batchgen.search.offers import cheapest, flops_bound_s, offers
from batchgen.search.space import PLANS, Candidate, Space
from batchgen.sim.floors import floors_of, rows_of
from batchgen.sim.run import simulate
from batchgen.simcommand import command
from batchgen.simjob import SimJob
from batchgen.trace.table import Trace, make_trace

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from plan_grid import Case, best_of_all, draw, plans, searched

SMALL = Space(roles=False)


def some_rows(count: int, seed: int = 0, longest: int = 2000) -> Trace:
    rng = np.random.default_rng(seed)
    return make_trace(
        name="some",
        prompt_tokens=np.clip(rng.lognormal(6, 0.8, count), 1, 4000).astype(int),
        output_tokens=np.clip(rng.lognormal(5, 0.9, count), 1, longest).astype(int),
    )


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"prompt_tokens": 5, "output_tokens": 5}\n')
    return str(path)


@pytest.mark.parametrize("seed", range(4))
def test_the_winner_is_within_3_percent_of_a_full_enumeration(file: str, seed: int) -> None:
    case = draw(random.Random(seed), file, most_work=1_500, most_rows=60)
    found, _ = searched(case, 1)
    every = list(plans(case, 10_000))
    best, ended = best_of_all(case, every, found.best, 1)
    assert found.best.failed == best.failed
    assert found.best.seconds <= 1.03 * best.seconds, (found.best, best)
    assert found.best.how == "simulated"
    record = simulate(found.best.candidate.of(case.job), trace=case.trace)
    assert bct_s(record) == found.best.seconds
    assert ended == [] or min(one.seconds for one in ended) == best.seconds


@pytest.mark.parametrize("seed", range(4))
def test_bounds_are_below_every_plan(file: str, seed: int) -> None:
    """That of the FLOPs and of the longest row alone, by which clusters are ruled out."""
    case = draw(random.Random(100 + seed), file, most_work=1_500, most_rows=60)
    least = flops_bound_s(case.job, case.trace)
    alone = Fitter(case.job, case.trace, case.space).alone_s()
    assert min(least, alone) > 0
    for plan in list(plans(case, 8)):
        record = simulate(plan.of(case.job), trace=case.trace)
        if (record.rows["status"] == STATUS_DONE).all():
            assert max(least, alone) <= bct_s(record), plan
            machine = resolve(plan.of(case.job), 0.0)
            floors = floors_of(machine.plan, machine.planner, switches=True)
            rows = rows_of(case.trace, record.rows, shares=False)
            found = bounds(floors, len(machine.plan.engines), rows)
            assert max(found.longest_row_s, found.work_s) <= bct_s(record), plan


def test_pipelines_splits_and_places_are_found(file: str) -> None:
    """Loads for which each is best by far."""

    def best(rows: Trace, space: Space = PLANS, **job: Any) -> Candidate:
        case = Case(job=SimJob(trace=file, **job), trace=rows, space=space)
        return searched(case, 1)[0].best.candidate

    # PCs with one GPU: hidden states of a pipeline are far less than the sums of tp.
    pc: dict[str, Any] = {"model": "qwen3-32b", "gpu": "rtx-4090", "policy": "vllm"}
    short = some_rows(80, longest=200)
    piped = best(short, Space(roles=False, budgets=(1024,)), gpus=4, **pc)
    assert piped.layout.pp == 2
    assert piped.value("plan.token_budget") == "1024"
    # Long answers wait for prompts in mixed passes.
    split = best(some_rows(80), Space(), gpus=8, **pc)
    assert split.prefill_engines == 1
    # 24 GB for a model of 93: most of the weights come from the host.
    moved = best(some_rows(30), model="mixtral-8x7b", gpu="a5000", gpus=1, policy="vllm")
    assert moved.value("plan.weights") in ("spill", "experts", "layers")


def test_what_the_job_or_its_policy_sets_is_not_searched(file: str) -> None:
    trace = some_rows(60)
    pairs = (("plan.token_budget", "3000"), ("plan.b_attn", "16"))
    job = SimJob(trace=file, model="qwen3-30b-a3b", gpu="h100", gpus=2, overrides=pairs)
    found, _ = searched(Case(job=job, trace=trace, space=PLANS), 1)
    for one in (found.best, *found.rest):
        assert not {"plan.token_budget", "plan.b_attn"} & dict(one.candidate.options).keys()
    system = SimJob(trace=file, model="qwen3-30b-a3b", gpu="h100", gpus=2, policy="sglang-opt")
    found, _ = searched(Case(job=system, trace=trace, space=PLANS), 1)
    tried = {key for one in (found.best, *found.rest) for key, _ in one.candidate.options}
    assert "plan.token_budget" not in tried


def test_a_search_on_two_processes_is_the_same(file: str) -> None:
    case = draw(random.Random(7), file, most_work=1_500, most_rows=60)
    one, two = (searched(case, workers)[0] for workers in (1, 2))
    assert one.best == two.best
    assert one.rest == two.rest
    assert one.refused == two.refused


def test_errors_of_processes_are_those_of_one(file: str) -> None:
    job = SimJob(trace=file, model="qwen3-8b", gpu="h100", gpus=2)
    crew = Crew(Estimator(job, simulate, some_rows(20)), 2)
    wrong = Candidate(layout=Layout(tp=2), options=(("plan.nothing", "1"),))
    asks = [
        Ask(candidate=one, limit_s=None, is_whole=True)
        for one in (Candidate(layout=Layout(tp=2)), wrong)
    ]
    with pytest.raises(UserError, match="plan has no such option"):
        crew.answer(asks)


def test_a_share_of_engines_with_roles_keeps_their_split(file: str) -> None:
    job = SimJob(trace=file, model="llama-3.1-8b", gpu="h100", gpus=16, gpus_per_node=1)
    estimator = Estimator(job, simulate, some_rows(4000))
    seen: list[SimJob] = []

    def spy(one: SimJob, **more: Any) -> Any:
        seen.append(one)
        return simulate(one, **more)

    estimator.simulate = spy
    split = Candidate(layout=Layout(num_engines=16), options=(("plan.prefill_engines", "4"),))
    found = estimator.estimate(split, None)
    assert found.how == "estimate"
    assert seen[0].gpus < 16
    assert 4 * int(dict(seen[0].overrides)["plan.prefill_engines"]) == seen[0].gpus
    whole, _ = estimator.whole(split, None)
    assert found.seconds == pytest.approx(whole.seconds, rel=0.15)


class Told:
    """Answers as somebody else knows them, and what was asked."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.asked = seconds, []  # type: ignore[var-annotated]

    def __call__(self, asks: Any) -> list[Estimate]:
        self.asked += asks
        found = []
        for ask in asks:
            time = self.seconds.get(str(ask.candidate), 1e6)
            late = ask.limit_s is not None and time > ask.limit_s
            how = "at least" if late else "simulated" if ask.is_whole else "estimate"
            found.append(
                Estimate(candidate=ask.candidate, seconds=ask.limit_s if late else time, how=how)
            )
        return found


def test_an_estimate_that_was_wrong_does_not_win(file: str) -> None:
    """Whole runs decide, and those close behind are run too."""
    job = SimJob(trace=file, model="llama-3.1-8b", gpu="h100", gpus=4)
    fitter = Fitter(job, some_rows(50), Space(pipelines=False, roles=False))
    told = Told({"dp4": 10.0, "tp2,dp2": 10.5, "tp4": 10.6})
    answer = told.__call__

    def whole_dp4_is_slow(asks: Any) -> list[Estimate]:
        found = answer(asks)
        for one, ask in zip(found, asks, strict=True):
            if ask.is_whole and str(one.candidate) == "dp4":
                one.seconds = 12.0
        return found

    found = Finder(fitter, whole_dp4_is_slow).run()
    assert str(found.best.candidate) == "tp2,dp2"
    assert found.best.how == "simulated"
    assert found.runner_up is not None
    assert str(found.runner_up.candidate) in ("tp4", "dp4")


@pytest.mark.parametrize("seed", range(3))
def test_the_cheapest_cluster_is_that_of_a_grid(file: str, seed: int) -> None:
    rng = random.Random(seed)
    trace = some_rows(rng.randint(20, 60), seed)
    job = SimJob(trace=file, model=rng.choice(["qwen3-8b", "qwen3-30b-a3b"]), policy="vllm")
    considered = offers(rng.sample(["h100", "a100", "a5000", "h20", "b200"], 3), 4, {})
    times: dict[str, float] = {}
    for offer in considered:
        cell = Case(job=offer.of(job), trace=trace, space=SMALL)
        try:
            every = list(plans(cell, 1000))
        except UserError:
            continue
        never = Estimate(candidate=every[0], seconds=np.inf, how="at least", failed=10**6)
        best, _ = best_of_all(cell, every, never, 1)
        if not best.failed:
            times[str(offer)] = best.seconds
    deadline_s = sorted(times.values())[len(times) // 2]

    def plan(one: SimJob, limit_s: float) -> float:
        crew = Crew(Estimator(one, simulate, trace))
        best = Finder(Fitter(one, trace, SMALL), crew.answer, limit_s=limit_s).run().best
        return best.seconds if best.how == "simulated" and not best.failed else np.inf

    choice = cheapest(job, trace, SMALL, considered, deadline_s, plan, lambda _: None)
    costs = {
        str(offer): offer.cost(times[str(offer)], in_usd=True)
        for offer in considered
        if times.get(str(offer), np.inf) <= deadline_s
    }
    assert str(choice.offer) == min(costs, key=lambda name: costs[name])
    assert choice.seconds <= deadline_s
    with pytest.raises(UserError, match="no cluster of up to 4 GPUs ends within"):
        cheapest(job, trace, SMALL, considered, min(times.values()) / 100, plan, lambda _: None)


def test_prices_are_the_users_where_given(file: str) -> None:
    found = offers(["h100", "h20-ib"], 2, {"h100": 1.25})
    assert [(str(one), one.price_usd) for one in found] == [
        ("1 x h100", 1.25),
        ("2 x h100", 1.25),
        ("1 x h20-ib", 1.5),
        ("2 x h20-ib", 1.5),
    ]
    assert found[0].source == "given"
    assert found[2].of(SimJob(trace=file)).cluster == "h20-ib"
    assert len({one.name for one in offers(None, 1, {})}) >= 13
    with pytest.raises(UserError, match="--price t4"):
        offers(["h100"], 2, {"t4": 1.0})


@pytest.mark.parametrize(
    ("words", "seconds"),
    [("90s", 90), ("45min", 2700), ("1h30min", 5400), ("1.5 h", 5400), ("7", 7)],
)
def test_deadlines_are_read(words: str, seconds: float) -> None:
    assert seconds_of(words) == seconds


@pytest.mark.parametrize("words", ["", "soon", "0", "-1h", "1h30", "1e3", "3 weeks", "inf"])
def test_what_is_no_deadline_is_refused(words: str) -> None:
    with pytest.raises(UserError, match="--deadline"):
        seconds_of(words)


def test_the_command_of_an_answer_runs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a trace.jsonl"
    rows = some_rows(40)
    path.write_text(
        "".join(
            json.dumps({"prompt_tokens": int(p), "output_tokens": int(o)}) + "\n"
            for p, o in zip(rows.prompt_tokens, rows.output_tokens, strict=True)
        )
    )
    given = ["plan", "--trace", str(path), "--model", "qwen3-30b-a3b", "--gpu", "h100"]
    given += ["--gpus", "2", "--policy", "vllm", "--limit", "30", "--workers", "1"]
    assert main([*given, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    winner = answer["winner"]
    assert answer["limiting"]
    assert sum(answer["time_by_resource"].values()) == pytest.approx(1, abs=0.01)
    words = shlex.split(winner["command"])
    assert words[:2] == ["batchgen", "sim"]
    assert main([*words[1:], "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert run["bct_s"] == winner["bct_s"]
    assert main(given) == 0
    text = capsys.readouterr().out
    for word in ("winner", "runner-up", "limited by", "run it", winner["layout"]):
        assert word in text
    assert main([*given, "--deadline", "1h", "--json", "--price", "h100=9"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["cheapest"]["unit"] == "USD"
    gpu_s = answer["num_gpus"] * answer["winner"]["bct_s"]
    assert answer["cheapest"]["cost"] == pytest.approx(gpu_s * 9 / 3600)


def test_every_flag_of_a_job_is_in_its_command() -> None:
    job = SimJob(
        trace="x.jsonl", cluster="h20-ib", gpus=4, layout="tp4", overrides=(("plan.depth", "2"),),
        arrivals="trace", faults="d.jsonl", max_output_tokens=7, oracle=True, costs="measured",
        seed=3, limit=9, body="a:b", gpus_per_node=2,
    )  # fmt: skip
    words = shlex.split(command(job))
    for flag, value in (
        ("--cluster", "h20-ib"),
        ("--arrivals", "trace"),
        ("--devices", "d.jsonl"),
        ("--max-output-tokens", "7"),
        ("--costs", "measured"),
        ("--seed", "3"),
        ("--limit", "9"),
        ("--body", "a:b"),
        ("--gpus-per-node", "2"),
        ("--set", "plan.depth=2"),
    ):
        assert words[words.index(flag) + 1] == value
    assert "--oracle" in words
    assert "--gpu" not in words
    assert "--gpu" in shlex.split(command(replace(job, cluster=None)))


def test_mistakes_are_one_line(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["plan", "--trace", file]
    for more, said in (
        (["--gpus", "0"], "--gpus is 0"),
        (["--among", "h100"], "add --deadline"),
        (["--deadline", "1h", "--gpu", "h100", "--among", "h100"], "give one of them"),
        (["--deadline", "1h", "--price", "h100"], "--price 'h100' is no price"),
        (["--deadline", "soon"], "--deadline is 'soon'"),
        (["--deadline", "1h", "--among", "h101"], "unknown GPU 'h101'"),
        (["--model", "deepseek-r1", "--gpu", "t4", "--gpus", "1"], "does not fit on 1 x t4"),
        (
            ["--model", "deepseek-r1", "--among", "t4", "--gpus", "1", "--deadline", "1h"],
            "does not fit on 1 x t4",
        ),
        (["--policy", "nothing"], "unknown policy"),
        (["--set", "plan.nothing=1"], "no such option"),
    ):
        assert main([*base, *more]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        last = shown.err.strip().splitlines()[-1]
        assert last.startswith("error: ")
        assert said in last

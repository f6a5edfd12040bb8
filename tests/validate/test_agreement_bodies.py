"""Agreement (c) with bodies: what they read in exec leads to the same log in sim."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from batchgen.cli import main
from batchgen.cli.agreement import compare_backends, make_load, simulate_again
from batchgen.cli.handover import handover
from batchgen.cost.build import build_cost
from batchgen.exec.clock import WallClock
from batchgen.exec.drive import clocked, drive
from batchgen.exec.job import ExecJob
from batchgen.exec.prepare import prepare
from batchgen.hardware import load_gpu
from batchgen.layout import Layout
from batchgen.model import load_model
from batchgen.replay import replay

PRESETS = ("static", "orca", "vllm", "batchgen")
SMALL_PAGES = (("plan.page_tokens", "8"), ("plan.boundary", "16"), ("plan.token_budget", "512"))
BODIES = ("rounds", "moody")


@pytest.fixture(autouse=True)
def _bodies_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.mark.parametrize("depth", ["1", "2"])
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("policy", PRESETS)
def test_logs_are_equal(
    policy: str, body: str, depth: str, tiny_models: dict[str, Path], prompts: Path
) -> None:
    sums = dict.fromkeys(("extended", "preemptions", "suspensions", "cancelled"), 0)
    for seed, (hbm_pages, rate) in enumerate([(44, 0.0), (44, 0.2), (400, 1.0)], start=1):
        result = compare_backends(
            tiny_models["qwen3"],
            prompts,
            policy,
            hbm_pages=hbm_pages,
            rate=rate,
            cancel=2,
            seed=seed,
            body=f"valid_bodies:{body}",
            overrides=(*SMALL_PAGES, ("plan.depth", depth)),
        )
        assert result["equal"], result
        broken = {row["reason"] for row in result["not_ended"]}
        assert broken <= ({"body"} if body == "moody" else set()), result["not_ended"]
        for name in sums:
            sums[name] += result[name]
    assert sums["extended"] > 0
    assert sums["cancelled"] > 0
    if body == "rounds":
        assert sums["preemptions"] or policy in ("static", "orca", "batchgen")
        assert sums["suspensions"] or policy != "batchgen"


@pytest.mark.parametrize("depth", ["1", "2"])
def test_shared_prefixes(depth: str, tiny_models: dict[str, Path], alike_prompts: Path) -> None:
    """Follow-ups come behind prompt pages that rows share."""
    adopted = 0
    for policy in ("vllm", "batchgen"):
        for hbm_pages in (44, 400):
            result = compare_backends(
                tiny_models["llama"],
                alike_prompts,
                policy,
                hbm_pages=hbm_pages,
                body="valid_bodies:rounds",
                overrides=(*SMALL_PAGES, ("plan.depth", depth), ("plan.prefix_cache", "true")),
            )
            assert result["equal"], result
            adopted += result["adopted"]
    assert adopted > 0


def test_one_pass_per_step(tiny_models: dict[str, Path], prompts: Path) -> None:
    found = {}
    for reference in (False, True):
        result = compare_backends(
            tiny_models["llama"],
            prompts,
            "batchgen",
            hbm_pages=44,
            limit=8,
            reference=reference,
            body="valid_bodies:rounds",
            overrides=SMALL_PAGES,
        )
        assert result["equal"], result
        found[reference] = result["bct_s"], result["tokens"], result["extended"]
    assert found[True] == found[False]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("policy", ["vllm", "batchgen"])
def test_a_real_run_replays(
    policy: str, body: str, tiny_models: dict[str, Path], prompts: Path
) -> None:
    job = ExecJob(
        model=tiny_models["llama"],
        input=prompts,
        output=Path("unused"),
        policy=policy,
        overrides=SMALL_PAGES,
        hbm_pages=48,
        host_pages=200,
        threads=1,
        log="full",
        body=f"valid_bodies:{body}",
    )
    prepared = prepare(job)
    log = prepared.log()
    drive(prepared, WallClock(), log=log)
    lines = list(log.lines())
    report = replay(lines)
    assert (report.events, report.unfinished_rows) == (len(lines) - 1, 0)
    header: dict[str, Any] = json.loads(lines[0])
    assert header["bodies"] == f"valid_bodies:{body}"
    assert header["prompt_tokens"] == [len(row.prompt_ids) for row in prepared.jobs]


@pytest.mark.parametrize("depth", ["1", "2"])
@pytest.mark.parametrize("body", [*BODIES, "rests"])
def test_rows_end_at_the_same_times(
    body: str, depth: str, tiny_models: dict[str, Path], prompts: Path
) -> None:
    """Not before their bodies do, in both backends."""
    job = ExecJob(
        model=tiny_models["llama"],
        input=prompts,
        output=Path("unused"),
        policy="batchgen",
        overrides=(*SMALL_PAGES, ("plan.depth", depth)),
        hbm_pages=44,
        threads=1,
        log="full",
        body=f"valid_bodies:{body}",
    )
    prepared = prepare(job)
    cost = build_cost(load_model(job.model), load_gpu("h100"), Layout())
    load = make_load(prepared.table, cost, rate=0.2, cancel=2, seed=1)
    ran, log = clocked(prepared, cost, arrivals_ps=load.arrivals_ps, events=load.events)
    lines = list(log.lines())
    told = handover(lines)
    _, _, end_ps = simulate_again(prepared, told, cost, load, reference=False)
    assert int(ran.driver.record.end_ps.max()) == end_ps
    woken: dict[int, int] = {}
    for line in lines[1:]:
        entry = json.loads(line)
        for action in entry["actions"]:
            if action["type"] == "wake":
                woken[action["row"]] = action["at_ps"]
    assert woken
    cancelled = {row for row, reason in ran.reasons.items() if reason == "cancelled"}
    for row, at_ps in woken.items():
        assert row in cancelled or ran.driver.record.end_ps[row] >= at_ps


def test_the_command(
    tiny_models: dict[str, Path], prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["validate", "agreement", "--model", str(tiny_models["llama"]), "-i", str(prompts)]
    command += ["--policies", "vllm,batchgen", "--limit", "8"]
    assert main([*command, "--body", "valid_bodies:rounds"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert "equal, times included" in line
        assert " 0 follow-ups" not in line
    assert main([*command, "--body", "valid_bodies:none"]) == 2
    assert "none is missing in" in capsys.readouterr().err

"""Agreement is no agreement when rows did not end with their output: how many, which, and why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from batchgen import events as ev
from batchgen.cli import main
from batchgen.cli.agreement import compare_backends
from batchgen.cli.endings import in_words, not_ended
from batchgen.sequence import Status, Table

SMALL = (("plan.page_tokens", "8"), ("plan.boundary", "16"), ("plan.token_budget", "512"))


def test_rows_that_fail_alike_in_both_are_no_agreement(
    tiny_models: dict[str, Path], prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two pages for rows that need more: equal logs, exit code 1, and the rows by name."""
    result = compare_backends(
        tiny_models["llama"], prompts, "vllm", limit=6, hbm_pages=2, cancel=0, overrides=SMALL
    )
    assert result["equal"]
    assert not result["all_ended"]
    assert {one["reason"] for one in result["not_ended"]} == {"capacity"}
    args = ["validate", "agreement", "--model", str(tiny_models["llama"]), "-i", str(prompts)]
    args += ["--policies", "vllm", "--limit", "6", "--hbm-pages", "2", "--cancel", "0"]
    args += [f"--set={key}={value}" for key, value in SMALL]
    assert main(args) == 1
    out = capsys.readouterr().out
    count = len(result["not_ended"])
    assert f"vllm: {count} of 6 rows did NOT end: {count} failed (capacity), rows 0" in out
    assert "a rank has 2" in out
    assert "logs are equal" in out
    assert main([*args, "--json"]) == 1
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert run["not_ended"] == result["not_ended"]


def test_rows_that_are_cancelled_on_purpose_may_fail(
    tiny_models: dict[str, Path], prompts: Path
) -> None:
    result = compare_backends(tiny_models["llama"], prompts, "vllm", limit=6, cancel=2)
    assert result["cancelled"] > 0
    assert result["all_ended"]
    assert result["not_ended"] == []


def test_what_counts_as_not_ended() -> None:
    exec_table, sim_table = Table([5] * 5, [5] * 5), Table([5] * 5, [5] * 5)
    for table in (exec_table, sim_table):
        table.status[:] = (Status.DONE, Status.FAILED, Status.FAILED, Status.FAILED, Status.DONE)
    sim_table.status[4] = Status.WAITING
    reasons = {0: "stop", 1: "cancelled", 2: "cancelled", 3: "body", 4: "length"}
    events = [(7, ev.Cancelled([1]))]
    found = not_ended([exec_table, sim_table], reasons, {3: "its body raised"}, events)
    assert [(one["row"], one["status"], one["reason"]) for one in found] == [
        (2, "failed", "cancelled"),
        (3, "failed", "body"),
        (4, "waiting", "length"),
    ]
    words = in_words(found, 5)
    assert words.startswith(
        "3 of 5 rows did NOT end: 1 failed (cancelled), rows 2; 1 failed (body)"
    )
    assert "rows 3: its body raised" in words

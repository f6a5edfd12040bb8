"""Ranks of an engine that wait for each other: the report says for what, `gathered` lessens it."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchgen.report.metrics import summary
from batchgen.report.tables import why_lines
from batchgen.sim.run import simulate
from batchgen.simjob import SimJob

TRACE = str(Path(__file__).parents[2] / "traces" / "mooncake-conversation.jsonl.gz")
TOGETHER = (("phase.part", "gathered"),)


def job(*overrides: tuple[str, str], limit: int = 800, layout: str = "dpa16+ep16") -> SimJob:
    return SimJob(
        trace=TRACE, gpus=16, layout=layout, limit=limit, policy="vllm", overrides=overrides
    )


def test_prompts_of_all_ranks_together_cost_less() -> None:
    apart, together = (summary(simulate(job(*overrides))) for overrides in ((), TOGETHER))
    assert apart["barrier_prompts_s"] > 0.2 * apart["bct_s"]
    assert together["bct_s"] < 0.9 * apart["bct_s"]
    assert together["barrier_prompts_s"] < 0.9 * apart["barrier_prompts_s"]
    assert "% of the time for prompts of other ranks" in why_lines([apart, together])[0]


def test_the_barrier_is_the_difference_to_an_even_load() -> None:
    """A single row on 16 ranks: nothing is even, but its passes would take no less alone."""
    found = simulate(job(limit=1)).config["barrier_s"]
    assert found["decodes"] == pytest.approx(0.0, abs=1e-6)
    assert found["prompts"] >= 0.0


def test_engines_of_one_rank_have_no_barrier() -> None:
    run = summary(simulate(job(*TOGETHER, limit=50, layout="tp16")))
    assert run["barrier_prompts_s"] is None
    assert run["failed_rows"] == 0

"""Faults that simulations of the first form of the core had, each ended for good: seen from
outside, through jobs as the command line makes them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchgen.cli import main
from batchgen.errors import UserError
from batchgen.report.metrics import summary
from batchgen.report.record import RunRecord
from batchgen.report.rundir import load_run
from batchgen.sim.run import simulate
from batchgen.simjob import SimJob

STEALS = (("placement.part", "least-work"),)
ENDED = {"stop", "length"}


def lines(path: Path, items: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return str(path)


def rows_of(*outputs: int, prompt: int = 100, at_s: float = 0.0) -> list[dict[str, Any]]:
    return [
        {"prompt_tokens": prompt, "output_tokens": output, "arrival_s": at_s} for output in outputs
    ]


def job(tmp_path: Path, rows: list[dict[str, Any]], *faults: dict[str, Any], **more: Any) -> SimJob:
    """A small job on two engines of one GPU; every row has the same budget."""
    standard: dict[str, Any] = {
        "model": "llama-3.1-8b",
        "gpu": "a100-80g",
        "gpus": 2,
        "policy": "vllm",
        "max_output_tokens": 4000,
    }
    path = lines(tmp_path / "trace.jsonl", rows)
    if faults:
        standard["faults"] = lines(tmp_path / "faults.jsonl", list(faults))
    return SimJob(trace=path, **{**standard, **more})


def bct_ps(record: RunRecord) -> int:
    return int(record.rows["end_ps"].max())


# -- slow engines ---------------------------------------------------------------------------------


def test_an_idle_engine_takes_the_rows_of_one_that_turns_slow(tmp_path: Path) -> None:
    """It had nothing to do when the other was still fast; it is asked again."""
    slow = {"at_s": 6, "kind": "slow", "gpu": 0, "factor": 10}
    moved = job(tmp_path, rows_of(2000, 50, 2000, 50), slow, overrides=STEALS)
    stayed = simulate(replace(moved, overrides=(*STEALS, ("placement.steal", "false"))))
    record = simulate(moved)
    assert record.rows["engine"].tolist() == [1, 1, 1, 1]
    assert bct_ps(record) < 0.5 * bct_ps(stayed)


def test_an_engine_that_was_slow_heals(tmp_path: Path) -> None:
    """Also when it had nothing to do and nobody had rows to try it with: the first that comes later
    runs there, and then it gets its share."""
    slow = {"at_s": 1, "kind": "slow", "gpu": 0, "factor": 10, "for_s": 10}
    rows = [row for at_s in (0, 100, 200) for row in rows_of(*[1000] * 8, at_s=at_s)]
    record = simulate(job(tmp_path, rows, slow, overrides=STEALS, arrivals="trace"))
    engines = record.rows["engine"].tolist()
    assert engines[:8] == [1] * 8
    assert engines[8:16].count(0) == 1
    assert engines[16:].count(0) == 4


def test_an_engine_that_stays_slow_is_tried_with_one_row_at_a_time(tmp_path: Path) -> None:
    """Whoever is free takes that row over."""
    slow = {"at_s": 1, "kind": "slow", "gpu": 0, "factor": 10}
    rows = [row for at_s in (0, 100, 200) for row in rows_of(*[1000] * 8, at_s=at_s)]
    record = simulate(job(tmp_path, rows, slow, overrides=STEALS, arrivals="trace"))
    assert set(record.rows["engine"].tolist()) == {1}
    assert record.rows["migrations"][8:].sum() <= 2


# -- troubles of several GPUs ---------------------------------------------------------------------


def test_troubles_of_two_gpus_of_an_engine_overlap(tmp_path: Path) -> None:
    """The end of the one does not heal the other."""
    first = {"at_s": 0, "kind": "slow", "gpu": 0, "factor": 4, "for_s": 60}
    second = {"at_s": 1, "kind": "slow", "gpu": 1, "factor": 2, "for_s": 1}
    whole = job(tmp_path, rows_of(1000, 1000), first, layout="tp2")
    alone = bct_ps(simulate(whole))
    both = job(tmp_path, rows_of(1000, 1000), first, second, layout="tp2")
    assert bct_ps(simulate(both)) == alone
    healthy = bct_ps(simulate(replace(both, faults=None)))
    assert alone == pytest.approx(4 * healthy, rel=0.001)


def test_the_command_takes_troubles_of_the_gpus_of_an_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """GPUs 2 and 3 are the second engine; its trouble ends when both are well."""
    trouble = [
        {"at_s": 0, "kind": "slow", "gpu": 3, "factor": 3, "for_s": 60},
        {"at_s": 1, "kind": "slow", "gpu": 2, "factor": 2, "for_s": 2},
        {"at_s": 2, "kind": "notice", "gpu": 0, "deadline_s": 4},
        {"at_s": 3, "kind": "back", "gpu": 0},
    ]
    load = job(tmp_path, rows_of(1000, 1000), *trouble, gpus=4, layout="tp2")
    assert load.faults is not None
    machine = ("--model", load.model, "--gpu", load.gpu, "--gpus", "4", "--layout", "tp2")
    command = ["sim", "--trace", load.trace, *machine, "--policy", "orca", "--json"]
    bct_s = []
    for faults in ([], ["--faults", load.faults]):
        assert main([*command, *faults]) == 0
        bct_s.append(json.loads(capsys.readouterr().out)["runs"][0]["bct_s"])
    assert bct_s[1] == pytest.approx(3 * bct_s[0], rel=0.01)


def test_an_engine_is_back_when_all_its_gpus_are(tmp_path: Path) -> None:
    lost = [{"at_s": 1, "kind": "lost", "gpu": gpu} for gpu in (0, 1)]
    back = [{"at_s": 3, "kind": "back", "gpu": 0}, {"at_s": 50, "kind": "back", "gpu": 1}]
    record = simulate(job(tmp_path, rows_of(300, 300), *lost, *back, layout="tp2"))
    assert set(record.row_reasons) <= ENDED
    idle = (record.steps["start_ps"] > 1.1e12) & (record.steps["start_ps"] < 50e12)
    assert not idle.any()
    never = simulate(job(tmp_path, rows_of(300, 300), *lost, back[0], layout="tp2"))
    assert never.row_reasons == ["no_device"] * 2


def test_an_engine_that_comes_back_gets_its_share_and_no_more(tmp_path: Path) -> None:
    """What others were given before has mostly run."""
    trouble = [
        {"at_s": 0.01, "kind": "lost", "gpu": 0},
        {"at_s": 60, "kind": "back", "gpu": 0},
    ]
    rows = rows_of(*[300] * 40) + rows_of(*[300] * 20, at_s=100)
    steals = (*STEALS, ("placement.steal", "false"))
    record = simulate(job(tmp_path, rows, *trouble, overrides=steals, arrivals="trace"))
    assert record.rows["engine"].tolist()[40:].count(0) == 10


def test_what_the_host_has_outlives_the_device(tmp_path: Path) -> None:
    """Checkpoints streamed to the host are copied to the other engine; nearly nothing is computed
    again."""
    lost = {"at_s": 10, "kind": "lost", "gpu": 0}
    record = simulate(job(tmp_path, rows_of(*[1500] * 4, prompt=4000), lost, policy="batchgen"))
    assert set(record.rows["engine"].tolist()) == {1}
    moved = record.rows["migrations"] > 0
    assert moved.sum() == 2
    assert (record.rows["recomputed_tokens"][moved] <= 64).all()  # a page that was still open


# -- the tail -------------------------------------------------------------------------------------

WIDE: dict[str, Any] = {
    "model": "deepseek-r1",
    "gpu": "h20",
    "gpus": 32,
    "layout": "dpa16+ep16",
    "policy": "batchgen",
    "max_output_tokens": 5000,
}


def switches(record: RunRecord) -> list[tuple[int, str]]:
    return [
        (mark["engine"], mark["text"].split(" for ")[0])
        for mark in record.marks
        if mark["kind"] == "switch"
    ]


def test_an_engine_is_partitioned_only_when_no_row_can_come(tmp_path: Path) -> None:
    rows = rows_of(*[5000] * 4, *[100] * 60) + rows_of(100, at_s=250)
    slow_links = (("cost.internode_collective_s", "0.0005"),)
    more: dict[str, Any] = {**WIDE, "gpus": 16, "overrides": slow_links}
    record = simulate(job(tmp_path, rows, **more, arrivals="trace"))
    times = [mark["t_ps"] for mark in record.marks if mark["kind"] == "switch"]
    assert times
    assert min(times) >= 250e12


def test_a_row_that_fits_only_at_home_undoes_the_partition(tmp_path: Path) -> None:
    """An engine is lost, and its long row comes to one that has gathered on one node."""
    rows = rows_of(2000, prompt=160_000) + rows_of(*[5000] * 8)
    lost = {"at_s": 45, "kind": "lost", "gpu": 0}
    record = simulate(job(tmp_path, rows, lost, **WIDE, overrides=(("tail.rows_per_rank", "0.5"),)))
    assert switches(record)[:2] == [(1, "one node tp8"), (1, "home")]
    assert set(record.row_reasons) <= ENDED


# -- sizes of passes ------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["static", "orca"])
def test_no_pass_exceeds_the_token_budget(tmp_path: Path, policy: str) -> None:
    rows = rows_of(*[20] * 60, prompt=3000)
    record = simulate(job(tmp_path, rows, policy=policy, gpus=1))
    budget = record.config["plan"]["token_budget"]
    sizes = record.steps["prompt_tokens"] / record.steps["passes"]
    assert budget / 2 < sizes.max() <= budget


def test_static_pads_prompts_to_the_longest_of_their_pass(tmp_path: Path) -> None:
    """A short prompt beside a long one costs as much as a long one; in Orca it does not."""
    mixed, even = rows_of(5) + rows_of(*[5] * 3, prompt=2000), rows_of(*[5] * 4, prompt=2000)
    first = {}
    for policy in ("static", "orca"):
        for name, rows in (("mixed", mixed), ("even", even)):
            record = simulate(job(tmp_path, rows, policy=policy, gpus=1))
            first[policy, name] = int(record.rows["first_token_ps"].max())
    assert first["static", "mixed"] == first["static", "even"]
    assert first["orca", "mixed"] < 0.9 * first["orca", "even"]


def test_ended_rows_of_a_static_batch_are_dead_weight(tmp_path: Path) -> None:
    """They keep their place in every pass and their pages until the last row has ended."""
    seen = []
    for outputs in ([10] * 99 + [1000], [1000] * 100):
        record = simulate(job(tmp_path, rows_of(*outputs), policy="static", gpus=1))
        decodes = record.steps["kind"] == 0
        seen.append((bct_ps(record), record.steps["kv_pages"][decodes].max()))
    assert seen[0] == seen[1]


def test_a_static_batch_fills_memory_and_not_one_pass(tmp_path: Path) -> None:
    """However many passes its prompts take."""
    rows = rows_of(*[20] * 60, prompt=3000)
    record = simulate(job(tmp_path, rows, policy="static", gpus=1))
    assert record.steps["running"].max() > 40


# -- pages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["vllm", "batchgen"])
def test_the_kv_peak_is_that_of_the_end_of_steps(tmp_path: Path, policy: str) -> None:
    """A row alone: its last token has no KV, all before it have."""
    record = simulate(job(tmp_path, rows_of(4000), gpus=1, policy=policy))
    page = record.config["plan"]["page_tokens"]
    pages = -(-(100 + 4000 - 1) // page)
    total = record.engines[0]["hbm_pages_total"]
    assert summary(record)["kv_peak_fraction"] == pytest.approx(pages / total, abs=1e-9)


def test_a_row_that_cannot_fit_says_what_it_needs_and_what_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command names it, and spares the others."""
    small = job(tmp_path, rows_of(10, 10) + rows_of(10, prompt=100_000), gpus=1)
    options = ("--set", "plan.memory_fraction=0.24", "--max-output-tokens", "4000")
    machine = ("--model", small.model, "--gpu", small.gpu, "--gpus", "1", "--policy", "vllm")
    out = tmp_path / "out"
    assert main(["sim", "--trace", small.trace, *machine, *options, "--out", str(out)]) == 1
    record = load_run(out / "vllm")
    assert record.row_reasons[2] == "capacity"
    assert set(record.row_reasons[:2]) <= ENDED
    needed, have = -(-100_001 // 16), record.engines[0]["hbm_pages_total"]
    text = f"need {needed} pages of 16, a rank has {have}"
    talk = capsys.readouterr().err
    assert f"vllm: row 2 failed, capacity: 100000 tokens and the next {text}" in talk
    assert text in record.config["why_failed"]["2"]


SCARCE = (("plan.memory_fraction", "0.22"),)


@pytest.mark.parametrize(
    ("policy", "swap"),
    [
        ("vllm", ("memory.part", "suspend-most-decoded")),
        ("vllm", ("order.part", "by-prompt")),
        ("vllm", ("admission.part", "lazy-pages")),
        ("batchgen", ("admission.part", "fits-now")),
        ("batchgen", ("phase.part", "mixed")),
    ],
)
def test_compositions_that_crashed_or_failed_every_row(
    tmp_path: Path, policy: str, swap: tuple[str, str]
) -> None:
    """They run a load whose rows do not all fit at once to its end."""
    rows = rows_of(*[1500, 600, 2500] * 20, prompt=700)
    record = simulate(job(tmp_path, rows, policy=policy, gpus=1, overrides=(*SCARCE, swap)))
    assert set(record.row_reasons) <= ENDED
    np.testing.assert_array_equal(record.rows["output_tokens"], [1500, 600, 2500] * 20)
    assert summary(record)["kv_peak_fraction"] > 0.8


# -- the end of the clock -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # 46 GB cross the link in every pass: 500 passes take longer than int64 picoseconds hold.
        ({"plan.weights": "layers", "cost.node_host_bytes_per_s": "1e6"}, "longer than 106 days"),
        ({"plan.weights": "disk", "cost.disk_read_bytes_per_s": "1e6"}, "longer than 106 days"),
        # Without a stream they are numbers without end, which no column holds.
        ({"cost.kernel_s": "1", "plan.token_budget": "1"}, "longer than 106 days"),
        # Somebody meant gigabytes per second.
        (
            {"plan.weights": "layers", "cost.node_host_bytes_per_s": "48"},
            "bytes per second, 0 or from 1e+06",
        ),
        (
            {"plan.weights": "disk", "cost.disk_read_bytes_per_s": "48"},
            "bytes per second, 0 or from 1e+06",
        ),
        (
            {"plan.kv": "disk", "cost.disk_write_bytes_per_s": "1e-300"},
            "bytes per second, 0 or from 1e+06",
        ),
    ],
)
def test_a_run_beyond_the_clock_is_refused(
    tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    """Its times were negative, below its bounds, or an internal error."""
    long = rows_of(50, 500) if "plan.token_budget" not in changes else rows_of(5, prompt=110_000)
    model = "mixtral-8x7b" if "plan.token_budget" not in changes else "llama-3.1-8b"
    small = job(tmp_path, long, model=model, gpu="h200", gpus=1, overrides=tuple(changes.items()))
    with pytest.raises(UserError, match=re.escape(message)):
        simulate(small)


def test_passes_of_a_slow_machine_are_exact_up_to_the_end_of_the_clock(tmp_path: Path) -> None:
    """A pass of 15 s a thousand times slower: thousandths of it are more than int64 holds."""
    disk = (("plan.weights", "disk"), ("cost.disk_read_bytes_per_s", "3e9"))
    small = job(tmp_path, rows_of(3), model="mixtral-8x7b", gpu="h200", gpus=1, overrides=disk)
    slow = lines(tmp_path / "slow.jsonl", [{"at_s": 0, "kind": "slow", "gpu": 0, "factor": 1000}])
    assert bct_ps(simulate(replace(small, faults=slow))) == 1000 * bct_ps(simulate(small))


def test_a_part_that_knows_lengths_is_refused_where_nobody_tells_them(tmp_path: Path) -> None:
    """`--set predictor.part=oracle` ran, and knew nothing."""
    small = job(tmp_path, rows_of(3, 9), overrides=(("predictor.part", "oracle"),))
    with pytest.raises(UserError, match="part oracle needs lengths; give --oracle") as caught:
        simulate(small)
    assert "\n" not in str(caught.value)
    assert set(simulate(replace(small, oracle=True)).row_reasons) <= ENDED

"""Device traces in the simulator: what it honours, and what it refuses in one line."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchgen.catalog.systems import system_names
from batchgen.cli import main
from batchgen.errors import DataError, UserError
from batchgen.policy.presets import PRESETS, find_preset
from batchgen.report.record import RunRecord
from batchgen.sim.run import simulate
from batchgen.sim.setup import knows_lengths
from batchgen.simjob import SimJob
from batchgen.trace.devices import save
from batchgen.trace.devices.generate import KINDS, DrawOptions, draw
from batchgen.trace.devices.rates import rates

ENDED = {"stop", "length"}


def lines(path: Path, items: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return str(path)


def load_of(path: Path, rows: int, *, skew: float = 0.0, prompt: int = 200) -> str:
    header = {"batchgen_trace": 1, "name": "t", "expert_skew": skew}
    row = {"prompt_tokens": prompt, "output_tokens": 400}
    return lines(path, [header, *[row] * rows])


def moe(tmp_path: Path, *devices: dict[str, Any], skew: float = 0.0, **more: Any) -> SimJob:
    """Experts over eight GPUs of one node."""
    standard: dict[str, Any] = {
        "model": "mixtral-8x7b",
        "gpu": "h20",
        "gpus": 8,
        "layout": "dpa8+ep8",
        "policy": "vllm",
    }
    trace = load_of(tmp_path / f"t{skew}.jsonl", 64, skew=skew)
    if devices:
        standard["faults"] = lines(tmp_path / "d.jsonl", list(devices))
    return SimJob(trace=trace, **{**standard, **more})


def bct_ps(record: RunRecord) -> int:
    return int(record.rows["end_ps"].max())


def test_a_skew_from_the_start_is_that_of_the_load(tmp_path: Path) -> None:
    own = simulate(moe(tmp_path, skew=1.2))
    told = simulate(moe(tmp_path, {"at_s": 0, "kind": "skew", "factor": 1.2}))
    np.testing.assert_array_equal(own.rows["end_ps"], told.rows["end_ps"])
    assert bct_ps(own) > 1.02 * bct_ps(simulate(moe(tmp_path)))


@pytest.mark.parametrize("layout", ["dpa8+ep8", "tp2+pp2"])
def test_a_skew_of_a_while_costs_its_while(tmp_path: Path, layout: str) -> None:
    """And the return to the load's own, whatever that is; of the stages of a pipeline too."""
    even = simulate(moe(tmp_path, layout=layout))
    whole = simulate(moe(tmp_path, {"at_s": 0, "kind": "skew", "factor": 1.2}, layout=layout))
    half_s = bct_ps(even) / 2e12
    spell = {"at_s": 0, "kind": "skew", "factor": 1.2, "for_s": half_s}
    part = simulate(moe(tmp_path, spell, layout=layout))
    # Without ranks of experts a skew makes passes shorter: fewer experts are read.
    first, last = (even, whole) if layout == "dpa8+ep8" else (whole, even)
    assert bct_ps(first) < bct_ps(part) < bct_ps(last)
    none = {"at_s": half_s, "kind": "skew", "factor": 1.2}
    spell = {**spell, "factor": 0.0, "for_s": 1e6}
    same = simulate(moe(tmp_path, spell, none, skew=1.2, layout=layout))
    assert (bct_ps(same) > bct_ps(even)) == (layout == "dpa8+ep8")
    assert same.config["bounds"] == {}  # passes were cheaper than those of the bounds


def test_a_skew_that_was_not_measured_is_refused(tmp_path: Path) -> None:
    steep = {"at_s": 5, "kind": "skew", "factor": 3}
    with pytest.raises(UserError, match=r"experts were measured up to 1\.2"):
        simulate(moe(tmp_path, steep, costs="measured", layout="tp8", gpu="h200"))


def test_copies_of_a_busy_host_take_longer(tmp_path: Path) -> None:
    """Rows of a policy that suspends: every copy of a busy host, no pass."""
    trace = load_of(tmp_path / "t.jsonl", 64, prompt=2000)
    job = SimJob(
        trace=trace,
        model="llama-3.1-8b",
        gpu="a100-80g",
        gpus=1,
        layout="tp1",
        policy="batchgen",
        overrides=(("plan.memory_fraction", "0.26"), ("plan.page_tokens", "16")),
        max_output_tokens=400,
    )
    healthy = simulate(job)
    if not healthy.rows["suspensions"].sum():
        pytest.fail("the case is to suspend rows")
    busy = lines(tmp_path / "d.jsonl", [{"at_s": 0, "kind": "host", "node": 0, "factor": 400}])
    slowed = simulate(replace(job, faults=busy))
    assert bct_ps(slowed) > bct_ps(healthy)
    assert set(slowed.row_reasons) <= ENDED


def test_a_busy_host_is_refused_where_passes_read_it(tmp_path: Path) -> None:
    busy = {"at_s": 0, "kind": "host", "node": 0, "factor": 2}
    streams = (("plan.weights", "spill"), ("plan.kv", "host"))
    with pytest.raises(UserError, match="'host' lines slow copies of KV") as caught:
        simulate(moe(tmp_path, busy, gpus=1, layout="tp1", overrides=streams))
    assert "\n" not in str(caught.value)


def test_a_line_of_a_node_is_one_of_its_gpus(tmp_path: Path) -> None:
    by_node = [
        {"at_s": 1, "kind": "lost", "node": 1, "for_s": 3},
        {"at_s": 2, "kind": "slow", "node": 0, "factor": 2, "for_s": 3},
    ]
    by_gpu = [
        {**{k: v for k, v in line.items() if k != "node"}, "gpu": 2 * line["node"] + n}
        for line in by_node
        for n in (0, 1)
    ]
    job = moe(tmp_path, model="llama-3.1-8b", gpu="a100-80g", gpus=4, layout="tp1")
    job = replace(job, gpus_per_node=2)
    ends = [
        simulate(replace(job, faults=lines(tmp_path / f"{n}.jsonl", which))).rows["end_ps"]
        for n, which in enumerate((by_node, by_gpu))
    ]
    np.testing.assert_array_equal(*ends)
    outside = lines(tmp_path / "o.jsonl", [{"at_s": 1, "kind": "lost", "node": 2}])
    with pytest.raises(DataError, match=r"field 'node'.*use 0 to 1"):
        simulate(replace(job, faults=outside))


HARSH = (
    ("failures.mtbf_gpu_h", "0.01"),
    ("failures.repair_mean_h", "0.001"),
    ("slow.gpu_per_h", "100"),
    ("slow.gpu_mean_s", "5"),
    ("slow.node_per_h", "100"),
    ("slow.node_mean_s", "5"),
    ("spot.node_per_h", "200"),
    ("spot.down_median_h", "0.001"),
    ("spot.notice_s", "2"),
    ("host.node_per_h", "200"),
    ("host.mean_s", "5"),
    ("skew.step_s", "3"),
)


@pytest.mark.parametrize(
    ("policy", "seed"),
    [
        *((name, seed) for name in PRESETS for seed in range(4)),
        *((name, seed) for name in system_names() for seed in (0, 2)),
    ],
)
def test_all_kinds_at_once_lose_no_row(tmp_path: Path, policy: str, seed: int) -> None:
    """Whatever is drawn, on engines of one GPU, of several, and on pipelines."""
    rng = random.Random(seed)
    layout, node = rng.choice((("dpa2+ep2", 4), ("tp2", 2), ("tp1+pp2", 4), ("tp4", 4)))
    # Passes that read weights or KV on the host know nothing of a busy one, and it is refused.
    reads_host = not {"weights", "kv"}.isdisjoint(find_preset(policy).plan)
    kinds = tuple(kind for kind in KINDS if not (reads_host and kind == "host"))
    options = DrawOptions(gpus=8, gpus_per_node=node, hours=0.02, kinds=kinds, seed=seed)
    save(draw(options, rates(HARSH)), tmp_path / "d.jsonl")
    job = moe(
        tmp_path,
        layout=layout,
        gpu="h200",
        gpus_per_node=node,
        policy=policy,
        faults=str(tmp_path / "d.jsonl"),
        oracle=knows_lengths(find_preset(policy)),
    )
    record = simulate(job)
    assert len(record.marks) > 10
    assert set(record.row_reasons) <= {*ENDED, "no_device"}
    done = np.array([reason in ENDED for reason in record.row_reasons])
    assert (record.rows["output_tokens"][done] == 400).all()
    again = simulate(job)
    np.testing.assert_array_equal(again.rows["end_ps"], record.rows["end_ps"])


def test_devices_and_faults_are_one_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = load_of(tmp_path / "t.jsonl", 4)
    devices = lines(tmp_path / "d.jsonl", [{"at_s": 0, "kind": "slow", "gpu": 0, "factor": 2}])
    machine = ["--model", "llama-3.1-8b", "--gpu", "a100-80g", "--gpus", "1", "--layout", "tp1"]
    found = []
    for option in ([], ["--devices", devices], ["--faults", devices]):
        assert main(["sim", "--trace", trace, *machine, "--json", *option]) == 0
        found.append(json.loads(capsys.readouterr().out)["runs"][0]["bct_s"])
    assert found[1] == found[2] > 1.5 * found[0]

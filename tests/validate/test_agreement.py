"""Agreement (c): exec on a stub clock and sim write the same log, times included."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from batchgen.cli import main
from batchgen.cli.agreement import compare_backends, make_load
from batchgen.exec.init import ARCHITECTURES

PRESETS = ("static", "orca", "vllm", "batchgen")
FAMILIES = tuple(ARCHITECTURES)
SMALL_PAGES = (("plan.page_tokens", "8"), ("plan.boundary", "16"), ("plan.token_budget", "512"))


@pytest.mark.parametrize("policy", PRESETS)
def test_logs_are_equal_over_the_grid(
    policy: str, tiny_models: dict[str, Path], prompts: Path
) -> None:
    sums = dict.fromkeys(("cuts", "preemptions", "suspensions", "early_ends", "cancelled"), 0)
    grid = [(40, 0.0), (40, 0.2), (40, 1.0), (400, 0.0), (400, 0.2), (400, 1.0)]
    for seed, (hbm_pages, rate) in enumerate(grid, start=1):
        result = compare_backends(
            tiny_models["qwen3"],
            prompts,
            policy,
            hbm_pages=hbm_pages,
            rate=rate,
            cancel=3,
            seed=seed,
            overrides=SMALL_PAGES,
        )
        assert result["equal"], result
        assert result["rows"] == 16
        for name in sums:
            sums[name] += result[name]
    assert sums["cuts"] > 0
    assert sums["early_ends"] > 0
    assert sums["cancelled"] > 0
    assert (sums["preemptions"] > 0) == (policy == "vllm")
    assert (sums["suspensions"] > 0) == (policy == "batchgen")


@pytest.mark.parametrize("depth", ["1", "2"])
@pytest.mark.parametrize("arch", FAMILIES)
@pytest.mark.parametrize("policy", PRESETS)
def test_every_family_at_both_depths_agrees(
    policy: str, arch: str, depth: str, tiny_models: dict[str, Path], prompts: Path
) -> None:
    """Depth 2: outcomes come one pass late in both, and a row that ended runs once more."""
    for seed, (hbm_pages, rate) in enumerate([(40, 0.2), (400, 1.0)], start=1):
        result = compare_backends(
            tiny_models[arch],
            prompts,
            policy,
            limit=10,
            hbm_pages=hbm_pages,
            rate=rate,
            cancel=2,
            seed=seed,
            overrides=(*SMALL_PAGES, ("plan.depth", depth)),
        )
        assert result["equal"], result


@pytest.mark.parametrize("arch", FAMILIES)
@pytest.mark.parametrize("depth", ["1", "2"])
def test_shared_prefixes_agree(
    depth: str, arch: str, tiny_models: dict[str, Path], alike_prompts: Path
) -> None:
    """Prompts begin alike, so that rows adopt, publish and evict pages in both."""
    adopted = 0
    for policy in ("vllm", "batchgen"):
        for hbm_pages in (40, 400):
            result = compare_backends(
                tiny_models[arch],
                alike_prompts,
                policy,
                hbm_pages=hbm_pages,
                overrides=(*SMALL_PAGES, ("plan.depth", depth), ("plan.prefix_cache", "true")),
            )
            assert result["equal"], result
            adopted += result["adopted"]
    assert adopted > 0


@pytest.mark.parametrize("policy", PRESETS)
def test_the_reference_mode_agrees(
    policy: str, tiny_models: dict[str, Path], prompts: Path
) -> None:
    steps = {}
    for reference in (False, True):
        result = compare_backends(
            tiny_models["llama"],
            prompts,
            policy,
            limit=8,
            rate=0.5,
            reference=reference,
            overrides=SMALL_PAGES,
        )
        assert result["equal"], result
        steps[reference] = result["events"], result["bct_s"], result["tokens"]
    assert steps[True][0] > steps[False][0]
    assert steps[True][1:] == steps[False][1:]


def test_hosts_too_small_to_suspend_into(tiny_models: dict[str, Path], prompts: Path) -> None:
    given_way = 0
    for host_pages, hbm_pages in ((0, 40), (0, 60), (30, 40)):
        result = compare_backends(
            tiny_models["llama"],
            prompts,
            "batchgen",
            hbm_pages=hbm_pages,
            host_pages=host_pages,
            rate=0.0,
            overrides=SMALL_PAGES,
        )
        assert result["equal"], result
        given_way += result["preemptions"]
    assert given_way > 0


def test_a_difference_is_found(
    tiny_models: dict[str, Path], prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison itself: with a simulator that times passes otherwise it must not be equal."""
    from batchgen.sim.passtimes import PassTimes

    right = PassTimes.elapsed
    monkeypatch.setattr(PassTimes, "elapsed", lambda self, passes: right(self, passes) + 1)
    result = compare_backends(tiny_models["llama"], prompts, "vllm", limit=4)
    assert not result["equal"]
    assert result["exec_line"] != result["sim_line"]


def test_the_load_is_seeded_and_cancels_early_rows(
    tiny_models: dict[str, Path], prompts: Path
) -> None:
    from batchgen.cost.build import build_cost
    from batchgen.hardware import load_gpu
    from batchgen.layout import Layout
    from batchgen.model import load_model
    from batchgen.sequence import Table

    cost = build_cost(load_model(tiny_models["llama"]), load_gpu("h100"), Layout())
    table = Table([10] * 40, [20] * 40)
    loads = [make_load(table, cost, rate=0.5, cancel=3, seed=seed) for seed in (1, 1, 2)]
    assert loads[0] == loads[1] != loads[2]
    assert loads[0].arrivals_ps[0] == 0
    assert (np.diff(loads[0].arrivals_ps) >= 0).all()
    assert all(event.rows[0] < 13 for _, event in loads[0].events)


def test_the_command(
    tiny_models: dict[str, Path], prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["validate", "agreement", "--model", str(tiny_models["qwen3"]), "-i", str(prompts)]
    assert main(args) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == list(PRESETS)
    for line in lines:
        assert "equal, times included" in line
        assert " 0 cuts" not in line
        assert " 0 ended early" not in line
    assert " 0 preemptions" not in lines[2]
    assert " 0 suspensions" not in lines[3]
    assert main([*args, "--policies", "vllm", "--json", "--limit", "5"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    assert [run["equal"] for run in document["runs"]] == [True]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--rate", "-1"], "an arrival rate of -1.0"),
        (["--rate", "nan"], "an arrival rate of nan"),
        (["--cancel", "-1"], "-1 rows to cancel"),
        (["--hbm-pages", "1"], "1 hbm and"),
        (["--max-tokens", "0"], "--max-tokens is 0"),
        (["--limit", "0"], "--limit is 0"),
        (["--policies", "vlm"], "unknown policy 'vlm'; did you mean vllm"),
        (["--gpu", "h1000"], "unknown GPU 'h1000'"),
        (["--seed", "-1"], "--seed"),
    ],
)
def test_bad_numbers_are_one_line(
    tiny_models: dict[str, Path],
    prompts: Path,
    capsys: pytest.CaptureFixture[str],
    extra: list[str],
    message: str,
) -> None:
    args = ["validate", "agreement", "--model", str(tiny_models["llama"]), "-i", str(prompts)]
    assert main([*args, *extra]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message.lower() in err.lower()


def test_an_input_of_bad_rows_only(
    tiny_models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "bad.jsonl"
    rows.write_text("{}\n[]\n")
    args = ["validate", "agreement", "--model", str(tiny_models["llama"]), "-i", str(rows)]
    assert main(args) == 2
    assert "bad.jsonl can run; line 1: " in capsys.readouterr().err

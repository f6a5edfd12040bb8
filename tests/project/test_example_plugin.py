"""examples/plugin, built and put on the path as an installed package is: both backends find it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from example_packages import ROOT, batchgen, installed

PRESET = "vllm-shortest-prompt"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel of the plug-in, entry points included."""
    return installed("plugin", tmp_path_factory.mktemp("plugin"))


def test_sim_runs_the_preset_and_the_order_matters(site: Path, tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    prompts = [900, 500, 100, 700, 300] * 8
    trace.write_text("".join(f'{{"prompt_tokens": {p}, "output_tokens": 20}}\n' for p in prompts))
    ends = {}
    for policy in ("vllm", PRESET):
        done = batchgen(
            site, "sim", "--trace", str(trace), "--model", "llama-3.1-8b", "--gpu", "h100",
            "--gpus", "1", "--policy", policy, "--set", "plan.max_num_seqs=1", "--progress", "off",
            "--out", str(tmp_path / policy),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        import pyarrow.parquet as pq

        rows = pq.read_table(tmp_path / policy / policy / "rows.parquet").to_pydict()
        ends[policy] = [p for _, p in sorted(zip(rows["end_ps"], prompts, strict=True))]
    assert ends["vllm"] == prompts
    assert ends[PRESET] == sorted(prompts)


def test_exec_runs_the_preset(site: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    model, prompts = tmp_path / "model", tmp_path / "p.jsonl"
    assert batchgen(site, "model", "init", str(model)).returncode == 0
    prompts.write_text("".join(f'{{"prompt": "{"x" * n}"}}\n' for n in (30, 10, 20)))
    done = batchgen(
        site, "exec", "--model", str(model), "-i", str(prompts), "-o", str(tmp_path / "o.jsonl"),
        "--policy", PRESET, "--max-tokens", "8", "--json", "--progress", "off",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = json.loads(done.stdout)["runs"]
    assert (run["policy"], run["finished_rows"]) == (PRESET, 3)


def test_unknown_without_the_package(tmp_path: Path) -> None:
    done = batchgen(tmp_path, "sim", "--trace", str(ROOT / "README.md"), "--policy", PRESET)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr

"""`batchgen bench published`: what the catalog says of published times, some of them simulated."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from batchgen.catalog.published import (
    Outcome,
    job_of,
    load_published,
    mean_error,
    misordered,
    ratios,
    respread,
    write_trace,
)
from batchgen.catalog.systems import find_cluster
from batchgen.cli import main
from batchgen.layout import parse_layout
from batchgen.model import load_model
from batchgen.policy.presets import find_preset
from batchgen.simcommand import command
from batchgen.trace.lengths import parse_lengths

DATA = load_published()
EXACT = [Outcome(cell=cell, minutes=cell.minutes) for cell in DATA.cells]


def test_every_cell_names_what_there_is() -> None:
    for cell in DATA.cells:
        load = DATA.loads[cell.load]
        load_model(load.model)
        find_preset(cell.system)
        find_cluster(cell.cluster)
        parse_layout(cell.layout, cell.gpus)
        assert parse_lengths(load.prompt)
        assert parse_lengths(load.output)
        assert all(key.startswith("plan.") for key in cell.changes)  # no constant of its own
    keys = [(cell.load, cell.gpus, cell.label) for cell in DATA.cells]
    assert len(set(keys)) == len(keys)
    assert len(ratios(DATA, EXACT)) == len(DATA.ratios)


def test_errors_orders_and_ratios_are_told() -> None:
    assert mean_error(EXACT) == 0
    wrong, count = misordered(EXACT)
    assert not wrong
    assert count > 40
    # The slowest of a load made the fastest: it is out of order with all others of that load.
    slowest = max(
        range(len(EXACT)), key=lambda i: (EXACT[i].cell.load == "8k-2k-6k", EXACT[i].cell.minutes)
    )
    changed = list(EXACT)
    changed[slowest] = replace(EXACT[slowest], minutes=1.0)
    others = sum(cell.load == "8k-2k-6k" for cell in DATA.cells) - 1
    assert len(misordered(changed)[0]) == others
    assert not changed[slowest].passes
    assert mean_error(changed) == pytest.approx((1 - 1 / 816.7) / len(EXACT))
    halved = [
        replace(one, minutes=one.minutes / (2 if "batchgen" in one.cell.label else 1))
        for one in EXACT
    ]
    for found in ratios(DATA, halved):
        assert found.simulated == pytest.approx(2 * found.published)
        assert not found.passes
    assert not replace(EXACT[0], failed_rows=1).passes


def test_some_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "published.json"
    only = ["--only", "gsm8k", "--no-spread"]
    assert main(["bench", "published", *only, "--json", "--out", str(out)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads(out.read_text())
    assert len(document["cells"]) == 5
    assert all(abs(cell["error"]) <= 0.15 and not cell["failed"] for cell in document["cells"])
    assert (document["orders_compared"], document["orders_wrong"]) == (9, 0)
    assert main(["bench", "published", "--out", str(out)]) == 2
    assert main(["bench", "published", "--only", "nothing"]) == 2
    assert "leaves no cell" in capsys.readouterr().err


def test_a_missed_bar_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [cell for cell in DATA.cells if cell.system == "flexgen-osdi26"]
    half = type(DATA)(
        loads=DATA.loads,
        cells=[msgspec.structs.replace(cell, minutes=cell.minutes / 2) for cell in cells],
        ratios=[],
    )
    monkeypatch.setattr("batchgen.catalog.published.load_published", lambda: half)
    assert main(["bench", "published", "--no-spread", "--no-mitigation"]) == 1
    said = capsys.readouterr()
    assert "flexgen-osdi26 on 1 GPUs, gsm8k: +10" in said.err
    assert "!" in said.out


def test_each_cell_has_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only = ["--only", "sglang-opt sglang-opt 8 h20-ib"]
    assert main(["bench", "published", *only, "--commands", str(tmp_path / "new" / "place")]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("batchgen sim --trace ")
    assert main([*line.split()[1:], "--json"]) == 0
    bct_s = json.loads(capsys.readouterr().out)["runs"][0]["bct_s"]
    assert bct_s / 60 == pytest.approx(816.7, rel=0.15)
    capsys.readouterr()
    (tmp_path / "file").touch()
    assert main(["bench", "published", "--commands", str(tmp_path / "file")]) == 2
    assert f"--commands {tmp_path / 'file'} cannot be made (File exists)" in capsys.readouterr().err


def test_a_job_is_what_the_command_of_its_cell_says() -> None:
    for cell in DATA.cells:
        job = job_of(cell, DATA.loads[cell.load], Path("x.jsonl"))
        words = command(job).split()
        given = [
            *("--trace", job.trace, "--model", job.model, "--cluster", job.cluster),
            *("--gpus", str(job.gpus), "--layout", job.layout, "--policy", job.policy),
        ]
        given += [word for key, value in job.overrides for word in ("--set", f"{key}={value}")]
        assert words == ["batchgen", "sim", *given]


def test_a_trace_is_written_once_and_has_the_lengths_of_its_load(tmp_path: Path) -> None:
    load = msgspec.structs.replace(DATA.loads["8k-2k-6k"], rows=3)
    path = write_trace("three", load, tmp_path)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if "prompt_tokens" in row]
    assert [(row["prompt_tokens"], row["output_tokens"]) for row in rows] == [(8192, 2048)] * 3
    path.write_text("kept", encoding="utf-8")
    assert write_trace("three", load, tmp_path).read_text(encoding="utf-8") == "kept"


def test_only_mixes_are_spread_otherwise() -> None:
    for load in DATA.loads.values():
        changed = respread(load, sigma=0.6, cut_tokens=8192)
        if load.output.startswith("constant"):
            assert changed is None
        else:
            assert changed is not None
            prompt, output = parse_lengths(changed.prompt), parse_lengths(changed.output)
            assert (prompt.sigma, output.sigma, output.max) == (0.6, 0.6, 8192)  # type: ignore[union-attr]


@pytest.mark.parametrize("sigma", [0.2, 0.6, 1.0])
@pytest.mark.parametrize("cut", [8192, 16384, 38631])
def test_other_spreads_have_the_stated_means(sigma: float, cut: int) -> None:
    load = respread(DATA.loads["mix-6.5k-2.8k"], sigma=sigma, cut_tokens=cut)
    assert load is not None
    for text, mean in ((load.prompt, 6500), (load.output, 2800)):
        drawn = parse_lengths(text).sample(np.random.default_rng(3), 200_000)
        assert drawn.mean() == pytest.approx(mean, rel=0.01)
    assert parse_lengths(load.output).sample(np.random.default_rng(3), 200_000).max() <= cut

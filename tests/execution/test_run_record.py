"""The record of a run: work by the roofline's formulas, memory as planned, copies as made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from exec_cases import Case
from safetensors.torch import load_file, save_file

from batchgen.cost.api import PassLoad
from batchgen.cost.work import useful_flops
from batchgen.exec import run_record
from batchgen.exec.clock import WallClock
from batchgen.exec.drive import drive
from batchgen.exec.init import init_model
from batchgen.exec.job import ExecJob
from batchgen.exec.prepare import prepare
from batchgen.exec.run_record import build_record
from batchgen.model import load_model
from batchgen.report.metrics import summary

VOCABULARY = 1_600_000
ROWS = tuple((number, 24) for number in range(8))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_model(tmp_path_factory.mktemp("records") / "m", "qwen3", "tiny", seed=3)


@pytest.mark.parametrize("depth", [1, 2])
def test_every_pass_is_counted_once(depth: int, model: Path, tmp_path: Path) -> None:
    """FLOPs of the steps are those of prompts and outputs, whatever was computed twice on top."""
    case = Case(policy="vllm", rows=ROWS, hbm_pages=200, depth=depth)
    prepared = prepare(case.job(model, tmp_path))
    ran = drive(prepared, WallClock())
    record = build_record(prepared, ran, 1.0, None)
    prompts, outputs = record.rows["prompt_tokens"], record.rows["output_tokens"]
    load = PassLoad.zeros(1, 1)
    load.chunk_tokens[0, 0], load.decodes[0, 0] = prompts.sum(), (outputs - 1).sum()
    load.samples[0, 0] = outputs.sum()
    least = useful_flops(load_model(model), load)[0]  # without what attention reads
    total = record.steps["flops"].sum()
    assert least < total < 3 * least
    assert np.isclose(total, useful_flops(load_model(model), _loads(ran)).sum())
    assert (record.steps["flops"] > 0).all()
    assert (record.steps["hbm_bytes"] > 0).all()
    found = summary(record)
    assert 0 < found["mfu"] < 1
    assert found["mbu"] > 0


def _loads(ran: object) -> PassLoad:
    passes = ran.driver.record.passes
    load = PassLoad.zeros(1, len(passes["decodes"]))
    for name in ("decodes", "context", "chunk_tokens", "chunk_pairs", "chunk_reads", "samples"):
        getattr(load, name)[0] = passes[name]
    return load


def test_memory_and_copies_are_told(model: Path, tmp_path: Path) -> None:
    case = Case(policy="batchgen", rows=ROWS, hbm_pages=16, host_pages=100)
    prepared = prepare(case.job(model, tmp_path))
    ran = drive(prepared, WallClock())
    config = build_record(prepared, ran, 1.0, None).config
    assert config["memory"]["hbm_pages_bytes"] == prepared.worker._hbm.storage.nbytes
    assert config["memory"]["weight_bytes"] == sum(entry.num_bytes for entry in _entries(model))
    assert config["memory"]["peak_rss_bytes"] > config["memory"]["weight_bytes"]
    assert config["copied_bytes"]["hbm to host"] > 0
    assert config["machine"]["matmul_flops"] > 1e6
    assert config["machine"]["memory_bytes_s"] > 1e6


def wide_model(directory: Path) -> Path:
    """Little but an embedding and a head of 200 MB each in bfloat16."""
    init_model(directory, "qwen3", "tiny", seed=3)
    config = json.loads((directory / "config.json").read_text())
    config |= {"vocab_size": VOCABULARY, "tie_word_embeddings": False, "torch_dtype": "bfloat16"}
    (directory / "config.json").write_text(json.dumps(config))
    (weights,) = directory.glob("*.safetensors")
    tensors = load_file(weights)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.zeros(VOCABULARY, config["hidden_size"], dtype=torch.bfloat16)
    save_file(tensors, weights)
    return directory


CHILD = """
import json, sys
from pathlib import Path
import numpy as np
from batchgen.exec.clock import WallClock
from batchgen.exec.drive import drive
from batchgen.exec.job import ExecJob
from batchgen.exec.prepare import prepare
from batchgen.exec.run_record import build_record
model, rows = map(Path, sys.argv[1:])
prepared = prepare(ExecJob(model=model, input=rows, output=Path("out"), dtype="bfloat16"))
ran = drive(prepared, WallClock())
print(json.dumps(build_record(prepared, ran, 1.0, None).config["memory"]))
"""


def test_peak_memory_is_that_of_the_plan(tmp_path: Path) -> None:
    """Within 10 % or 150 MB, whichever is more, of all parts together: weights of 400 MB are there
    once, however they are kept."""
    model = wide_model(tmp_path / "wide")
    rows = tmp_path / "in.jsonl"
    with rows.open("w") as file:
        for number in range(2):
            file.write(json.dumps({"prompt": [1 + number] * 400, "max_tokens": 4}) + "\n")
    child = subprocess.run(
        [sys.executable, "-P", "-c", CHILD, str(model), str(rows)],
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(child.stdout)
    peak = told.pop("peak_rss_bytes")
    assert told.pop("planned_bytes") == sum(told.values())
    planned = sum(told.values())
    assert told["process_bytes"] > 50e6  # torch alone is more
    assert abs(peak - planned) <= max(0.1 * planned, 150e6)


def _entries(model: Path) -> list[object]:
    from batchgen.exec.weights import read_header

    return [e for path in model.glob("*.safetensors") for e in read_header(path).values()]


@pytest.mark.parametrize("policy", ["vllm", "batchgen"])
def test_shared_prompts_are_computed_once(policy: str, model: Path, tmp_path: Path) -> None:
    """By default where prompts share pages; what was adopted was not computed, and is told."""
    shared = list(range(1, 49))
    path = tmp_path / "in.jsonl"
    path.write_text(
        "".join(f'{{"prompt": {[*shared, 60 + n]}, "max_tokens": 4}}\n' for n in range(12))
    )
    job = ExecJob(
        model=model,
        input=path,
        output=tmp_path / "out",
        policy=policy,
        overrides=(("plan.page_tokens", "16"), ("plan.max_num_seqs", "4")),
        threads=1,
    )
    prepared = prepare(job)
    found = summary(build_record(prepared, drive(prepared, WallClock()), 1.0, None))
    assert found["finished_rows"] == 12
    computed = 12 * 49 - found["adopted_tokens"]
    assert found["adopted_tokens"] == 11 * 48
    assert np.isclose(found["prefix_hit_fraction"], 11 * 48 / (11 * 48 + computed))


def test_memory_that_is_too_short_to_measure_the_machine_costs_no_run(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(run_record, "measure_ceilings", short)
    prepared = prepare(Case(policy="vllm", rows=ROWS).job(model, tmp_path))
    record = build_record(prepared, drive(prepared, WallClock()), 1.0, None)
    assert record.config["machine"] == {"matmul_flops": 0.0, "memory_bytes_s": 0.0}
    assert summary(record)["mfu"] is None

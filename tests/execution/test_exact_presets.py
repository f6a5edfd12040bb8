"""Exact mode: the same tokens under every preset, page, chunking, suspension, recomputation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from exec_cases import cost_of, drive_watched
from model_cases import FAMILIES

from batchgen.exec.init import init_model
from batchgen.exec.job import ExecJob
from batchgen.exec.prepare import prepare
from batchgen.exec.worker import Worker

NUM_ROWS = 10


@dataclass(frozen=True, kw_only=True)
class Run:
    """A way to run the job. `hbm` is in tokens; `forces` names the column that must not be zero;
    `modules` are B_attn and B_moe."""

    policy: str
    page: int
    hbm: int = 8192
    host: int = 0
    budget: int = 512
    seqs: int = 8
    spread_ps: int = 0
    forces: str = ""
    modules: tuple[int, int] = (0, 0)
    more: tuple[tuple[str, str], ...] = ()


SUSPENDING = (("memory.part", "suspend-most-decoded"),)
DEPTH_2 = (("plan.depth", "2"),)

# `static` and `orca` reserve the worst case: no row of theirs ever suspends, and none shares pages.
RUNS = {
    "static": Run(policy="static", page=64),
    "orca": Run(policy="orca", page=16),
    "vllm": Run(policy="vllm", page=16),
    "vllm-chunks": Run(policy="vllm", page=16, budget=13, seqs=3),
    "vllm-recompute": Run(policy="vllm", page=16, hbm=512, forces="recomputed"),
    "vllm-token-pages": Run(policy="vllm", page=1, budget=40),
    "batchgen": Run(policy="batchgen", page=64, host=8192),
    "batchgen-suspend": Run(policy="batchgen", page=16, hbm=512, host=8192, forces="suspensions"),
    "batchgen-cuts": Run(policy="batchgen", page=64, host=8192, spread_ps=2 * 10**11),
    "static-modules": Run(policy="static", page=64, modules=(3, 5)),
    "orca-modules": Run(policy="orca", page=16, modules=(1, 0)),
    "vllm-modules": Run(policy="vllm", page=16, budget=13, modules=(2, 7), forces="adopted"),
    "vllm-suspend": Run(
        policy="vllm", page=16, hbm=512, host=8192, forces="suspensions", more=SUSPENDING
    ),
    "vllm-depth-2": Run(policy="vllm", page=16, hbm=512, forces="recomputed", more=DEPTH_2),
    "batchgen-depth-2": Run(
        policy="batchgen", page=16, hbm=512, host=8192, forces="suspensions", more=DEPTH_2
    ),
    "vllm-prefix": Run(policy="vllm", page=8, forces="adopted"),
    "batchgen-prefix": Run(policy="batchgen", page=8, host=8192, forces="adopted"),
    "batchgen-modules": Run(
        policy="batchgen", page=16, hbm=512, host=8192, modules=(3, 40), forces="suspensions"
    ),
}


def rows() -> list[tuple[list[int], int]]:
    """About half of them begin alike."""
    generator = np.random.default_rng(11)
    shared = generator.integers(0, 256, 40).tolist()
    return [
        (shared * int(p % 2) + generator.integers(0, 256, int(p)).tolist(), int(n))
        for p, n in zip(
            generator.integers(1, 150, NUM_ROWS), generator.integers(1, 70, NUM_ROWS), strict=True
        )
    ]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exact")
    return {arch: init_model(folder / arch, arch, "tiny", seed=3) for arch in FAMILIES}


@cache
def alone(model: Path) -> list[list[int]]:
    """Every row by itself, its prompt in one pass, in pages of 32."""
    worker = Worker(model, page_tokens=32, hbm_pages=16, host_pages=0, exact=True)
    answers = []
    for ids, count in rows():
        worker.add_row(0, ids, max_output=count, stop_ids=frozenset())
        result = worker.run_pass([], [(0, 0, len(ids), True)])
        while not result.finished:
            result = worker.run_pass([0], [])
        answers.append(worker.tokens(0))
        worker.forget_row(0)
    return answers


@pytest.mark.parametrize("arch", FAMILIES)
@pytest.mark.parametrize("name", RUNS)
def test_tokens_are_those_of_the_row_alone(
    name: str, arch: str, models: dict[str, Path], tmp_path: Path
) -> None:
    run, model = RUNS[name], models[arch]
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(
            json.dumps({"prompt": ids, "max_tokens": n, "ignore_eos": True}) + "\n"
            for ids, n in rows()
        )
    )
    prepared = prepare(
        ExecJob(
            model=model,
            input=path,
            output=tmp_path / "out.jsonl",
            policy=run.policy,
            overrides=(
                ("plan.page_tokens", str(run.page)),
                ("plan.token_budget", str(run.budget)),
                ("plan.max_num_seqs", str(run.seqs)),
                ("plan.boundary", "16"),
                ("plan.b_attn", str(run.modules[0])),
                ("plan.b_moe", str(run.modules[1])),
                *run.more,
            ),
            hbm_pages=run.hbm // run.page,
            host_pages=run.host // run.page,
            threads=1,
            exact=True,
        )
    )
    times = np.linspace(0, run.spread_ps, NUM_ROWS).astype(np.int64).tolist()
    outcome = drive_watched(prepared, cost=cost_of(model), arrivals_ps=times)
    assert [outcome.tokens[row] for row in range(NUM_ROWS)] == alone(model)
    if run.forces:
        assert getattr(prepared.table, run.forces).sum() > 0

"""A worker on a GPU: in float32 the tokens of the CPU up to near ties, in bfloat16 logits near."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from exec_cases import Case, check_answer, cost_of, drive_watched
from model_cases import FAMILIES, pass_rows, write_model

from batchgen.exec.arena import KvArena
from batchgen.exec.config import KvLayout
from batchgen.exec.copier import Copier
from batchgen.exec.gpu.pinned import pinned_zeros
from batchgen.exec.init import init_model
from batchgen.exec.page_moves import LEAST_ALONE_BYTES
from batchgen.exec.prepare import prepare
from batchgen.exec.transformer import DTYPES, load_model
from batchgen.sequence import Status

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
ROWS = ((0, 40), (1, 40), (2, 30), (3, 48), (4, 20), (5, 48), (6, 48), (7, 9), (8, 48), (9, 33))
NEAR = 0.1  # of the largest logit: bfloat16 keeps 8 bits, through two layers


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("cuda")
    return {arch: init_model(folder / arch, arch, "tiny", seed=3) for arch in FAMILIES}


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("policy", ["vllm", "batchgen"])
@pytest.mark.parametrize("arch", FAMILIES)
def test_rows_get_the_answers_of_the_cpu(
    arch: str, policy: str, depth: int, models: dict[str, Path], tmp_path: Path
) -> None:
    """A ragged job in too little memory: rows are suspended and restored, or computed again."""
    case = Case(
        policy=policy,
        rows=ROWS,
        hbm_pages=26,
        host_pages=120,
        budget=40,
        depth=depth,
        ignore_eos=True,
    )
    job = replace(case.job(models[arch], tmp_path), device="cuda", dtype="float32")
    prepared = prepare(job)
    assert prepared.worker._host.storage.is_pinned()
    outcome = drive_watched(prepared, cost=cost_of(models[arch]))
    table = outcome.runtime.table
    assert (table.status == Status.DONE).all()
    assert table.suspensions.sum() if policy == "batchgen" else table.preemptions.sum()
    for row, (number, budget) in enumerate(ROWS):
        assert len(outcome.tokens[row]) == budget
        check_answer(models[arch], number, outcome.tokens[row], budget, stops=frozenset())


@pytest.mark.parametrize("parts", ["whole", "modules"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("arch", FAMILIES)
def test_logits_are_near_those_of_the_cpu(
    arch: str, dtype: str, parts: str, tmp_path: Path
) -> None:
    """Two prompts in chunks, then a mixed pass; tensors and KV in the dtype on the GPU, in float32
    on the CPU."""
    from batchgen.schedule import forward_period

    folder = write_model(tmp_path / "m", arch)
    rng = np.random.default_rng(6)
    rows = [rng.integers(0, 256, n).tolist() for n in (41, 19)]
    period = forward_period([1, 19], b_attn=1, b_moe=8) if parts == "modules" else None
    found = []
    for device, kind in (("cpu", "float32"), ("cuda", dtype)):
        model = load_model(folder, dtype=kind, device=device)
        arena = KvArena(
            "hbm", 64, model.config.kv_layout, page_tokens=8, dtype=DTYPES[kind], device=device
        )
        arena.reserve(0, 41)
        arena.reserve(1, 19)
        first = pass_rows([(0, 0, 24)], 0, rows[0][:24])
        second = pass_rows([(0, 24, 16)], 0, rows[0][24:40])
        third = pass_rows([(0, 40, 1), (1, 0, 19)], 1, [rows[0][40], *rows[1]])
        logits = [model.forward(arena, one) for one in (first, second)]
        logits.append(model.forward(arena, third, period))
        found.append(torch.cat(logits).cpu())
    gap_T = (found[0] - found[1]).abs().amax(-1) / found[0].abs().max()
    if dtype == "float32":
        assert float(gap_T.max()) < 1e-4
    else:  # rounding sends some tokens to other experts
        assert float(gap_T.median()) < NEAR, gap_T


@pytest.mark.parametrize("head_dim", [8, 1024])
def test_pages_go_to_the_host_and_come_back_beside_other_work(head_dim: int) -> None:
    """Small pages together and large ones alone; the copy sees what was asked for before it."""
    layout = KvLayout(layers=2, parts=2, heads=2, head_dim=head_dim)
    tiers = [
        KvArena(
            name,
            40,
            layout,
            page_tokens=16,
            dtype=torch.bfloat16,
            device="cuda" if name == "hbm" else "cpu",
            zeros=pinned_zeros if name == "host" else None,
        )
        for name in ("hbm", "host")
    ]
    assert (tiers[0].page_bytes >= LEAST_ALONE_BYTES) == (head_dim == 1024)
    hbm, host = tiers
    rng, copier = np.random.default_rng(1), Copier()
    for _ in range(5):
        theirs, ours = rng.permutation(40)[:37], rng.permutation(40)[:37]
        torch.cuda._sleep(10_000_000)
        hbm.storage.normal_()
        ticket = copier.copy(hbm, host, [(theirs, ours)])
        copier.wait(ticket)
        assert torch.equal(host.storage[ours], hbm.storage.cpu()[theirs])
        expected = hbm.storage.clone()
        expected[ours] = expected[theirs]
        copier.wait(copier.copy(host, hbm, [(ours, ours)]))
        assert torch.equal(hbm.storage, expected)
        assert not copier.error(ticket + 1)
    copier.close()
    assert Counter(copier.moved_bytes) == {
        ("hbm", "host"): 5 * 37 * hbm.page_bytes,
        ("host", "hbm"): 5 * 37 * hbm.page_bytes,
    }

"""Whole models through the kernels: passes of decodes and chunks, and jobs on late queues."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "execution"))

from exec_cases import Case, check_answer, run
from model_cases import FAMILIES, pass_rows, write_model

from batchgen.exec.arena import KvArena
from batchgen.exec.attention.paged import pack, shape_of, unpack
from batchgen.exec.attention.triton import TritonBackend
from batchgen.exec.gpu.graphs import decode_shape
from batchgen.exec.gpu.worker import QueuedWorker
from batchgen.exec.init import init_model
from batchgen.exec.kernels import use
from batchgen.exec.transformer import Transformer, load_model

PAGE = 8
# Interpreted: one of plain attention, one of latents, windows and sinks, and every kind of experts.
FEW = ("qwen3", "qwen3-moe", "gpt-oss", "deepseek-v3")


@pytest.fixture
def _kernels(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if device.type == "cpu":
        monkeypatch.setattr(use, "INTERPRETED_ON_CPU", True)
    return None


def by_kernels(path: Path, device: torch.device) -> Transformer:
    model = load_model(path, dtype="float32", device=device.type)
    model.backend = TritonBackend()
    model.stack = None
    return model


@pytest.mark.usefixtures("_kernels")
@pytest.mark.parametrize("arch", FAMILIES if torch.cuda.is_available() else FEW)
def test_logits_are_those_of_torch(
    arch: str, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass of prompts, one of decodes and a chunk, and one of decodes filled up as a graph is."""
    path = write_model(tmp_path / "m", arch, seed=5)
    monkeypatch.setattr(use, "INTERPRETED_ON_CPU", False)
    plain = load_model(path, dtype="float32")
    rng = np.random.default_rng(3)
    texts = [rng.integers(0, plain.config.vocab_size, n).tolist() for n in (21, 9, 34, 17)]
    last = [(0, 10, 1), (2, 27, 1), (3, 8, 1)]  # beyond gpt-oss's window of 24; a new page
    passes = [
        Segments([], [(0, 0, 9), (1, 0, 3), (2, 0, 26)]),
        Segments([(1, 2, 1), (0, 9, 1), (2, 26, 1)], [(3, 0, 8)]),
        Segments(last, []),
        Segments(last, [], filled_up=True),
    ]
    wanted = _logits(plain, texts, passes, torch.device("cpu"))
    monkeypatch.setattr(use, "INTERPRETED_ON_CPU", device.type == "cpu")
    model = by_kernels(path, device)
    model.reserve_positions(64)
    found = _logits(model, texts, passes, device)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=2e-3, atol=2e-3)


class Segments(NamedTuple):
    """A pass: slot, first token and number of tokens of each row; `filled_up` as a graph is."""

    decodes: list[tuple[int, int, int]]
    chunks: list[tuple[int, int, int]]
    filled_up: bool = False


def _logits(
    model: Transformer, texts: list[list[int]], passes: list[Segments], device: torch.device
) -> list[torch.Tensor]:
    """Of every pass, through packed inputs where the model has kernels."""
    arena = KvArena(
        "hbm",
        40,
        model.config.kv_layout,
        page_tokens=PAGE,
        dtype=torch.float32,
        device=device.type,
        spare=True,
    )
    found = []
    for decodes, chunks, filled_up in passes:
        segments = [*decodes, *chunks]
        for slot, start, length in segments:
            arena.reserve(slot, start + length)
        flat = [t for slot, start, n in segments for t in texts[slot][start : start + n]]
        rows = pass_rows(segments, len(decodes), flat)
        if not isinstance(model.backend, TritonBackend):
            found.append(model.forward(arena, rows))
            continue
        shape = shape_of(arena, rows)
        if filled_up:
            shape = decode_shape(len(decodes), shape.table_width, PAGE)
        host = torch.full((shape.elements + 3,), 77, dtype=torch.int32)
        used = pack(arena, rows, rows.token_ids, shape, host.numpy())
        paged = unpack(host[:used].to(device), shape)
        hidden = model.compute(arena, paged.token_ids, model.prepare_paged(arena, paged))
        found.append(model.logits(hidden).float()[: len(flat)])
    return found


class KernelWorker(QueuedWorker):
    """Of kernels on any device."""

    def __init__(self, folder: Path, **options: Any) -> None:
        kind = "cuda" if torch.cuda.is_available() else "cpu"
        super().__init__(folder, **{**options, "device": kind})
        self.model.backend = TritonBackend()
        self.model.stack = None
        self._paged = True

    def warm_up(self, *, token_budget: int, seats: int) -> int:
        """Nothing is compiled in the interpreter, which takes a minute for these passes; they have
        a test of their own."""
        if self.device == "cpu":
            return 0
        return super().warm_up(token_budget=token_budget, seats=seats)


@pytest.mark.usefixtures("_kernels")
@pytest.mark.parametrize("arch", ["qwen3", "qwen3-moe"] if torch.cuda.is_available() else ["qwen3"])
def test_a_job_on_queues_by_kernels(arch: str, device: torch.device, tmp_path: Path) -> None:
    """Tokens that feed the next pass on the device, rows that end, memory that is scarce."""
    model = init_model(tmp_path / arch, arch, "tiny", seed=3)
    case = Case(
        policy="batchgen",
        rows=((6, 12), (6, 12), (10, 4)),
        page=4,
        boundary=4,
        hbm_pages=6,
        host_pages=400,
        depth=2,
    )
    if device.type == "cuda":
        case = replace(case, rows=tuple((n, 40) for n in range(12)), hbm_pages=30)
    outcome = run(case, model, tmp_path, make=KernelWorker, ahead=True)
    assert outcome.prepared.table.suspensions.any()
    for row, (number, budget) in enumerate(case.rows):
        assert outcome.reasons[row] in ("stop", "length")
        check_answer(model, number, outcome.tokens[row], budget)


@pytest.mark.usefixtures("_kernels")
def test_warming_passes_are_passes_that_fit(device: torch.device, tmp_path: Path) -> None:
    """They compute, and leave every page of rows alone."""
    path = write_model(
        tmp_path / "m", "qwen3", seed=5, max_position_embeddings=64, num_hidden_layers=1
    )
    worker = QueuedWorker(
        by_kernels(path, device), page_tokens=PAGE, hbm_pages=3, host_pages=0, device=device.type
    )
    worker._hbm.storage[:3] = 7.0
    taken = worker.warm_up(token_budget=24, seats=2)
    assert bool((worker._hbm.storage[:3] == 7.0).all())
    assert bool(worker._hbm.storage[3].isfinite().all())
    assert (taken > 0) == (device.type == "cuda")

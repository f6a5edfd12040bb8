"""A device that cannot compute or copy costs the rows that it cannot serve, and nobody else."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from exec_cases import PRESETS, Case, check_answer
from exec_cases import run as run_case

from batchgen import events as ev
from batchgen.exec import copier as copies
from batchgen.exec import pass_sampler, sampler
from batchgen.exec.arena import KvArena
from batchgen.exec.clock import WallClock
from batchgen.exec.config import KvLayout
from batchgen.exec.drive import drive
from batchgen.exec.init import init_model
from batchgen.exec.job import ExecJob
from batchgen.exec.prepare import Prepared, prepare
from batchgen.exec.worker import Worker

ROWS = tuple((number, 24) for number in range(8))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_model(tmp_path_factory.mktemp("failures") / "m", "qwen3", "tiny", seed=3)


SHORT = "[enforce fail at alloc_cpu.cpp:1] can't allocate memory: 9 bytes"


def too_large(worker: Worker, most: int, row: int = -1, error: Exception | None = None) -> None:
    """A device whose memory is short beyond `most` tokens of a pass, or as soon as `row` runs."""
    forward, whole = worker.model.forward, worker._forward
    running: list[int] = []

    def watched(decodes: tuple[int, ...], chunks: tuple[tuple[int, int, int, bool], ...]) -> object:
        running[:] = [*decodes, *(chunk[0] for chunk in chunks)]
        return whole(decodes, chunks)

    def limited(arena: object, rows: object, *more: object) -> torch.Tensor:
        if len(rows.token_ids) > most or row in running:
            raise error or RuntimeError(SHORT)
        return forward(arena, rows, *more)

    worker._forward, worker.model.forward = watched, limited


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("policy", PRESETS)
def test_a_pass_that_is_too_large_is_computed_in_parts(
    policy: str, depth: int, model: Path, tmp_path: Path
) -> None:
    """The longest prompt of 60 tokens still fits alone; eight rows together do not."""
    case = Case(policy=policy, rows=ROWS, hbm_pages=200, host_pages=100, depth=depth)
    outcome = run_case(case, model, tmp_path, tweak=lambda worker: too_large(worker, 60))
    for row, (number, budget) in enumerate(ROWS):
        assert outcome.reasons[row] in ("stop", "length")
        check_answer(model, number, outcome.tokens[row], budget)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError(SHORT), "out_of_memory"),
        (MemoryError("none left"), "out_of_memory"),
        (RuntimeError("the device is gone"), "device_error"),
    ],
    ids=str,
)
@pytest.mark.parametrize("policy", PRESETS)
def test_a_row_that_the_device_cannot_compute_fails_alone(
    policy: str, error: Exception, code: str, depth: int, model: Path, tmp_path: Path
) -> None:
    case = Case(policy=policy, rows=ROWS, host_pages=100, depth=depth)
    outcome = run_case(
        case, model, tmp_path, tweak=lambda worker: too_large(worker, 10**6, 3, error)
    )
    for row, (number, budget) in enumerate(ROWS):
        if row == 3:
            assert outcome.reasons[row] == code
            assert outcome.driver.why[row] == str(error)
            assert not outcome.tokens[row]
        else:
            assert outcome.reasons[row] in ("stop", "length")
            check_answer(model, number, outcome.tokens[row], budget)


def failing_copies(
    monkeypatch: pytest.MonkeyPatch, fails: Callable[[int], bool], *, up: bool
) -> Callable[[Worker], list[int]]:
    """Copies to the device (up) or to the host fail where `fails` says so of their number. Call the
    result with the worker; it gives the numbers of those that failed."""
    move, count, failed = copies.move_pages, [0], []

    def watch(worker: Worker) -> list[int]:
        def moved(source: object, theirs: object, target: torch.Tensor, ours: object) -> None:
            if (target is worker._hbm.storage) == up:
                count[0] += 1
                if fails(count[0]):
                    failed.append(count[0])
                    raise RuntimeError("the link is down")
            move(source, theirs, target, ours)

        monkeypatch.setattr(copies, "move_pages", moved)
        return failed

    return watch


@pytest.mark.parametrize("depth", [1, 2])
def test_restores_that_fail(
    depth: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be brought back is tried again or computed again: every answer is right."""
    watch = failing_copies(monkeypatch, lambda number: number % 2 == 1, up=True)
    case = Case(policy="batchgen", rows=ROWS, hbm_pages=16, host_pages=100, depth=depth)
    outcome = run_case(case, model, tmp_path, tweak=watch)
    told = [event for event, _, _ in outcome.entries if type(event) is ev.CopiesFailed]
    assert len(told) > 1
    for row, (number, budget) in enumerate(ROWS):
        assert outcome.reasons[row] in ("stop", "length")
        check_answer(model, number, outcome.tokens[row], budget)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_stream_that_fails_costs_its_rows(
    depth: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`batchgen` streams closed pages to the host: a row whose page is lost there fails by name."""
    watch = failing_copies(monkeypatch, lambda number: number == 5, up=False)
    moved: list[list[int]] = []

    def tweak(worker: Worker) -> Callable[..., object]:
        checkpoint, columns = worker.checkpoint, worker.rows

        def watched(rows: Sequence[int], upto: Sequence[int]) -> int:
            before = [int(columns.on_host[columns.slot(row)]) for row in rows]
            ticket = checkpoint(rows, upto)
            now = [int(columns.on_host[columns.slot(row)]) for row in rows]
            moved.append([row for row, a, b in zip(rows, before, now, strict=True) if a != b])
            return ticket

        worker.checkpoint = watched
        return watch(worker)

    case = Case(policy="batchgen", rows=ROWS, hbm_pages=200, host_pages=100, depth=depth)
    outcome = run_case(case, model, tmp_path, tweak=tweak)
    bad = [row for row, reason in outcome.reasons.items() if reason == "copy_failed"]
    assert bad
    assert set(bad) <= set(moved[4])
    assert all("the link is down" in outcome.driver.why[row] for row in bad)
    for row, (number, budget) in enumerate(ROWS):
        if row not in bad:
            assert outcome.reasons[row] in ("stop", "length")
            check_answer(model, number, outcome.tokens[row], budget)


def test_copies_run_beside_passes(model: Path, tmp_path: Path) -> None:
    """On the wall clock a slow copy holds up nobody but the rows that wait for it."""
    case = Case(policy="batchgen", rows=ROWS, hbm_pages=16, host_pages=100)
    prepared = prepare(case.job(model, tmp_path))
    copier, inside = prepared.worker.copier, []
    run_pass = prepared.worker.run_pass

    def watched(*args: object) -> object:
        before = copier.over(copier.asked)
        result = run_pass(*args)
        inside.append(not before and copier.over(copier.asked))
        return result

    prepared.worker.run_pass = watched
    ran = drive(prepared, WallClock())
    assert any(inside)  # a copy that was under way when a pass began was over when it ended
    assert sum(copier.moved_bytes.values()) > 0
    for row, (number, budget) in enumerate(ROWS):
        check_answer(model, number, ran.tokens[row], budget)


def test_a_worker_serves_one_run_after_the_other(model: Path, tmp_path: Path) -> None:
    """What the copier had left to say of the first run does not reach the second."""
    prepared = prepare(
        Case(policy="batchgen", rows=ROWS, hbm_pages=16, host_pages=100).job(model, tmp_path)
    )
    for _ in range(3):
        prepared.table = prepared.fresh_table()
        ran = drive(prepared, WallClock())
        for row, (number, budget) in enumerate(ROWS):
            check_answer(model, number, ran.tokens[row], budget)


def test_who_waits_for_a_copy_is_told_whatever_went_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An error that nobody expects must not end the thread: all would wait for ever."""

    def wrong(*_: object) -> None:
        raise IndexError("page 9 of 8")

    monkeypatch.setattr(copies, "move_pages", wrong)
    copier, layout = copies.Copier(), KvLayout(layers=1, parts=2, heads=1, head_dim=4)
    arenas = [KvArena(name, 2, layout, page_tokens=2, dtype=torch.float32) for name in "ab"]
    pages = np.array([0])
    tickets = [copier.copy(*arenas, [(pages, pages)]) for _ in range(2)]
    copier.wait_some(10.0)
    copier.close()
    assert [copier.error(ticket) for ticket in tickets] == ["page 9 of 8"] * 2


def same_beginning(model: Path, folder: Path, depth: int) -> Prepared:
    """Six rows that share four pages; the first one computes them for all."""
    shared = [37 * i % 250 for i in range(64)]
    lines = [
        json.dumps({"prompt": [*shared, i, i + 1], "max_tokens": 12, "ignore_eos": True})
        for i in range(6)
    ]
    path = folder / "same.jsonl"
    path.write_text("\n".join(lines))
    options = (("plan.page_tokens", "16"), ("plan.depth", str(depth)))
    return prepare(
        ExecJob(
            model=model,
            input=path,
            output=folder / "out.jsonl",
            policy="vllm",
            exact=True,
            threads=1,
            overrides=options,
        )
    )


@pytest.mark.parametrize("depth", [1, 2])
def test_pages_that_a_failed_row_has_not_filled_are_filled_by_who_adopts_them(
    depth: int, model: Path, tmp_path: Path
) -> None:
    alone = drive(same_beginning(model, tmp_path, depth), WallClock()).tokens
    prepared = same_beginning(model, tmp_path, depth)
    too_large(prepared.worker, 1000, row=0)
    ran = drive(prepared, WallClock())
    assert ran.reasons[0] == "out_of_memory"
    assert sum(prepared.table.adopted.tolist()) > 0
    assert [ran.tokens[row] for row in range(1, 6)] == [alone[row] for row in range(1, 6)]


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("number", [1, 2, 5])
def test_memory_that_is_short_while_tokens_are_chosen_costs_nothing(
    number: int, depth: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass that fails after its KV was computed is computed again."""
    alone = drive(same_beginning(model, tmp_path, depth), WallClock()).tokens
    choices = itertools.count(1)

    def choose(*args: object) -> object:
        if next(choices) == number:
            raise MemoryError
        return sampler.choose(*args)

    monkeypatch.setattr(pass_sampler, "choose", choose)
    assert drive(same_beginning(model, tmp_path, depth), WallClock()).tokens == alone

"""Copies between arenas: whole pages, in the order in which they were asked for, told when over."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from batchgen.exec.arena import KvArena
from batchgen.exec.config import KvLayout
from batchgen.exec.copier import Copier
from batchgen.exec.page_moves import _one_by_one, _together, move_pages

LAYOUT = KvLayout(layers=2, parts=2, heads=3, head_dim=5)
PAGES, PAGE_TOKENS = 12, 4


def arena(name: str, dtype: torch.dtype) -> KvArena:
    made = KvArena(name, PAGES, LAYOUT, page_tokens=PAGE_TOKENS, dtype=dtype)
    made.storage.copy_(torch.randn(made.storage.shape, generator=torch.manual_seed(len(name))))
    return made


@pytest.fixture
def copier() -> Iterator[Copier]:
    made = Copier()
    yield made
    made.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("compiled", ["1", "0"])
def test_pages_arrive_and_others_stay(
    dtype: torch.dtype, compiled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHGEN_COMPILED", compiled)
    rng = np.random.default_rng(2)
    for count in (0, 1, 5, PAGES):
        source, target = arena("hbm", dtype), arena("host", dtype)
        theirs, ours = rng.permutation(PAGES)[:count], rng.permutation(PAGES)[:count]
        expected = target.storage.clone()
        for a, b in zip(theirs.tolist(), ours.tolist(), strict=True):
            expected[b] = source.storage[a]
        before = source.storage.clone()
        move_pages(source.storage, theirs, target.storage, ours)
        assert torch.equal(target.storage, expected)
        assert torch.equal(source.storage, before)


def test_pages_alone_and_together_arrive_alike() -> None:
    """The two ways between a GPU and its host, which are the same on the CPU."""
    rng = np.random.default_rng(4)
    source = arena("hbm", torch.bfloat16).storage
    for count in (1, 5, PAGES):
        some, there = (torch.from_numpy(rng.permutation(PAGES)[:count]) for _ in range(2))
        targets = [arena("host", torch.bfloat16).storage for _ in range(2)]
        for way, target in zip((_one_by_one, _together), targets, strict=True):
            way(source, some, target, there)
        assert torch.equal(*targets)


def test_a_ticket_holds_the_pages_of_many_rows(copier: Copier) -> None:
    """Tickets back and forth over the same pages end as if each had been done when asked for."""
    rng = np.random.default_rng(3)
    tiers = arena("hbm", torch.float32), arena("host", torch.float32)
    expected = [tier.storage.clone() for tier in tiers]
    moved = 0
    for number in range(200):
        a, b = number % 2, 1 - number % 2
        rows = int(rng.integers(0, 4))
        cuts = np.sort(rng.integers(0, PAGES, rows))
        theirs = np.split(rng.permutation(PAGES), cuts)[:rows]
        ours = np.split(rng.permutation(PAGES), cuts)[:rows]
        for one, other in zip(theirs, ours, strict=True):
            expected[b][other] = expected[a][one]
        ticket = copier.copy(tiers[a], tiers[b], list(zip(theirs, ours, strict=True)))
        assert ticket == number + 1
        moved += sum(map(len, ours))
    copier.wait(200)
    assert all(torch.equal(t.storage, e) for t, e in zip(tiers, expected, strict=True))
    assert [done.ticket for done in copier.finished()] == list(range(1, 201))
    assert sum(copier.moved_bytes.values()) == moved * tiers[0].page_bytes

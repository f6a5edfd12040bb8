"""The prefix index against a naive model, and shared prefixes end to end."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from core_cases import Case, Row, random_case, run, swaps
from core_invariants import Invariants
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgen.errors import IllegalTransition
from batchgen.memory.prefix import PrefixIndex

KEYS = [[10 * chain + depth for depth in range(4)] for chain in range(3)]
KEYS += [[0, 1, 32, 33], [10, 41, 42, 43]]  # chains that share their head


class NaivePrefixes:
    """Holders as a list of chains; the cache as a list, oldest first."""

    def __init__(self) -> None:
        self.holders: list[list[int]] = []
        self.cache: list[int] = []

    def leased(self) -> set[int]:
        return {key for chain in self.holders for key in chain}

    def match(self, keys: list[int]) -> int:
        present = self.leased() | set(self.cache)
        return next((i for i, key in enumerate(keys) if key not in present), len(keys))


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.sampled_from("ars"), st.integers(0, 99)), max_size=40))
def test_index_equals_the_naive_model(steps: list[tuple[str, int]]) -> None:
    index, naive = PrefixIndex(), NaivePrefixes()
    published: dict[tuple[int, int], int] = {}  # (row, page) -> key
    for row, (kind, number) in enumerate(steps):
        if kind == "a":  # a row arrives: leases what is there, publishes the rest
            keys = KEYS[number % len(KEYS)]
            hits = index.match(keys)
            assert hits == naive.match(keys)
            idle = [key for key in keys[:hits] if key in naive.cache]
            assert index.idle_among(keys[:hits]) == len(idle)
            assert index.lease(keys[:hits]) == len(idle)
            naive.cache = [key for key in naive.cache if key not in idle]
            present = naive.leased() | set(naive.cache) | set(keys[:hits])
            new = []
            for key in keys[hits:]:
                if key in present:
                    break
                new.append(key)
            assert index.publish(keys[hits:], row, hits) == len(new)
            published.update({(row, hits + at): key for at, key in enumerate(new)})
            naive.holders.append([*keys[:hits], *new])
        elif kind == "r" and naive.holders:
            chain = naive.holders.pop(number % len(naive.holders))
            free = [key for key in reversed(chain) if key not in naive.leased()]
            assert index.release(chain) == len(free)
            naive.cache += free
        elif kind == "s":
            keep = number % 6
            gone = naive.cache[: max(0, len(naive.cache) - keep)]
            naive.cache = naive.cache[len(gone) :]
            runs = index.shrink(keep)
            named = [
                published[row, page]
                for row, first, count in runs
                for page in reversed(range(first, first + count))
            ]
            assert named == gone
        assert index.num_leased == len(naive.leased())
        assert list(index._cached) == naive.cache


def test_misuse_is_refused() -> None:
    index = PrefixIndex()
    with pytest.raises(IllegalTransition, match="not present"):
        index.lease([1])
    with pytest.raises(IllegalTransition, match="not leased"):
        index.release([1])


def test_a_shared_prefix_is_computed_once() -> None:
    rows = tuple(
        Row(prompt=20, budget=4, output=4, arrival=index * 100_000, group=0, shared=16)
        for index in range(4)
    )
    case = Case(preset="vllm", rows=rows, prefix=True, hbm_pages=60)
    outcome = run(case, checker=Invariants(case))
    prefilled = sum(size for *_, chunks, _ in outcome.passes()[0] for _, _, size, _ in chunks)
    assert prefilled == 20 + 3 * (20 - 16)
    rank = outcome.runtime.cluster.engines[0].ranks[0]
    assert rank.prefix is not None
    assert rank.prefix.hit_pages == 3 * 4
    assert rank.used == 0


def test_pages_are_known_when_they_are_scheduled() -> None:
    """Rows that come together share the prompt that the first of them begins to compute."""
    rows = tuple(Row(prompt=20, budget=4, output=4, group=0, shared=16) for index in range(4))
    outcome = run(Case(preset="vllm", rows=rows, prefix=True, hbm_pages=60, budget=200))
    _, _, chunks, _ = outcome.passes()[0][0]
    assert chunks == [(0, 0, 20, True), *((row, 16, 4, True) for row in (1, 2, 3))]


def test_a_prompt_that_is_wholly_cached_computes_its_last_page() -> None:
    rows = tuple(
        Row(prompt=16, budget=2, output=2, arrival=index * 100_000, group=0, shared=16)
        for index in range(2)
    )
    outcome = run(Case(preset="vllm", rows=rows, prefix=True))
    assert [(0, 0, 16, True)] in [chunks for *_, chunks, _ in outcome.passes()[0]]
    assert [(1, 12, 4, True)] in [chunks for *_, chunks, _ in outcome.passes()[0]]


@pytest.mark.parametrize("most", [0, 5, 128])
@pytest.mark.parametrize("seed", range(10))
def test_the_longest_cached_prefix_goes_first(seed: int, most: int) -> None:
    """One row at a time and nothing is forgotten: the next is the one that shares the most pages
    with all before it, the earlier of two; in the order of coming while more than `most` wait."""
    rng = random.Random(seed)
    rows = tuple(
        Row(prompt=rng.randint(9, 40), budget=2, output=2, group=rng.randint(-1, 2), shared=shared)
        for shared in (rng.choice((0, 4, 8, 16, 32)) for _ in range(12))
    )
    overrides = {"order.most_waiting": str(most)}
    case = Case(preset="sglang", rows=rows, prefix=True, hbm_pages=500, seqs=1, budget=200)
    case = replace(case, overrides=overrides)
    keys, seen, waiting, wanted = case.page_keys(), set[int](), list(range(12)), []
    while waiting:
        hits = dict.fromkeys(waiting, 0)
        for row in waiting if 1 < len(waiting) <= most else ():
            pages = keys(row)[: (rows[row].prompt - 1) // case.page]
            hits[row] = next((at for at, key in enumerate(pages) if key not in seen), len(pages))
        wanted.append(max(waiting, key=lambda row: (hits[row], -row)))
        waiting.remove(wanted[-1])
        seen |= set(keys(wanted[-1]))
    begun = [row for *_, chunks, _ in run(case).passes()[0] for row, *_ in chunks]
    assert begun == wanted
    assert most < 128 or wanted != list(range(12))


def test_prefixes_never_change_outcomes() -> None:
    """With and without sharing the same rows end for the same reasons, and no page leaks."""
    compositions = [(name, swap) for name, swap in swaps() if name in ("vllm", "batchgen")]
    for seed in range(80):
        rng = random.Random(seed)
        case = replace(random_case(rng, rng.choice(compositions), kinds=()), prefix=True)
        shared, plain = run(case, checker=Invariants(case)), run(replace(case, prefix=False))
        assert shared.reasons == plain.reasons
        for engine in shared.runtime.cluster.engines:
            for rank in engine.ranks:
                assert rank.prefix is not None
                assert rank.used == rank.prefix.num_leased == 0

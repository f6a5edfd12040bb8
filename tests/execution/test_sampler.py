"""Choosing tokens: ties, bad logits, and draws that are those of a sorted vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgen.exec import sampler
from batchgen.exec.blocks import Blocks, block_masses, greedy
from batchgen.exec.logprobs import measure
from batchgen.exec.sampler import Draws, choose, draw, uniform
from batchgen.job.sampling import LEAST_TEMPERATURE, Sampling

NOBODY = np.arange(0)


def draws_of(rows: Sequence[Sampling], counters: Sequence[int]) -> Draws:
    def column(name: str) -> Any:
        return np.array([getattr(one, name) for one in rows])

    return Draws(
        temperature=column("temperature").astype(np.float64),
        top_p=column("top_p").astype(np.float64),
        min_p=column("min_p").astype(np.float64),
        top_k=column("top_k").astype(np.int64),
        seeds=np.array([one.seed % (1 << 64) for one in rows], dtype=np.uint64),
        counters=np.array(counters, dtype=np.int64),
    )


def drawn(logits: torch.Tensor, rows: Sequence[Sampling], counters: Sequence[int]) -> list[int]:
    return choose(Blocks.of(logits), np.arange(len(rows)), draws_of(rows, counters)).tolist()


def kept_probabilities(logits: torch.Tensor, one: Sampling) -> np.ndarray[Any, Any]:
    """The oracle: sort everything, keep what the options let in, in float64."""
    values = logits.double().numpy()
    with np.errstate(over="ignore"):
        weights = np.exp((values - values.max()) / one.temperature)
    order = np.argsort(-values, kind="stable")
    kept = np.zeros_like(weights)
    some = order[: one.top_k] if one.top_k else order
    before = np.cumsum(weights[some]) - weights[some]
    some = some[before < one.top_p * weights[some].sum()]
    some = some[weights[some] >= one.min_p]
    kept[some] = weights[some]
    return kept / kept.sum()


def test_greedy_takes_the_lowest_of_equals_and_marks_bad_rows() -> None:
    inf, nan = float("inf"), float("nan")
    logits = torch.tensor([[0.0, 2.0, 2.0], [nan, 1.0, 0.0], [-inf, 0.0, -1.0], [inf, 0.0, 0.0]])
    assert greedy(logits).tolist() == [1, 3, 1, 3]
    assert greedy(torch.full((1, 3), -inf)).tolist() == [3]


@settings(max_examples=60, deadline=None)
@given(
    size=st.sampled_from([1, 3, 127, 128, 129, 640, 9000]),
    levels=st.integers(1, 50),
    seed=st.integers(0, 1 << 30),
)
def test_greedy_is_the_first_of_the_best(size: int, levels: int, seed: int) -> None:
    """Few different values, so that there are ties, in one block and in several."""
    logits = np.random.default_rng(seed).integers(0, levels, (4, size)).astype(np.float32)
    assert greedy(torch.from_numpy(logits)).tolist() == logits.argmax(1).tolist()


@st.composite
def options(draw_: st.DrawFn) -> Sampling:
    return Sampling(
        temperature=draw_(st.sampled_from([1e-3, 0.5, 1.0, 1.7, 30.0])),
        top_p=draw_(st.sampled_from([1e-9, 0.3, 0.9, 0.999, 1.0])),
        top_k=draw_(st.sampled_from([0, 1, 2, 40, 700, 100_000])),
        min_p=draw_(st.sampled_from([0.0, 1e-3, 0.2, 1.0])),
        seed=draw_(st.integers(0, 2**64 - 1)),
    )


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(options(), min_size=1, max_size=5),
    size=st.sampled_from([3, 130, 1000, 20_000]),
    spread=st.sampled_from([0.1, 2.0, 8.0]),
    coarse=st.booleans(),
    seed=st.integers(0, 1 << 30),
)
def test_a_draw_is_one_of_the_kept_tokens_and_the_same_in_every_batch(
    rows: list[Sampling], size: int, spread: float, coarse: bool, seed: int
) -> None:
    """Coarse logits have ties, also at the edge of what is kept."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(rows), size, generator=generator) * spread
    if coarse:
        logits = (logits * 2).round() / 2
    tokens = drawn(logits, rows, range(len(rows)))
    for number, (one, token) in enumerate(zip(rows, tokens, strict=True)):
        kept = kept_probabilities(logits[number], one)
        if not kept[token]:  # of the float32 sums, one may stand just outside
            nearly = kept_probabilities(
                logits[number], Sampling(**{**_fields(one), "top_p": min(1, one.top_p + 1e-5)})
            )
            assert nearly[token] > 0
        assert drawn(logits[number : number + 1], [one], [number]) == [token]


def _fields(one: Sampling) -> dict[str, Any]:
    return {name: getattr(one, name) for name in ("temperature", "top_k", "top_p", "min_p")}


CASES = [
    {},
    {"top_p": 0.7},
    {"top_k": 5},
    {"top_k": 30, "top_p": 0.8},
    {"min_p": 0.1},
    {"min_p": 0.02, "top_p": 0.95},
]


@pytest.mark.parametrize("tiers", [(3,), (1, 2), ()], ids=["sorted", "blocks", "whole rows"])
@pytest.mark.parametrize("given_", CASES, ids=str)
def test_draws_follow_the_truncated_distribution(
    given_: dict[str, Any], tiers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chi-square of many draws against the oracle, on every way to find the tokens."""
    monkeypatch.setattr(sampler, "tiers_of", lambda _: tiers)
    one = Sampling(temperature=0.9, **given_)
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(4)) * 2
    count = 6000
    tokens = drawn(logits.expand(count, -1).contiguous(), [one] * count, range(count))
    expected = kept_probabilities(logits[0], one) * count
    seen = np.bincount(tokens, minlength=300)
    assert seen[expected == 0].sum() == 0
    often = expected > 5
    chi = ((seen - expected)[often] ** 2 / expected[often]).sum()
    freedom = int(often.sum())
    assert chi < freedom + 5 * (2 * freedom) ** 0.5


def test_every_way_to_find_the_tokens_keeps_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(40, 5000, generator=torch.Generator().manual_seed(5)).round(decimals=1)
    rows = [Sampling(temperature=0.3, top_p=0.9, top_k=k % 7 * 30, min_p=0.01) for k in range(40)]
    for tiers in ((20, 40), (8,), ()):
        monkeypatch.setattr(sampler, "tiers_of", lambda _, tiers=tiers: tiers)
        for seed in range(5):
            tokens = drawn(logits, [Sampling(**_fields(r), seed=seed) for r in rows], [seed] * 40)
            kept = [kept_probabilities(logits[i], rows[i])[t] for i, t in enumerate(tokens)]
            assert min(kept) > 0


def test_uniform_is_flat_and_free_of_correlation() -> None:
    draws = uniform([3] * 5000 + [4] * 5000, [*range(5000)] * 2)
    assert np.abs(np.histogram(draws, 10, (0, 1))[0] - 1000).max() < 150
    assert abs(np.corrcoef(draws[:5000], draws[5000:])[0, 1]) < 0.05
    assert draws.min() >= 0
    assert draws.max() < 1


@pytest.mark.parametrize("size", [50, 20_000])
def test_a_row_is_drawn_alike_in_every_batch(size: int) -> None:
    """Where others are greedy, bad, or more than a tile; sums of floats would show it."""
    logits = torch.randn(11, size, generator=torch.Generator().manual_seed(0))
    logits[6, 3] = torch.nan
    hot = [Sampling(temperature=1.0, top_p=0.98, seed=i) for i in range(11)]
    hot[2] = Sampling(temperature=1.0, seed=2)
    drawing = np.array([0, 2, 3, 6, 7, 8, 9, 10])
    together = choose(
        Blocks.of(logits), drawing, draws_of([hot[i] for i in drawing], drawing.tolist())
    )
    single = [drawn(logits[i : i + 1], [hot[i]], [i])[0] for i in range(11)]
    for row in (1, 4, 5):
        single[row] = int(logits[row].argmax())
    assert single[6] == size
    assert together.tolist() == single


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_draw_at_a_temperature_near_zero_is_the_best(dtype: torch.dtype) -> None:
    """Colder rows do not come to `draw` (see `Sampling.greedy`)."""
    logits = (torch.randn(40, 300, generator=torch.Generator().manual_seed(1)) * 4).to(dtype)
    logits[0, :2] = torch.tensor([-torch.inf, 3e38])
    blocks = Blocks.of(logits.float())
    for temperature in (LEAST_TEMPERATURE, 1e-9):
        for extra in ({}, {"top_p": 0.9}, {"top_k": 3}):
            rows = [Sampling(temperature=temperature, seed=i, **extra) for i in range(40)]
            tokens = torch.from_numpy(draw(blocks, np.arange(40), draws_of(rows, range(40))))
            best = logits.gather(1, tokens[:, None]).squeeze(1)
            assert torch.equal(best, logits.amax(-1))


@pytest.mark.parametrize("top_p", [5e-324, 1e-308, 1e-30])
def test_the_smallest_nucleus_is_the_best_token(top_p: float) -> None:
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(2))
    for temperature in (1e-9, 1.0, 100.0):
        rows = [Sampling(temperature=temperature, top_p=top_p, seed=i) for i in range(20)]
        assert drawn(logits, rows, range(20)) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("size", [5, 264, 12_000])
def test_log_probabilities_are_those_of_a_log_softmax(size: int) -> None:
    logits = torch.randn(6, size, generator=torch.Generator().manual_seed(3)) * 3
    logits[2] = logits[2].round()
    tokens = np.array([0, 1, 2, 3, 4, 0])
    found = measure(Blocks.of(logits), np.arange(6), tokens, np.array([0, 1, 5, 20, 2, 3]))
    expected = logits.double().log_softmax(-1)
    for row, (one, count) in enumerate(zip(found, (0, 1, 5, 20, 2, 3), strict=True)):
        assert one.chosen == pytest.approx(float(expected[row, tokens[row]]), abs=1e-5)
        order = np.argsort(-logits[row].numpy(), kind="stable")[:count]
        assert [token for token, _ in one.best] == order.tolist()
        for token, logprob in one.best:
            assert logprob == pytest.approx(float(expected[row, token]), abs=1e-5)
    assert (
        choose(Blocks.of(logits), NOBODY, draws_of([], [])).tolist() == logits.argmax(-1).tolist()
    )


@pytest.mark.parametrize("rows", [1, 7, 130])
@pytest.mark.parametrize("size", [5, 128, 264, 4096])
def test_compiled_blocks_are_those_of_torch(
    rows: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = torch.Generator().manual_seed(size + rows)
    logits = (torch.randn(rows, size, generator=source) * 3).round()  # many are equal
    for strange in (torch.nan, torch.inf, -torch.inf):
        at = torch.randint(size, (rows,), generator=source)
        some = torch.rand(rows, generator=source) < 0.2
        logits[some, at[some]] = strange
    logits[rows // 2] = -torch.inf
    got = Blocks.of(logits)
    monkeypatch.setenv("BATCHGEN_COMPILED", "0")
    wanted = Blocks.of(logits)
    assert wanted.best is None
    fine = np.flatnonzero((got.greedy() < size).numpy())
    temperature = np.random.default_rng(size).uniform(0.1, 3, len(fine))
    masses = block_masses(got, fine, temperature), block_masses(wanted, fine, temperature)
    np.testing.assert_allclose(*masses, rtol=1e-5, atol=1e-30)
    assert torch.equal(got.greedy(), wanted.greedy())
    assert torch.equal(got.tops.nan_to_num(123), wanted.tops.nan_to_num(123))

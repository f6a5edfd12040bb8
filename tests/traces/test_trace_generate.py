"""Generators: moments, quantiles, mixtures, groups, arrivals, skew; the text grammar; mistakes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchgen.errors import UserError
from batchgen.trace.generate import GenerateOptions, Part, expert_shares, generate, lognormal
from batchgen.trace.lengths import (
    Constant,
    Lognormal,
    Mixture,
    Pareto,
    Quantiles,
    parse_lengths,
    parse_quantiles,
)
from batchgen.trace.stats import prefix_stats

N = 200_000
PUBLISHED = "P95 4196, P99 15843, P99.9 26493, max 38631"


def sample(text: str, n: int = N, seed: int = 0) -> np.ndarray:
    return parse_lengths(text).sample(np.random.default_rng(seed), n)


def test_lognormal_has_its_mean_and_sigma() -> None:
    drawn = sample("lognormal:mean=700,sigma=0.8")
    # Standard error of the mean: mean sqrt(exp(sigma^2) - 1) / sqrt(n), five of them.
    error = 700 * math.sqrt(math.exp(0.64) - 1) / math.sqrt(N)
    assert abs(drawn.mean() - 700) < 5 * error
    assert np.log(drawn).std() == pytest.approx(0.8, rel=0.01)
    assert np.median(drawn) == pytest.approx(700 * math.exp(-0.32), rel=0.01)


def test_pareto_has_its_mean_and_tail() -> None:
    drawn = sample("pareto:mean=600,alpha=3")
    assert drawn.min() == 400
    assert drawn.mean() == pytest.approx(600, rel=0.01)
    assert (drawn > 800).mean() == pytest.approx(2**-3, rel=0.05)


def test_given_quantiles_come_out() -> None:
    drawn = sample(PUBLISHED)
    for share, value in ((0.95, 4196), (0.99, 15843)):
        assert (drawn <= value).mean() == pytest.approx(share, abs=0.002)
    assert (drawn > 26493).mean() == pytest.approx(0.001, rel=0.4)
    assert drawn.max() == 38631
    assert drawn.min() >= 1


@pytest.mark.parametrize("mean", [850, 1200, 2500])
def test_quantiles_with_a_mean(mean: int) -> None:
    drawn = sample(f"{PUBLISHED}, mean {mean}")
    assert drawn.mean() == pytest.approx(mean, rel=0.02)
    assert (drawn <= 4196).mean() == pytest.approx(0.95, abs=0.002)


def test_quantiles_with_median_and_mean() -> None:
    drawn = sample("median 400, P99 9000, max 20000, mean 1000")
    assert np.median(drawn) == pytest.approx(400, rel=0.02)
    assert drawn.mean() == pytest.approx(1000, rel=0.02)


def test_an_impossible_mean_says_what_is_possible() -> None:
    with pytest.raises(UserError, match=r"possible here: \d+ to \d+"):
        parse_quantiles("P50 400, P99 9000, mean 100000")


def test_mixture_and_clipping() -> None:
    drawn = sample("0.7*constant:10 + 0.3*lognormal:mean=5000,sigma=2,max=9000")
    assert (drawn == 10).mean() == pytest.approx(0.7, abs=0.01)
    assert drawn.max() == 9000


def test_grammar() -> None:
    assert parse_lengths("512") == parse_lengths(" constant:512 ") == Constant(tokens=512)
    assert parse_lengths("lognormal:sigma=1,mean=7,max=9") == Lognormal(mean=7, sigma=1, max=9)
    assert parse_lengths("pareto:mean=7,alpha=1e1") == Pareto(mean=7, alpha=10)
    quantiles = Quantiles(points=((0.95, 4196), (0.99, 15843), (0.999, 26493)), max=38631)
    assert parse_lengths(PUBLISHED) == parse_lengths("quantiles:" + PUBLISHED) == quantiles
    assert parse_quantiles("median=3, p99=4").points == ((0.5, 3), (0.99, 4))
    assert parse_lengths("2*5 + 9") == Mixture(
        parts=((2.0, Constant(tokens=5)), (1.0, Constant(tokens=9)))
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "zipf:alpha=2",
        "lognormal:mean=700",
        "lognormal:mean=700,sigma=x",
        "lognormal:mean=700,sigma=nan",
        "lognormal:mean=700,sigma=1,sigma=2",
        "lognormal:mean=700,sigma=-1",
        "lognormal:mean=0,sigma=1",
        "lognormal:mean=700,sigma=1,max=0",
        "pareto:mean=10,alpha=1",
        "constant:0",
        "constant:1.5",
        "P95 100",
        "P95 100, P99 50",
        "P95 100, P95 100",
        "P0 1, P99 50",
        "P95 100, P99 200, max 150",
        "P95 100, what 200",
        "0*5 + 9",
        "-1*5",
    ],
)
def test_mistakes_are_one_line(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_lengths(text)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


def test_benchmark_load() -> None:
    trace = lognormal(700, 0.8, 1000, 1.0, 100_000, 0)
    assert len(trace) == 100_000
    assert trace.prompt_tokens.mean() == pytest.approx(700, rel=0.01)
    assert trace.output_tokens.mean() == pytest.approx(1000, rel=0.02)
    again = lognormal(700, 0.8, 1000, 1.0, 100_000, 0)
    np.testing.assert_array_equal(trace.output_tokens, again.output_tokens)
    # Streams are separate: another prompt distribution leaves the outputs alone.
    other = lognormal(900, 0.5, 1000, 1.0, 100_000, 0)
    np.testing.assert_array_equal(trace.output_tokens, other.output_tokens)
    assert (lognormal(700, 0.8, 1000, 1.0, 100, 1).prompt_tokens != trace.prompt_tokens[:100]).any()


def test_groups_share_prompt_prefix_and_arrival() -> None:
    part = Part(
        prompt=parse_lengths("lognormal:mean=300,sigma=1"), output=parse_lengths("P50 9, P99 90")
    )
    options = GenerateOptions(num_rows=800, samples_per_prompt=8, rate_per_s=5.0, seed=2)
    trace = generate((part,), options)
    for column in (trace.prompt_tokens, trace.arrival_ps, trace.group):
        grid = column.reshape(100, 8)
        assert (grid == grid[:, :1]).all()
    assert len(np.unique(trace.group)) == 100
    assert len({tuple(row) for row in trace.output_tokens.reshape(100, 8).tolist()}) > 50
    blocks = np.diff(trace.prefix_offsets)
    np.testing.assert_array_equal(blocks, trace.prompt_tokens // 64)
    assert prefix_stats(trace)["hit_ratio"] == pytest.approx(7 / 8)


@pytest.mark.parametrize("output", ["lognormal:mean=900,sigma=0.8", "P50 9, P99 90"])
def test_samples_of_a_prompt_share_the_stated_part_of_their_variance(output: str) -> None:
    part = Part(prompt=Constant(tokens=5), output=parse_lengths(output))

    def logs(alike: float) -> np.ndarray:
        options = GenerateOptions(num_rows=16_000, samples_per_prompt=8, alike=alike, seed=4)
        return np.log(generate((part,), options).output_tokens.reshape(-1, 8))

    alone = logs(0.0)
    for alike in (0.3, 0.7):
        found = logs(alike)
        within = found.var(axis=1, ddof=1).mean()
        assert 1 - within / found.var() == pytest.approx(alike, abs=0.04)
        assert found.mean() == pytest.approx(alone.mean(), abs=0.05)  # the same distribution
        assert found.std() == pytest.approx(alone.std(), rel=0.05)
    whole = logs(1.0)
    assert (whole == whole[:, :1]).all()


def test_only_some_distributions_can_be_alike() -> None:
    part = Part(prompt=Constant(tokens=5), output=parse_lengths("pareto:mean=500,alpha=2.5"))
    with pytest.raises(UserError, match="no outputs by pareto"):
        generate((part,), GenerateOptions(num_rows=8, samples_per_prompt=2, alike=0.5))
    with pytest.raises(UserError, match="a part, 0 to 1"):
        GenerateOptions(num_rows=8, alike=1.5)


def test_poisson_arrivals() -> None:
    part = Part(prompt=Constant(tokens=1), output=Constant(tokens=1))
    trace = generate((part,), GenerateOptions(num_rows=20_000, rate_per_s=50.0))
    gaps = np.diff(trace.arrival_ps) / 1e12
    assert trace.arrival_ps[0] == 0
    assert gaps.mean() == pytest.approx(0.02, rel=0.04)
    assert gaps.std() / gaps.mean() == pytest.approx(1, rel=0.04)
    with pytest.raises(UserError, match="106 days"):
        generate((part,), GenerateOptions(num_rows=100, rate_per_s=1e-9))


def test_parts_keep_prompt_and_output_together() -> None:
    parts = (
        Part(weight=3, prompt=Constant(tokens=10), output=Constant(tokens=1000)),
        Part(weight=1, prompt=Constant(tokens=999), output=Constant(tokens=5)),
    )
    trace = generate(parts, GenerateOptions(num_rows=8000))
    assert set(zip(trace.prompt_tokens.tolist(), trace.output_tokens.tolist(), strict=True)) == {
        (10, 1000),
        (999, 5),
    }
    assert (trace.prompt_tokens == 10).mean() == pytest.approx(0.75, abs=0.03)


@given(experts=st.integers(1, 512), alpha=st.floats(0, 50))
def test_expert_shares(experts: int, alpha: float) -> None:
    shares = expert_shares(experts, alpha)
    assert shares.sum() == pytest.approx(1)
    assert (np.diff(shares) <= 0).all()
    if experts >= 2 and alpha < 20:
        assert shares[0] / shares[1] == pytest.approx(2**alpha)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_rows": 0},
        {"num_rows": 10, "samples_per_prompt": 3},
        {"num_rows": 10, "seed": -1},
        {"num_rows": 10, "rate_per_s": -1.0},
        {"num_rows": 10, "expert_skew": math.nan},
    ],
)
def test_wrong_options(wrong: dict) -> None:
    with pytest.raises(UserError):
        GenerateOptions(**wrong)
    with pytest.raises(UserError):
        expert_shares(0, 1.0)

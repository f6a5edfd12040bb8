"""The closed loop of an engine against its own simulation, and passes straight from kernels."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from batchgen.cost.api import PS_PER_S
from batchgen.cost.efficiency import Efficiency
from batchgen.cost.measured import MeasuredCost
from batchgen.cost.operators.kernels import Kernels
from batchgen.cost.silicon.loop import arrivals, closed_loop, mean_of_most
from batchgen.cost.silicon.setup import TOKEN_BUDGET, Setup
from batchgen.errors import UserError
from batchgen.hardware import load_gpu
from batchgen.layout import Layout
from batchgen.model import load_model


class Linear:
    """A cost whose passes are linear in what they hold, as `MeasuredCost.kernels_s`."""

    num_small_kernels = 300

    def kernels_s(
        self,
        rows: float,
        context: float,
        prompts: float = 0.0,
        prompt_tokens: float = 0.0,
        all_prompts: float = 0.0,
    ) -> float:
        decodes = 0.010 + 1e-5 * rows + 1e-9 * rows * context if rows else 0.0
        return decodes + prompt_tokens * (3e-6 * prompts + 1e-6 * all_prompts) + 1e-3 * (not rows)


def simulated_s(one: Setup, passes: int = 6000) -> float:
    """Mean time between tokens over the rows of a closed loop, pass by pass."""
    cost, rng = Linear(), np.random.default_rng(3)
    ranks, rows, most = one.layout.attention_dp, one.running, TOKEN_BUDGET / one.prompt_tokens
    context = one.prompt_tokens + one.output_tokens / 2
    low, high = (0.8 / 0.9, 1.0 / 0.9) if one.spread else (1.0, 1.0)
    left = np.zeros((ranks, rows), dtype=int)  # tokens to come of rows that decode
    length, begin = np.ones((ranks, rows), dtype=int), np.zeros((ranks, rows))
    times, now = [], 0.0
    for number in range(passes):
        waiting = left == 0
        order = [np.flatnonzero(waiting[rank])[: int(most)] for rank in range(ranks)]
        counts = [len(found) for found in order]
        decoding = left > 0
        prompts = max(counts), one.prompt_tokens, sum(counts)
        if not any(counts):
            now += cost.kernels_s(rows, context)
        elif one.engine == "sglang":
            now += cost.kernels_s(0.0, 0.0, *prompts)
            decoding[:] = False
        else:
            now += cost.kernels_s(rows, context, *prompts)
        ended = decoding & (left == 1)
        left[decoding] -= 1
        if number > passes // 3:
            times += [
                (now - begin[at]) / (length[at] - 1) for at in zip(*np.where(ended), strict=True)
            ]
        for rank, found in enumerate(order):
            drawn = rng.uniform(low, high, len(found)) * one.output_tokens
            length[rank, found] = np.maximum(2, np.round(drawn))
            begin[rank, found] = now
            left[rank, found] = length[rank, found] - 1
    return float(np.mean(times))


def loop_setup(engine: str, ranks: int, running: int, *, spread: bool, prompt: float) -> Setup:
    return Setup(
        engine=engine,
        model=load_model("minimax-m2.5"),
        gpu=load_gpu("h200"),
        layout=Layout(attention_dp=ranks, ep=ranks),
        batch=running,
        running=running,
        admitted=running,
        prompt_tokens=prompt,
        output_tokens=100.0,
        spread=spread,
    )


ALIKE = [(1, 4, False), (1, 32, False), (1, 90, False)]


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize(
    ("ranks", "running", "spread"),
    # Rows that are alike end together, but not those of several ranks.
    [(n, rows, True) for n, rows in ((1, 4), (1, 32), (1, 90), (4, 32))] + ALIKE,
)
def test_the_loop_is_that_of_its_simulation(
    engine: str, ranks: int, running: int, spread: bool
) -> None:
    one = loop_setup(engine, ranks, running, spread=spread, prompt=1024.0)
    found = closed_loop(one, Linear())  # type: ignore[arg-type]
    assert found.tpot_s == pytest.approx(simulated_s(one), rel=0.04)
    assert found.decode_s <= found.tpot_s


def test_launches_are_those_of_every_pass() -> None:
    one = loop_setup("sglang", 1, 50, spread=True, prompt=512.0)
    found = closed_loop(one, Linear())  # type: ignore[arg-type]
    kernels = Linear.num_small_kernels
    assert found.launches == pytest.approx(kernels * (1 + 1 - math.exp(-0.5)))
    assert found.with_launches_s(1e-6) == pytest.approx(found.tpot_s + 1e-6 * found.launches)


@pytest.mark.parametrize(("rate", "ranks"), [(0.01, 1), (0.4, 2), (0.4, 8), (3.0, 4)])
def test_the_most_of_several_ranks(rate: float, ranks: int) -> None:
    drawn = np.random.default_rng(0).poisson(rate, (200_000, ranks)).max(axis=1).mean()
    assert mean_of_most(rate, ranks) == pytest.approx(drawn, rel=0.03, abs=1e-3)
    assert mean_of_most(rate, 1) == pytest.approx(rate)
    assert mean_of_most(1e6, ranks) == 1e6


def test_prompts_of_a_life_are_those_of_the_rows() -> None:
    for spread in (True, False):
        come = arrivals(64, 1, 1000.0, spread, 8.0)
        assert come.share * come.together == pytest.approx(0.064)


# Passes by their kernels ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "gpu", "layout"),
    [
        ("llama-3.1-70b", "h200", Layout(tp=4)),
        ("deepseek-r1", "b200", Layout(tp=8, ep=8)),
        ("minimax-m2.5", "b300", Layout(attention_dp=4, ep=4)),
    ],
    ids=str,
)
def test_a_pass_by_kernels_is_the_pass_of_the_tables(model: str, gpu: str, layout: Layout) -> None:
    """Where the tables are exact: at the contexts between which they take their slope."""
    cost = MeasuredCost(load_model(model), load_gpu(gpu), layout)
    step = Efficiency().step_s
    for rows in (1, 40):
        for context in (1024, 8192):
            tabled = cost.pass_one_ps(rows, rows * context, samples=rows) / PS_PER_S
            assert cost.kernels_s(rows, context) + step == pytest.approx(tabled, rel=1e-5)
    if layout.attention_dp == 1:
        tabled = cost.pass_one_ps(0, 0, chunk_tokens=8192, chunk_pairs=8192**2, samples=1)
        ours = cost.kernels_s(0.0, 0.0, 1.0, 8192, 1.0) + step + Efficiency().prefill_step_s
        assert ours == pytest.approx(tabled / PS_PER_S, rel=0.01)


def test_joint_norms_and_small_kernels() -> None:
    joint = load_model("minimax-m2.5")
    each = replace(joint, qk_norm_joint=False)
    gpu = load_gpu("h200")
    one_kernel_s = 62 * 2.5e-6  # three against two of each layer
    for tp, summed in ((1, False), (4, True)):
        times = [MeasuredCost(m, gpu, Layout(tp=tp)).kernels_s(8, 1000) for m in (joint, each)]
        over = times[0] - times[1] - one_kernel_s
        assert over > 62 * 2e-6 if summed else over == pytest.approx(0.0, abs=1e-9)
    bare = MeasuredCost(each, gpu, Layout(tp=4), small_kernel_s=0.0)
    saved = times[1] - bare.kernels_s(8, 1000)
    assert bare.num_small_kernels == 62 * (5 + 2 + 1)
    assert saved == pytest.approx(bare.num_small_kernels * 2.5e-6)
    for model, kernels in (("llama-3.1-70b", 80 * 5), ("deepseek-r1", 61 * 2 + 58)):
        assert MeasuredCost(load_model(model), gpu, Layout(tp=8)).num_small_kernels == kernels
    assert bare.with_layout(Layout(tp=8)).describe()["layout"] == "tp8"


def test_joint_norms_over_pcie_are_rings_like_all_sums() -> None:
    gpu, tokens = load_gpu("rtx-pro-6000"), np.array([1.0, 4096.0])
    cost = MeasuredCost(load_model("minimax-m2.5"), gpu, Layout(tp=4))
    ring = 2 * 3 / 4 * tokens * (2 * 4) / (gpu.intra_bytes_per_s * Efficiency().pcie_peer)
    assert cost.joint_norm_s(tokens) == pytest.approx(ring + gpu.intra_latency_s)


def test_kernels_of_relations_and_of_weights_in_four_bits() -> None:
    sizes: dict[str, float] = {
        **{"tokens": 1024, "hidden": 2880, "width": 2880, "top_k": 4},
        **{"experts": 128, "tp": 1, "ep": 1, "skew": 1},
    }
    own, relation, hopper = (Kernels(load_gpu(name)) for name in ("b200", "b300", "h100"))
    times = [float(one.seconds("experts", "mxfp4", **sizes)) for one in (own, relation, hopper)]
    # Activations in eight bits, which Hopper's table has not.
    assert times[0] < times[2] / 3
    assert times[1] == pytest.approx(times[0], rel=0.1)
    assert (own.extrapolated, relation.extrapolated) == (set(), {"experts mxfp4_mxfp8"})
    assert hopper.extrapolated == set()
    old = Kernels(load_gpu("a100"))
    old.seconds("experts", "mxfp4", **sizes)
    assert old.extrapolated == {"experts mxfp4"}


def test_latent_attention_of_any_number_of_heads() -> None:
    gpu, layout = load_gpu("h200"), Layout(tp=8, ep=8)
    whole = load_model("deepseek-r1")
    half = replace(whole, num_heads=64, num_kv_heads=64)
    times = [MeasuredCost(m, gpu, layout).kernels_s(64, 32_000) for m in (half, whole)]
    assert 0.5 * times[1] < times[0] < times[1]
    assert MeasuredCost(load_model("kimi-k2"), gpu, layout).kernels_s(64, 32_000) > 0
    odd = replace(load_model("kimi-k2"), kv_lora_rank=256)
    with pytest.raises(UserError, match="DeepSeek-V3 only"):
        MeasuredCost(odd, gpu, layout)

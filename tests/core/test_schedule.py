"""The forward schedule covers a pass exactly once, and adds up to the closed form of the cost."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest

from batchgen.cost.efficiency import Efficiency
from batchgen.cost.terms import Terms
from batchgen.hardware import load_gpu
from batchgen.layout import Layout
from batchgen.model import load_model
from batchgen.schedule import ATTENTION, MLP, Node, Period, forward_period


def random_period(rng: random.Random) -> tuple[list[int], int, int, Period]:
    lengths = [rng.choice((1, 1, 1, rng.randint(1, 300))) for _ in range(rng.randint(1, 60))]
    b_attn, b_moe = (rng.choice((0, 1, rng.randint(1, 80), 10_000)) for _ in range(2))
    return lengths, b_attn, b_moe, forward_period(lengths, b_attn=b_attn, b_moe=b_moe)


@pytest.mark.parametrize("seed", range(50))
def test_every_token_passes_each_module_once(seed: int) -> None:
    lengths, b_attn, b_moe, period = random_period(random.Random(seed))
    firsts = np.concatenate(([0], np.cumsum(lengths)))
    for module, total in ((ATTENTION, sum(lengths)), (MLP, sum(lengths))):
        nodes = [node for node in period.nodes if node.module == module]
        assert nodes[0].tokens[0] == 0
        assert nodes[-1].tokens[1] == total
        assert all(a.tokens[1] == b.tokens[0] for a, b in pairwise(nodes))
        assert all(node.tokens[0] < node.tokens[1] for node in nodes)
    for node in period.nodes:
        if node.module == ATTENTION:
            assert (firsts[node.rows[0]], firsts[node.rows[1]]) == node.tokens
            assert not b_attn or node.rows[1] - node.rows[0] <= b_attn
            assert not node.needs
        else:
            assert not b_moe or node.tokens[1] - node.tokens[0] <= b_moe
            covered = [period.nodes[i].tokens for i in node.needs]
            assert covered[0][0] <= node.tokens[0]
            assert covered[-1][1] >= node.tokens[1]


@pytest.mark.parametrize("seed", range(20))
def test_one_resource_takes_the_sum_and_two_the_longest_chain(seed: int) -> None:
    rng = random.Random(seed)
    _, _, _, period = random_period(rng)
    times = {node: rng.random() for node in period.nodes}
    assert period.duration(times.__getitem__) == pytest.approx(sum(times.values()))
    apart = Period(
        nodes=tuple(
            Node(
                module=node.module,
                rows=node.rows,
                tokens=node.tokens,
                needs=node.needs,
                resource=node.module,
            )
            for node in period.nodes
        )
    )
    taken = {(n.module, n.tokens): times[n] for n in period.nodes}
    duration = apart.duration(lambda node: taken[node.module, node.tokens])
    by_module = [
        sum(t for (module, _), t in taken.items() if module == name) for name in (ATTENTION, MLP)
    ]
    assert max(by_module) <= duration + 1e-9
    assert duration <= sum(by_module) + 1e-9


@pytest.mark.parametrize("seed", range(20))
def test_the_graph_adds_up_to_the_closed_form(seed: int) -> None:
    """Experts by groups, for any load; attention where the sub-batches are whole, since the closed
    form charges the last one as a full one."""
    rng = random.Random(seed)
    model, gpu = load_model("qwen3-30b-a3b"), load_gpu("h20")
    b_attn, b_moe = rng.randint(1, 64), rng.randint(1, 4096)
    sizes = {"model": model, "gpu": gpu, "layout": Layout(), "efficiency": Efficiency()}
    whole, split = Terms(**sizes), Terms(**sizes, b_attn=b_attn, b_moe=b_moe)
    rows = b_attn * rng.randint(1, 20)
    period = forward_period([1] * rows, b_attn=b_attn, b_moe=b_moe)
    per_layer_ps = whole.efficiency.sub_batch_s * 1e12

    def experts_ps(node: Node) -> float:
        count = node.tokens[1] - node.tokens[0]
        return float(whole.experts(np.array([count], dtype=float))[0]) if node.module == MLP else 0

    def attention_ps(node: Node) -> float:
        if node.module == MLP:
            return 0.0
        count, context = node.rows[1] - node.rows[0], 1000
        extra = per_layer_ps * model.num_layers if node.rows[0] else 0.0
        return whole.decode_slope(count) * count * context + whole.decode_fixed(count) + extra

    closed = split.experts(np.array([rows], dtype=float))[0]
    assert period.duration(experts_ps) == pytest.approx(closed)
    closed = split.decode_slope(rows) * rows * 1000 + split.decode_fixed(rows)
    assert period.duration(attention_ps) == pytest.approx(closed)


def test_what_is_no_pass_has_no_period() -> None:
    for lengths, b_attn, b_moe in (([], 0, 0), ([0], 0, 0), ([1], -1, 0), ([1], 0, -1)):
        with pytest.raises(ValueError, match="no period"):
            forward_period(lengths, b_attn=b_attn, b_moe=b_moe)
    assert forward_period([1, 5]).whole
    assert not forward_period([1, 5], b_attn=1).whole

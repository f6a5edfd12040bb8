"""Hidden states between ranks: bytes and links, the slowest sender, nodes that work apart."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from batchgen.cost.api import PS_PER_S, PassLoad
from batchgen.cost.build import build_cost
from batchgen.cost.efficiency import Efficiency
from batchgen.cost.terms import Terms
from batchgen.hardware import load_gpu
from batchgen.layout import parse_layout
from batchgen.model import DTYPE_BYTES, load_model

R1, H20 = load_model("deepseek-r1"), load_gpu("h20")
TOKENS = 6400.0
FP8 = DTYPE_BYTES["fp8"]


def terms(layout: str, gpus: int, **constants: object) -> Terms:
    fixed = Efficiency(internode_collective_s=0.0, intranode_collective_s=0.0)
    efficiency = replace(fixed, **constants)  # type: ignore[arg-type]
    return Terms(model=R1, gpu=H20, layout=parse_layout(layout, gpus), efficiency=efficiency)


def exchange_s(
    layout: str, gpus: int, tokens: float = TOKENS, *, summed: bool = False, **constants: object
) -> float:
    found = terms(layout, gpus, **constants).exchange(np.array([tokens]), summed=summed)
    return float(found[0]) / PS_PER_S / R1.moe_layers


def test_gathered_states_cross_the_border_of_a_node_once_each_way() -> None:
    node_rate = 8 * H20.inter_bytes_per_s * Efficiency().network
    whole = TOKENS * R1.hidden * 2
    for layout, gpus, nodes in (("dpa16+ep16", 16, 2), ("dpa64+ep64", 64, 8)):
        crossed = whole * (nodes - 1) / nodes
        for summed, rounds in ((False, 2), (True, 4)):
            expected = rounds * crossed / node_rate
            inside = rounds * whole * 7 / 8 / (H20.intra_bytes_per_s * Efficiency().nvlink)
            found = exchange_s(layout, gpus, exchange="gather", summed=summed)
            assert found == pytest.approx(max(expected, inside), rel=1e-9)


def test_a_dispatched_token_crosses_once_to_every_node_that_has_its_experts() -> None:
    sent = TOKENS / 8 * R1.hidden * (FP8 + 2)  # of a node; fp8 there, bf16 back
    node_rate = 8 * H20.inter_bytes_per_s * Efficiency().network
    # Experts of a token lie in 4 of 8 groups, so on 4 of 8 nodes, the own one among them or not.
    assert exchange_s("dpa64+ep64", 64) == pytest.approx(sent * 3.5 / node_rate, rel=1e-9)
    two = TOKENS / 2 * R1.hidden * (FP8 + 2) * (1 - 0.5**R1.top_k)
    inside = TOKENS / 16 * R1.hidden * (FP8 + 2) * R1.top_k * 7 / 8
    found = exchange_s("dpa16+ep16", 16)
    nvlink = H20.intra_bytes_per_s * Efficiency().nvlink
    assert found == pytest.approx(max(two / node_rate, inside / nvlink), rel=1e-9)


def test_every_collective_between_nodes_has_its_fixed_time() -> None:
    wide = {"internode_collective_s": 1e-3}
    assert exchange_s("dpa16+ep16", 16, 1e-6, **wide) == pytest.approx(2e-3, rel=1e-6)
    assert exchange_s("dpa8+ep8", 8, 1e-6, **wide) == pytest.approx(0, abs=1e-9)
    inside = {"intranode_collective_s": 1e-3}
    assert exchange_s("dpa8+ep8", 8, 1e-6, **inside) == pytest.approx(2e-3, rel=1e-6)
    one = np.array([1.0])
    more = terms("tp16", 16, **wide).all_reduce(one) - terms("tp16", 16).all_reduce(one)
    assert float(more[0]) / PS_PER_S == pytest.approx(2 * R1.num_layers * 1e-3)


def test_all_wait_for_the_slowest_sender() -> None:
    """One rank with all prompt tokens costs what the collective costs with all ranks as full."""
    cost = build_cost(R1, H20, parse_layout("dpa16+ep16", 16), gpus_per_node=8)
    one, all_ = PassLoad.zeros(16, 1), PassLoad.zeros(16, 1)
    one.chunk_tokens[0] = all_.chunk_tokens[:] = 16384
    one.chunk_pairs[0] = all_.chunk_pairs[:] = 16384**2
    experts = cost.terms.experts(np.array([16384.0, 16 * 16384.0]))
    sent = [cost.union_ps(load)[0] - time for load, time in zip((one, all_), experts, strict=True)]
    assert sent[0] == pytest.approx(sent[1], abs=2)
    assert sent[0] > 0
    assert 12 * experts[0] < experts[1]
    assert cost.pass_ps(one)[0] < cost.pass_ps(all_)[0]


@pytest.mark.parametrize(
    "constants",
    [
        {},
        {"exchange": "gather", "theta": 0.3},
        {"prefill_within_node": True},
        {"exchange": "all-reduce", "theta": 0.0, "prefill_within_node": True},
    ],
    ids=str,
)
def test_scalars_and_arrays_agree(constants: dict[str, object]) -> None:
    efficiency = Efficiency(**constants)  # type: ignore[arg-type]
    layout = parse_layout("dpa16+ep16", 16)
    cost = build_cost(R1, H20, layout, gpus_per_node=8, efficiency=efficiency)
    rng = random.Random(3)
    load = PassLoad.zeros(16, 60)
    for at in np.ndindex(16, 60):
        prompts_only = at[1] % 3 == 0
        rows = 0 if prompts_only else rng.choice((0, 1, 60))
        tokens = rng.choice((0, 0, 700))
        load.decodes[at], load.context[at], load.samples[at] = rows, rows * 900, rows
        load.chunk_tokens[at], load.chunk_pairs[at] = tokens, tokens**2
    times = cost.pass_ps(load)
    for j in range(60):
        one = load.window(j, j + 1)
        loads = [tuple(int(getattr(one, name)[rank, 0]) for name in NAMES) for rank in range(16)]
        assert cost.time_ps(loads) == times[j]  # type: ignore[arg-type]
        even = PassLoad.zeros(16, 1)
        for name, value in zip(NAMES, loads[0], strict=True):
            getattr(even, name)[:] = value
        assert cost.pass_one_ps(*loads[0]) == cost.pass_ps(even)[0]


def test_passes_with_prompts_sum_what_there_is() -> None:
    """By all-reduce: one rank's prompt moves a sixteenth of what those of all ranks move; passes of
    decodes are padded to the fullest rank."""
    efficiency = Efficiency(exchange="all-reduce", internode_collective_s=0.0)
    layout = parse_layout("dpa16+ep16", 16)
    cost = build_cost(R1, H20, layout, gpus_per_node=8, efficiency=efficiency)
    moved = {}
    for kind in ("chunk_tokens", "decodes"):
        for ranks in (1, 16):
            load = PassLoad.zeros(16, 1)
            getattr(load, kind)[:ranks] = 512
            experts = cost.terms.experts(np.array([512.0 * ranks]))
            moved[kind, ranks] = float(cost.union_ps(load)[0] - experts[0])
    assert moved["chunk_tokens", 16] == pytest.approx(16 * moved["chunk_tokens", 1], rel=1e-6)
    assert moved["decodes", 16] == pytest.approx(moved["decodes", 1], abs=2)  # rounded once
    assert moved["chunk_tokens", 16] == pytest.approx(2 * moved["decodes", 16], rel=1e-6)


NAMES = (
    *("decodes", "context", "chunk_tokens", "chunk_pairs", "chunk_reads", "samples"),
    "checkpoint",
)


def test_nodes_that_work_apart_exchange_nothing_and_fetch_what_they_lack() -> None:
    apart = terms("dpa64+ep64", 64, network=0.05)
    node = terms("dpa8+ep8", 8)
    tokens = np.array([64 * 16384.0])
    alone = node.experts(tokens / 8) + node.exchange(tokens / 8)
    assert apart.within_node(tokens) == pytest.approx(alone)
    # Of few tokens the pass takes as long as the experts take that come from the host.
    held = R1.moe_layers * R1.num_experts * R1.expert_parameters * FP8
    fetched_s = held * (1 / 8 - 1 / 64) / (H20.node_host_bytes_per_s / 8)
    few = float(apart.within_node(np.array([64.0]))[0]) / PS_PER_S
    assert few == pytest.approx(fetched_s, rel=1e-6)
    assert float(apart.within_node(np.array([0.0]))[0]) == 0.0
    # A rank over two nodes cannot work apart.
    spans = terms("tp16+ep16", 16)
    assert spans.within_node(tokens) == pytest.approx(spans.experts(tokens))


def test_heads_of_latent_attention_fill_tiles() -> None:
    """16 heads take as long per token as 64, unless bytes bound them; so does the whole model."""
    slopes = {tp: terms(f"tp{tp}", tp).decode_slope(1) for tp in (1, 2, 4, 8)}
    assert slopes[2] == pytest.approx(slopes[1] / 2)
    assert slopes[2] == pytest.approx(slopes[4]) == pytest.approx(slopes[8])
    dense = load_model("llama-3.1-70b")
    wide = Terms(model=dense, gpu=H20, layout=parse_layout("tp8", 8))
    whole = Terms(model=dense, gpu=H20, layout=parse_layout("tp1", 1))
    assert wide.decode_slope(1) == pytest.approx(whole.decode_slope(1) / 8)

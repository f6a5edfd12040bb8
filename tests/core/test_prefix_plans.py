"""Prefix trees, groups, densities and the dual scanner against counting by hand."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from core_cases import Case, Row, run
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgen.policy import density, prefix_tree
from batchgen.policy.admission import peak_tokens
from batchgen.policy.arrangement import Unit, Waiting
from batchgen.policy.memory import RetractLeastDecoded
from batchgen.policy.planned import Blend, DepthFirst, PrefixGroups
from batchgen.policy.predictor import AskedLength
from batchgen.policy.prefix_groups import computed_tokens, groups
from batchgen.policy.presets import build_policy, find_preset
from batchgen.policy.scanner import split
from batchgen.sequence import Status, Table

PAGE = 4
PROMPTS = st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=12)
"""Pages of a prompt, by content."""


def chained(prompts: list[list[int]]) -> list[list[int]]:
    """A key names its page and all before it."""
    known: dict[tuple[int, ...], int] = {}
    return [
        [known.setdefault(tuple(one[: end + 1]), len(known)) for end in range(len(one))]
        for one in prompts
    ]


def computed_by_hand(keys: list[list[int]], order: list[int]) -> int:
    """Pages computed when a row finds what the row before it had."""
    pages, last = 0, list[int]()
    for row in order:
        mine = keys[row]
        hits = next(
            (at for at, pair in enumerate(zip(mine, last, strict=False)) if pair[0] != pair[1]),
            min(len(mine), len(last)),
        )
        pages += len(mine) - hits
        last = mine
    return pages


@settings(deadline=None, max_examples=200)
@given(PROMPTS)
def test_depth_first_order_computes_every_page_once(prompts: list[list[int]]) -> None:
    keys = chained(prompts)
    nodes = prefix_tree.build(range(len(keys)), keys.__getitem__, PAGE)
    order = prefix_tree.depth_first(nodes)
    assert sorted(order) == list(range(len(keys)))
    total, distinct = sum(map(len, keys)), len({key for one in keys for key in one})
    assert prefix_tree.saved_tokens(nodes) == (total - distinct) * PAGE
    for key in {key for one in keys for key in one}:
        places = [at for at, row in enumerate(order) if key in keys[row]]
        assert places == list(range(places[0], places[0] + len(places)))
    for node in nodes[1:]:
        assert node.begin == nodes[node.parent].end < node.end
        assert node.rows or len(node.children) > 1


@settings(deadline=None, max_examples=200)
@given(PROMPTS)
def test_groups_share_one_true_prefix(prompts: list[list[int]]) -> None:
    keys = chained(prompts)
    lengths = [len(one) * PAGE + 1 for one in keys]
    nodes = prefix_tree.build(range(len(keys)), keys.__getitem__, PAGE)
    found = groups(nodes)
    assert sorted(row for _, rows in found for row in rows) == list(range(len(keys)))
    for prefix, rows in found:
        assert len({tuple(keys[row][: prefix // PAGE]) for row in rows}) == 1
        assert all(prefix <= lengths[row] for row in rows)
    least = sum(lengths) - prefix_tree.saved_tokens(nodes)
    assert least <= computed_tokens(found, lengths) <= sum(lengths)


def test_a_subtree_leaves_its_group_when_that_saves_tokens() -> None:
    """Rule of BatchLLM: (leaves - 1) x own segment against the copied prefix. Prefix of 3 pages;
    2 x 2 pages more for three rows saves 4, a copy costs 3; for two rows it saves 2 of 3."""
    for count, leaves in ((3, True), (2, False)):
        prompts = [[0, 0, 0, 9, 9]] * count + [[0, 0, 0, 5], [0, 0, 0, 6]]
        nodes = prefix_tree.build(range(len(prompts)), chained(prompts).__getitem__, PAGE)
        ends = sorted((prefix // PAGE, len(rows)) for prefix, rows in groups(nodes))
        assert ends == ([(3, 2), (5, 3)] if leaves else [(3, 4)])


def test_the_split_of_the_paper() -> None:
    """BlendServe, figure 6: 60 GB, densities 1.27, 3.73 and 0.096: 19.4 and 40.6 GB."""
    found = split(Unit(3.73, 100, 10), Unit(0.096, 100, 1000), 1.27, 60.0, 8192)
    assert found is not None
    assert (round(found.left_kv, 1), round(found.right_kv, 1)) == (19.4, 40.6)


@settings(deadline=None, max_examples=200)
@given(st.tuples(*[st.floats(1e-6, 1e6)] * 3), st.tuples(*[st.floats(1, 1e5)] * 4))
def test_a_split_keeps_memory_and_density(
    densities: tuple[float, float, float], lengths: tuple[float, float, float, float]
) -> None:
    one, other, whole = densities
    p_left, d_left, p_right, d_right = lengths
    found = split(Unit(one, p_left, d_left), Unit(other, p_right, d_right), whole, 1e6, 8192)
    if one <= other:
        assert found is None
        return
    assert found is not None
    assert found.left_kv + found.right_kv == pytest.approx(1e6)
    assert min(found.left_kv, found.right_kv) >= 0
    assert min(found.left_prompts, found.right_prompts) >= 1
    assert max(found.left_prompts, found.right_prompts) <= 8192
    if other < whole < one:
        blended = found.left_kv * one + found.right_kv * other
        assert blended == pytest.approx(1e6 * whole, rel=1e-6)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=8))
def test_the_peak_equals_a_walk(lives: list[tuple[int, int]]) -> None:
    rest, tokens = (np.array(column, dtype=np.int64) for column in zip(*lives, strict=True))
    walked = max(
        sum(held + t for more, held in lives if more >= t) for t in range(1, max(rest) + 1)
    )
    assert peak_tokens(rest, tokens) == walked


@settings(deadline=None, max_examples=150)
@given(PROMPTS, st.randoms(use_true_random=False), st.sampled_from((0.0, 3.0, 1e9)))
def test_pieces_are_sorted_and_lose_no_more_than_allowed(
    prompts: list[list[int]], rng: random.Random, budget: float
) -> None:
    keys = chained(prompts)
    nodes = prefix_tree.build(range(len(keys)), keys.__getitem__, PAGE)
    works = {}
    for node in nodes:
        for row in node.rows:
            works[row] = density.row_work(
                len(keys[row]) * PAGE + 1, rng.randint(1, 99), 1e9, node.end
            )
    found = density.pieces(nodes, works, 1e9, budget)
    order = [row for _, rows in found for row in rows]
    assert sorted(order) == list(range(len(keys)))
    values = [density.density(work) for work, _ in found]
    assert all(one >= other - 1e-9 for one, other in pairwise(values))
    pages = len({key for one in keys for key in one})
    assert computed_by_hand(keys, order) * PAGE <= pages * PAGE + 2 * budget + 1e-6


def test_unsampled_rows_are_expected_to_do_as_their_siblings() -> None:
    prompts = [[1, 1], [1, 1], [1, 2], [1, 2], [7], [7]]
    nodes = prefix_tree.build(range(6), chained(prompts).__getitem__, PAGE)
    means = density.expected_outputs(nodes, {0: 10.0, 4: 90.0}, 5.0)
    found = {row: mean for node, mean in zip(nodes, means, strict=True) for row in node.rows}
    assert (found[1], found[3], found[5]) == (10.0, 10.0, 90.0)
    nothing = density.expected_outputs(nodes, {}, 5.0)
    assert set(nothing) == {5.0}


def _waiting(table: Table, keys: list[list[int]], rows: list[int], ended: list[int]) -> Waiting:
    return Waiting(table=table, rows=rows, ended=ended, keys=keys.__getitem__, page_tokens=PAGE)


def test_blend_puts_samples_first_and_learns_from_them() -> None:
    """200 chats that say little and 20 long ones share a prefix each; 1 % of them run first."""
    keys = [[0, 10 + row] if row % 11 else [1, 1000 + row] for row in range(220)]
    table = Table([9] * 220, [500] * 220)
    part = Blend(Blend.Config(sample=0.1))
    first = part.arrange(_waiting(table, keys, list(range(220)), []))
    samples = first.order[: first.awaited]
    assert first.awaited == 22
    for row in samples:
        table.v_produced[row] = 4 if row % 11 else 400
        table.v_status[row] = Status.DONE
    assert {row % 11 == 0 for row in samples} == {True, False}
    rest = [row for row in range(220) if row not in samples]
    second = part.arrange(_waiting(table, keys, rest, samples))
    assert second.awaited == 0
    kinds = [row % 11 == 0 for row in second.order]
    assert kinds == sorted(kinds)
    left, right = second.units[second.order[0]], second.units[second.order[-1]]
    assert (left.output_tokens, right.output_tokens) == (4, 400)
    assert left.density > second.whole.density > right.density


def test_planning_parts_without_keys_keep_every_row() -> None:
    table = Table([5, 6, 7], [3, 3, 3])
    for part in (DepthFirst(), PrefixGroups(), Blend()):
        assert sorted(part.arrange(_waiting(table, [[], [], []], [2, 0, 1], [])).order) == [0, 1, 2]
        assert part.arrange(_waiting(table, [[], [], []], [], [])).order == []


def test_the_row_that_has_decoded_least_is_retracted() -> None:
    """While rows decode, produced = offset + k - prompt + 1, at the same k for all of a rank."""
    table = Table([10, 50, 10], [99, 99, 99])
    k, produced = 7, (5, 3, 8)
    for row, count in enumerate(produced):
        table.v_offset[row] = table.v_prompt[row] + count - 1 - k
    part = RetractLeastDecoded()
    assert max(range(3), key=lambda row: part.rank_victim(table, row)) == 1


def test_only_rows_that_ask_for_much_are_known() -> None:
    table = Table([1, 1], [2047, 2048])
    AskedLength().on_arrival(table, [0, 1], None)
    assert table.predicted.tolist() == [0, 2048]


def test_both_ends_run_side_by_side() -> None:
    """Rows that compute and rows that read: the scanner takes of both before either is used up."""
    rows = tuple(
        Row(prompt=32, budget=2, output=2) if at % 2 else Row(prompt=4, budget=60, output=60)
        for at in range(24)
    )
    case = Case(preset="blendserve", rows=rows, hbm_pages=90, budget=64, seqs=64)
    case = replace(case, overrides={"predictor.least_tokens": "1", "order.unit_rows": "1"})
    outcome = run(case)
    first = [row for passes in outcome.passes() for _, _, some, _ in passes for row, *_ in some]
    early = {row % 2 for row in first[:6]}
    assert early == {0, 1}
    sides = {row % 2: outcome.table.v_side[row] for row in first[:6]}
    assert sides == {1: 0, 0: 1}
    assert all(outcome.table.ended(row) for row in range(len(rows)))


def test_a_part_that_is_swapped_takes_no_options_of_the_preset() -> None:
    policy = build_policy(find_preset("sarathi"), {"admission.part": "worst-case"})
    assert type(policy["admission"]).__name__ == "WorstCase"
    kept = build_policy(find_preset("sarathi"), {"admission.part": "fits-now"})
    assert kept["admission"].config.watermark == 0.01

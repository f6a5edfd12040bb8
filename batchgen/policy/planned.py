"""Order parts that plan over the prefix tree of all waiting rows. They admit nobody.

Rows that share a prefix come together, so that it is computed once and is still cached when the
next of them comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from batchgen.policy import density, prefix_tree
from batchgen.policy.admission import expected_outputs, peak_tokens
from batchgen.policy.arrangement import Arrangement, Unit, Waiting
from batchgen.policy.base import OrderPart, Part
from batchgen.policy.options import MOST_TOKENS, option
from batchgen.policy.prefix_groups import groups
from batchgen.policy.scanner import split

if TYPE_CHECKING:
    from batchgen.runtime.engine.deck import Deck
    from batchgen.runtime.engine.rank import Rank
    from batchgen.sequence import Table

LEFT, RIGHT = 0, 1
SPREAD = 2654435761  # multiples of this modulo 2^32 are spread evenly (golden ratio)


class DepthFirst(OrderPart):
    """Depth first through the prefix tree: the most sharing, whatever the rows hold."""

    changes = "never"
    plans = True

    def arrange(self, waiting: Waiting) -> Arrangement:
        nodes = prefix_tree.build(waiting.rows, waiting.keys, waiting.page_tokens)
        return Arrangement(order=prefix_tree.depth_first(nodes))


class PrefixGroups(OrderPart):
    """BatchLLM's groups: rows of one shared prefix together, one level of sharing, groups with the
    most output per prompt token first, so that later prompts have decodes to ride with.

    Outputs are predictions, else budgets. Source: BatchLLM (arXiv 2412.03594), its prefix
    clustering.
    """

    changes = "never"
    plans = True

    def arrange(self, waiting: Waiting) -> Arrangement:
        table = waiting.table
        found = groups(prefix_tree.build(waiting.rows, waiting.keys, waiting.page_tokens))

        def ratio(prefix: int, rows: Sequence[int]) -> float:
            outputs = sum(table.v_predicted[row] or table.v_budget[row] for row in rows)
            prompts = sum(max(table.v_prompt[row] - prefix, 1) for row in rows)
            return outputs / (prefix + prompts)

        found.sort(key=lambda one: (-ratio(*one), one[1][0]))
        return Arrangement(order=[row for _, rows in found for row in rows])


class Blend(OrderPart):
    """BlendServe: the prefix tree sorted by compute density, dealt from both ends, so that rows
    which compute and rows which read memory run side by side.

    `sample` of the rows without a prediction run first; then their subtrees are expected to produce
    the mean of theirs. Until then rows are expected to produce `initial_tokens`. A plan keeps
    `keep_sharing` of the tokens that depth-first order saves. Rows that produce more than `overrun`
    times what was expected count as memory-bound. Source: arXiv 2411.16102, section 5.
    """

    changes = "pass"
    plans = True
    two_ended = True

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        sample: float = option(0.01, least=0, most=1)
        initial_tokens: int = option(128, least=1, most=MOST_TOKENS)
        keep_sharing: float = option(0.99, least=0, most=1)
        quadratic_tokens: int = option(30000, least=1, most=MOST_TOKENS)
        overrun: float = option(2.0, least=1, most=1_000_000)
        unit_rows: int = option(64, least=1, most=MOST_TOKENS)

    def arrange(self, waiting: Waiting) -> Arrangement:
        table, config, rows = waiting.table, self.config, list(waiting.rows)
        if not rows:
            return Arrangement(order=[])
        ended = {row: float(table.v_produced[row]) for row in waiting.ended}
        samples = [] if ended else self._samples(table, rows)
        nodes = prefix_tree.build([*rows, *ended], waiting.keys, waiting.page_tokens)
        means = density.expected_outputs(nodes, ended, float(config.initial_tokens))
        outputs: dict[int, float] = {}
        works: dict[int, density.Work] = {}
        quadratic = float(config.quadratic_tokens)
        for node, mean in zip(nodes, means, strict=True):
            node.rows = [row for row in node.rows if row not in ended]
            for row in node.rows:
                known = float(table.v_predicted[row] or min(mean, table.v_budget[row]))
                outputs[row] = max(known, 1.0)
                prompt = table.v_prompt[row]
                shared = min(node.end, prompt)
                works[row] = density.row_work(prompt, outputs[row], quadratic, shared)
        budget = (1.0 - config.keep_sharing) * prefix_tree.saved_tokens(nodes)
        found = density.pieces(nodes, works, quadratic, budget)
        units = density.units_of(found, config.unit_rows, table.v_prompt.__getitem__, outputs)
        compute = sum(work[0] for work, _ in found)
        memory = sum(work[1] for work, _ in found)
        first = set(samples)
        return Arrangement(
            order=samples + [row for _, piece in found for row in piece if row not in first],
            awaited=len(samples),
            units=units,
            works={row: (round(one[0]), round(one[1])) for row, one in works.items()},
            whole=Unit(density.density((compute, memory)), 1.0, 1.0),
        )

    def _samples(self, table: Table, rows: list[int]) -> list[int]:
        """A part of the rows whose output nobody knows, the same ones whatever their order."""
        unknown = [row for row in rows if not table.v_predicted[row]]
        count = ceil(self.config.sample * len(unknown))
        return sorted(unknown, key=lambda row: (row * SPREAD % 2**32, row))[:count]

    def end(self, rank: Rank, deck: Deck, k: int, refused: int) -> int:
        """The end that holds less of its memory, among those with room in it and in the step."""
        left, right = deck.ends()
        if left == right:
            return 0 if refused < 0 else -1
        units = deck.units
        one, other = units.get(left), units.get(right)
        parts = None
        if one is not None and other is not None:
            tokens = rank.size * rank.page_tokens
            parts = split(one, other, deck.whole.density, tokens, MOST_TOKENS)
        if parts is None:
            return 0 if refused < 0 else -1
        held, prompts = self._held(rank, k)
        best, least = -1, 1.0
        for end in (0, 1):
            if end == refused:
                continue
            room = (parts.left_kv, parts.right_kv)[end]
            step = (parts.left_prompts, parts.right_prompts)[end]
            filled = held[end] / room if room > 0 else 1.0
            if filled < least and prompts[end] < step:
                best, least = end, filled
        return best

    def _held(self, rank: Rank, k: int) -> tuple[list[float], list[int]]:
        """Per end: KV tokens that its rows hold in the middle of their lives, and tokens of their
        prompts without KV."""
        table, many = rank.table, len(rank.running)
        running = np.fromiter(rank.running, np.int64, many)
        others = np.array([*rank.prefilling, *rank.held], np.int64)
        rows = np.concatenate([running, others])
        side, expected = table.side[rows], expected_outputs(table, rows)
        tokens = table.prompt[rows] + expected / 2
        known = table.offset[running] + k
        late = known - table.prompt[running] > self.config.overrun * expected[:many]
        tokens[:many][late] = known[late]
        side[:many][late] = 1
        right = float(tokens[side == 1].sum())
        held = [float(tokens.sum()) - right, right]
        prompts = [0, 0]
        for row in rank.prefilling:
            prompts[table.v_side[row]] += table.known_tokens(row) - table.v_computed[row]
        return held, prompts


class HeavyFirst(Blend):
    """Blend's order, dealt from its memory-bound end as long as the peak of what is expected leaves
    `reserve` of the pages to rows of the other end, and the next row there will last for at least
    `least_share` of the longest that is left; then from the other end.

    So long rows start at once, none of them starts last, and short rows that compute fill the
    passes beside them: how fast is the batching part's to say (`paced`). Where prompts have phases
    of their own nothing runs beside anything: depth first there, and rows that share nothing keep
    the order of their coming, in which placement has put long prompts of all ranks side by side.
    """

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Blend.Config):
        reserve: float = option(0.05, least=0, most=1)
        least_share: float = option(0.1, least=0, most=1)

    def arrange(self, waiting: Waiting) -> Arrangement:
        if waiting.mixes:
            return super().arrange(waiting)
        return DepthFirst().arrange(waiting)

    def end(self, rank: Rank, deck: Deck, k: int, refused: int) -> int:
        if not deck.units:
            return LEFT if refused < 0 else -1
        if refused != RIGHT and self._fits(rank, deck, k):
            return RIGHT
        return LEFT if refused != LEFT else -1

    def _fits(self, rank: Rank, deck: Deck, k: int) -> bool:
        """Whether the next row of the right end is long, and leaves the reserve."""
        table, (_, row) = rank.table, deck.ends()
        running = np.fromiter(rank.running, np.int64, len(rank.running))
        others = np.array([row, *rank.prefilling, *rank.held], np.int64)
        known = table.offset[running] + k
        tokens = np.concatenate([known, table.prompt[others]])
        outputs = expected_outputs(table, np.concatenate([running, others]))
        if not table.v_predicted[row] and row in deck.units:
            outputs[len(running)] = round(deck.units[row].output_tokens)
        rest = outputs - np.maximum(tokens - table.prompt[np.concatenate([running, others])], 0)
        if outputs[len(running)] < self.config.least_share * rest.max(initial=0):
            return False
        limit = (1 - self.config.reserve) * rank.size * rank.page_tokens
        return bool(peak_tokens(np.maximum(rest, 1), tokens) <= limit)

"""Random event streams of a backend whose times are dice: invariants, liveness, replay."""

from __future__ import annotations

import random

import pytest
from core_cases import products, random_case, swaps
from core_chaos import Chaos
from core_invariants import Invariants

from batchgen.log import encode
from batchgen.sequence import Status


def survive(seed: int, compositions: list[tuple[str, dict[str, str]]]) -> None:
    """All rows end by name, nothing is left, and the same events get the same actions again."""
    rng = random.Random(seed)
    case = random_case(rng, rng.choice(compositions), kinds=())
    chaos = Chaos(case, seed, Invariants(case))
    try:
        chaos.run()
        assert chaos.runtime.unfinished == 0
        assert sorted(chaos.reasons) == list(range(len(case.rows)))
        for row, one in enumerate(case.rows):
            if chaos.table.v_status[row] == Status.DONE:
                assert chaos.reasons[row] in ("stop", "length")
                assert chaos.table.v_produced[row] == chaos.tokens[row] == one.total
            else:
                assert chaos.reasons[row] in ("capacity", "cancelled", "bad")
        for engine in chaos.runtime.cluster.engines:
            assert engine.host_used == engine.stream_used == 0
            assert all(rank.used == 0 for rank in engine.ranks)
        again = Chaos(case, seed).runtime
        for entry in chaos.entries:
            assert encode(again.on(entry.event, entry.t)) == encode(entry.actions)
    except Exception as error:
        raise AssertionError(f"seed {seed}: {error!r}\n{case}") from error


@pytest.mark.parametrize("first", range(0, 400, 40))
def test_random_event_streams(first: int) -> None:
    for seed in range(first, first + 40):
        survive(seed, swaps() if seed % 2 else products())


@pytest.mark.slow
@pytest.mark.parametrize("first", range(10_000, 20_000, 500))
def test_random_event_streams_at_length(first: int) -> None:
    for seed in range(first, first + 500):
        survive(seed, swaps() if seed % 2 else products())

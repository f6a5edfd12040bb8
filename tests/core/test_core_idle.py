"""No engine is idle while another has rows waiting from which it would gain, in any composition."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from core_cases import Case, products, random_case, run, swaps

from batchgen.errors import UserError
from batchgen.log import Entry
from batchgen.runtime.core import Runtime
from batchgen.runtime.engine.machine import EngineMachine

NUM_CASES = 40


def nothing_to_do(engine: EngineMachine) -> bool:
    """It has no rows, none is on its way to it, and it is free to begin."""
    rows = engine.num_resident or engine.num_waiting or engine.ready or engine.requests
    return not (rows or engine.flying or engine.launched or engine.switching or engine.doubt)


def nobody_idles(runtime: Runtime, entry: Entry) -> None:
    """Two rows wait, and an engine that takes rows has nothing to do."""
    cluster = runtime.cluster
    donor = max(cluster.engines, key=lambda one: one.num_waiting)
    if donor.num_waiting < 2 or not cluster.policy.steals:
        return
    for engine in cluster.takers:
        if engine.role == "decode" or engine.roomiest < donor.roomiest:
            continue
        pace = cluster.pace
        rows = (donor.num_waiting + donor.settled) * pace.slowness(donor)
        if rows >= pace.slowness(donor) + pace.slowness(engine):
            assert not nothing_to_do(engine), (entry, donor.id, engine.id)


@pytest.mark.parametrize("seed", range(6))
def test_no_engine_idles_while_rows_wait_elsewhere(seed: int) -> None:
    """Whatever the composition, whatever is slow, lost and back."""
    rng = random.Random(seed)
    compositions = swaps() if seed % 2 else products()
    for _ in range(NUM_CASES):
        case: Case = random_case(rng, rng.choice(compositions))
        case = replace(case, overrides={**case.overrides, "placement.part": "least-work"})
        try:
            run(case, checker=nobody_idles)
        except UserError:
            continue  # a composition that is refused

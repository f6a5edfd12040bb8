"""Faults that the core once had, one test for each: compositions of parts."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from core_cases import NAMES, Case, Row, run
from core_verify import verify_core

from batchgen.errors import UserError
from batchgen.policy.compiled import Compiled
from batchgen.policy.presets import CAPABILITIES, PARTS, build_policy, find_preset
from batchgen.step import Step


def test_a_composition_that_cannot_work_is_refused_in_one_line() -> None:
    """Every preset with every one and every two slots swapped, on every kind of backend."""
    kinds = [
        frozenset(some)
        for count in range(len(CAPABILITIES) + 1)
        for some in itertools.combinations(sorted(CAPABILITIES), count)
    ]
    refused = set()
    for name, slots in itertools.product(NAMES, itertools.combinations(PARTS, 2)):
        for choice in itertools.product(*(PARTS[slot] for slot in slots)):
            swap = {f"{slot}.part": part for slot, part in zip(slots, choice, strict=True)}
            for capabilities in kinds:
                try:
                    Compiled(build_policy(find_preset(name), swap, capabilities))
                except UserError as error:
                    assert capabilities < CAPABILITIES
                    refused.add(str(error))
    assert len(refused) > 5
    for line in refused:
        assert "\n" not in line
        assert " needs " in line
        assert "--set " in line


SCARCE = Case(
    preset="vllm",
    rows=tuple(Row(prompt=11, budget=60, output=20 + 7 * index % 40) for index in range(14)),
    hbm_pages=40,
    host_pages=30,
    engines=2,
)


@pytest.mark.parametrize(
    ("preset", "slot", "part"),
    [
        ("vllm", "memory", "suspend-most-decoded"),
        ("vllm", "order", "by-prompt"),
        ("vllm", "admission", "lazy-pages"),
        ("batchgen", "admission", "fits-now"),
        ("batchgen", "phase", "mixed"),
    ],
)
def test_compositions_that_crashed_or_failed_every_row(preset: str, slot: str, part: str) -> None:
    """They run scarce memory to the end of every row, and coalesced stepping changes nothing."""
    case = replace(SCARCE, preset=preset, overrides={f"{slot}.part": part})
    verify_core(case)
    assert set(run(case).reasons.values()) <= {"stop", "length"}


@pytest.mark.parametrize("host", [3, 10, 25])
@pytest.mark.parametrize("depth", [1, 2])
def test_engines_of_a_node_never_see_each_others_look_ahead(host: int, depth: int) -> None:
    """Two engines whose host has little room decide alike, however far their steps reach."""
    case = replace(SCARCE, preset="batchgen", host_pages=host, engines_per_node=2, depth=depth)
    verify_core(case)


@pytest.mark.parametrize("preset", ["batchgen", "flexgen"])
@pytest.mark.parametrize("boundary", [1, 2, 8])
def test_phases_do_not_mix_however_near_the_boundaries_are(preset: str, boundary: int) -> None:
    """With a boundary at every pass the engine had no phases at all: prompts ran beside decodes."""
    rows = tuple(Row(prompt=30, budget=9 + 7 * n % 40, output=9 + 7 * n % 40) for n in range(24))
    case = Case(
        preset=preset,
        rows=rows,
        hbm_pages=60,
        seqs=6,
        boundary=boundary,
        overrides={"phase.part": "prefill-first"},
    )
    verify_core(case)
    steps = [
        action
        for entry in run(case).entries
        for action in entry.actions
        if isinstance(action, Step)
    ]
    assert sum(bool(step.chunks) for step in steps) > 1
    assert not any(step.decode and step.chunks for step in steps)


@pytest.mark.parametrize("phase", ["mixed", "prefill-first"])
def test_an_engine_that_waits_for_a_whole_batch_tells_others_what_it_has_left(phase: str) -> None:
    """An idle engine took rows of one whose steps did not end when rows of its batch did: what it
    took depended on how long those steps were."""
    lengths = [(1, 6, 5), (3, 5, 2), (3, 7, 3), (7, 1, 1), (2, 5, 3)]
    lengths += [(3, 5, 3), (4, 2, 2), (3, 8, 3), (7, 1, 1)]
    case = Case(
        preset="vllm",
        rows=tuple(Row(prompt=one, budget=two, output=three) for one, two, three in lengths),
        engines=2,
        roles=("both", "both"),
        hbm_pages=24,
        page=1,
        boundary=16,
        seqs=64,
        advised=False,
        overrides={
            "phase.part": phase,
            "order.part": "shortest",
            "admission.part": "whole-batch",
            "batching.part": "whole",
            "placement.part": "least-work",
            "predictor.part": "asked-length",
        },
    )
    verify_core(case)

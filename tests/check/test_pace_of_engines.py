"""Slow engines that come and go, in all compositions: rows move, come back, and all end.

Rows once froze for each other for ever: on two slow engines that asked each other for pages.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from batchgen.check import sweep as sweeping
from batchgen.check.case import Case
from batchgen.check.subjects import find
from batchgen.check.sweep import one_case, sweep

PARTS = Path(__file__).with_name("parts") / "pace.py"
NAMES = ("AlwaysSlow", "Flapping", "Rarely")

FOUND = {
    "no pass was timed, and the timer came at once": (
        "AlwaysSlow",
        '{"preset": "vllm", "rows": [{"prompt": 8, "budget": 1, "output": 1, "stages":'
        ' [[10, 6, 1]]}], "engines": 2, "roles": ["prefill", "decode"], "engines_per_node": 2,'
        ' "hbm_pages": 15, "page": 2, "seqs": 64, "depth": 2, "boundary": 16,'
        ' "overrides": {"order.part": "longest"}, "copy_ps": 3000}',
    ),
    "two slow engines asked each other": (
        "AlwaysSlow",
        '{"preset": "orca", "rows": [{"prompt": 8, "budget": 57, "output": 32}, {"prompt": 3,'
        ' "budget": 42, "output": 37}, {"prompt": 3, "budget": 32, "output": 32}], "engines": 3,'
        ' "roles": ["both", "both", "both"], "engines_per_node": 2, "hbm_pages": 312, "page": 1,'
        ' "boundary": 16, "seqs": 1, "depth": 2, "overrides": {"admission.part": "whole-batch"}}',
    ),
    "two slow decoders asked each other": (
        "AlwaysSlow",
        '{"preset": "batchgen", "rows": [{"prompt": 47, "budget": 15, "output": 11}, {"prompt": 24,'
        ' "budget": 5, "output": 3, "stages": [[2, 6, 400000], [5, 1, 0]]}], "engines": 4,'
        ' "roles": ["prefill", "prefill", "decode", "decode"], "engines_per_node": 2,'
        ' "hbm_pages": 20, "boundary": 16, "seqs": 64, "overrides": {"order.part": "longest"},'
        ' "copy_ps": 10}',
    ),
    "who gave its last waiting row to a slow engine did not say that it is hungry": (
        "Flapping",
        '{"preset": "batchgen", "rows": [{"prompt": 1120, "budget": 40, "output": 40}, {"prompt":'
        ' 704, "budget": 53, "output": 26}, {"prompt": 800, "budget": 25, "output": 17}, {"prompt":'
        ' 1312, "budget": 14, "output": 14}, {"prompt": 1856, "budget": 8, "output": 8, "arrival":'
        ' 451762}, {"prompt": 1088, "budget": 41, "output": 12, "arrival": 440485}, {"prompt":'
        ' 1536, "budget": 41, "output": 23, "arrival": 440485}, {"prompt": 480, "budget": 29,'
        ' "output": 29, "arrival": 451762}], "engines": 3, "roles": ["both", "both", "both"],'
        ' "engines_per_node": 2, "hbm_pages": 456, "page": 32, "boundary": 16, "budget": 6400,'
        ' "seqs": 64, "depth": 2, "troubles": [["plan", 100000, 57, 22], ["slow", 700000, 13, 62],'
        ' ["slow", 300000, 11, 13], ["row_failed", 500000, 19, 8]],'
        ' "overrides": {"batching.part": "whole"}}',
    ),
}


def subject_of(name: str) -> Any:
    (subject,) = find(f"{PARTS}:{name}")
    return subject


@pytest.mark.parametrize("what", FOUND)
def test_what_was_found(what: str) -> None:
    name, document = FOUND[what]
    assert one_case(subject_of(name), msgspec.convert(json.loads(document), Case)) is None


@pytest.mark.parametrize("name", NAMES)
def test_all_rows_end_whatever_is_slow(name: str) -> None:
    assert sweep(subject_of(name), 150, 3) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_all_rows_end_whatever_is_slow_at_length(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "SHRINK_S", 60.0)
    assert sweep(subject_of(name), 3000, 4) is None

"""Fault files: what they say, and one clear line for everything wrong in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchgen.errors import DataError, UserError
from batchgen.sim.faults import Troubles, load_faults
from batchgen.units import to_ps


def test_a_file_becomes_faults_in_time_order(tmp_path: Path) -> None:
    path = tmp_path / "faults.jsonl"
    path.write_text(
        '{"at_s": 120.0, "kind": "slow", "gpu": 3, "factor": 2.0, "for_s": 600}\n'
        "\n"
        '{"at_s": 60, "kind": "lost", "gpu": 1}\n'
        '{"at_s": 50, "kind": "notice", "gpu": 1, "deadline_s": 60}\n'
        '{"at_s": 900, "kind": "back", "gpu": 1}\n'
    )
    faults = load_faults(str(path), 4)
    assert [(fault.at_ps, fault.kind, fault.gpu) for fault in faults] == [
        (to_ps(50), "notice", 1),
        (to_ps(60), "lost", 1),
        (to_ps(120), "slow", 3),
        (to_ps(720), "slow", 3),
        (to_ps(900), "back", 1),
    ]
    assert faults[0].deadline_ps == to_ps(110)
    assert [faults[2].speed, faults[3].speed] == [2000, 1000]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "faults.jsonl:2"),
        ('{"at_s": 1, "kind": "melted", "gpu": 0}', "field 'kind'.*melted"),
        ('{"at_s": 1, "kind": "lost", "gpu": 4}', "field 'gpu'.*use 0 to 3"),
        ('{"at_s": 1, "kind": "lost", "gpu": -1}', "field 'gpu'"),
        ('{"at_s": -1, "kind": "lost", "gpu": 0}', "field 'at_s'"),
        ('{"at_s": 1, "kind": "slow", "gpu": 0}', "field 'factor'"),
        ('{"at_s": 1, "kind": "slow", "gpu": 0, "factor": -2}', "field 'factor'"),
        ('{"at_s": 1, "kind": "slow", "gpu": 0, "factor": 1e-9}', "field 'factor'"),
        ('{"at_s": 1e30, "kind": "lost", "gpu": 0}', "field 'at_s'"),
        ('{"at_s": 1, "kind": "slow", "gpu": 0, "factor": 1e300}', "field 'factor'"),
        ('{"at_s": 1, "kind": "lost", "gpu": 0, "colour": 1}', "colour"),
        ('{"kind": "lost", "gpu": 0}', "at_s"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "faults.jsonl"
    path.write_text(f'{{"at_s": 1, "kind": "lost", "gpu": 0}}\n{line}\n')
    with pytest.raises(DataError, match=message):
        load_faults(str(path), 4)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_faults(str(tmp_path / "none.jsonl"), 4)


def test_troubles_of_a_gpu_compose(tmp_path: Path) -> None:
    """Two that overlap: the worst counts, and the end of one does not heal the other."""
    path = tmp_path / "faults.jsonl"
    path.write_text(
        '{"at_s": 10, "kind": "slow", "gpu": 0, "factor": 3, "for_s": 40}\n'
        '{"at_s": 20, "kind": "slow", "gpu": 0, "factor": 2, "for_s": 50}\n'
        '{"at_s": 30, "kind": "slow", "gpu": 1, "factor": 5, "for_s": 1}\n'
        '{"at_s": 80, "kind": "slow", "gpu": 1, "factor": 0.5}\n'
    )
    troubles, seen = Troubles(2), []
    for fault in load_faults(str(path), 2):
        troubles.change(fault.gpu, fault)
        seen.append((fault.at_ps // to_ps(1), troubles.speed))
    assert seen == [
        (10, 3000),
        (30, 5000),
        (31, 3000),
        (50, 2000),
        (70, 1000),
        (80, 1000),  # one fast GPU waits for the other
    ]

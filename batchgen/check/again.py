"""The same cases in fresh processes with other hash seeds: logs must be the same, byte for byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from batchgen.check.case import Case
from batchgen.check.examine import digest, run_once
from batchgen.check.limit import LIMIT_S
from batchgen.check.loads import simpler
from batchgen.check.subjects import Subject, find
from batchgen.check.sweep import REMEDIES, Finding, brief
from batchgen.check.watch import MOST_TOLD
from batchgen.oneline import name_of, one_line

HASH_SEEDS = ("12345", "54321")
MOST_CASES = 40
ROUNDS = 12
"""Processes that are spent on making a case small."""
START = (
    "import json, sys; job = json.load(sys.stdin); sys.path[:] = job['path']; "
    "from batchgen.check.again import answer; out, sys.stdout = sys.stdout, sys.stderr; "
    "print(json.dumps(answer(job)), file=out)"
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What `batchgen.check.subjects.find` is given, so that another process finds the same."""

    text: str
    settings: Sequence[tuple[str, str]] = ()
    limit_s: float = LIMIT_S


class _DoesNotLoad(Exception):
    """The other process did not come so far; the text is its last line."""


def answer(job: dict[str, Any]) -> dict[str, list[str]]:
    """The other process's half: label of a subject -> digests of its cases."""
    subjects = find(job["target"], [(k, text) for k, text in job["settings"]], job["limit_s"])
    cases = {
        label: [msgspec.convert(one, Case) for one in more] for label, more in job["cases"].items()
    }
    return {one.label: digests(one, cases[one.label]) for one in subjects if one.label in cases}


def digests(subject: Subject, cases: Sequence[Case]) -> list[str]:
    """One digest per case; a run that a part breaks has the name of its error."""
    found = []
    for case in cases:
        try:
            found.append(digest(run_once(subject, case)))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            found.append(name_of(error))
    return found


def _elsewhere(
    target: Target, cases: Mapping[str, Sequence[Case]], hash_seed: str
) -> dict[str, list[str]]:
    """What `answer` says in a process with this hash seed."""
    job = {
        "path": sys.path,
        "target": target.text,
        "limit_s": target.limit_s,
        "settings": [list(pair) for pair in target.settings],
        "cases": {label: [brief(case) for case in more] for label, more in cases.items()},
    }
    done = subprocess.run(
        [sys.executable, "-c", START],
        input=json.dumps(job),
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        errors="backslashreplace",
        check=False,
    )
    try:
        if done.returncode:
            raise ValueError
        answers: dict[str, list[str]] = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise _DoesNotLoad(one_line(last, MOST_TOLD)) from None
    return {label: answers.get(label) or ["not there"] * len(more) for label, more in cases.items()}


def disagreements(
    subjects: Sequence[Subject], target: Target, cases: Mapping[str, Sequence[Case]]
) -> dict[str, Finding]:
    """Label -> finding of the subjects whose logs of their cases depend on the process."""
    cases = {label: list(more)[:MOST_CASES] for label, more in cases.items()}
    mine = {one.label: digests(one, cases[one.label]) for one in subjects}
    found: dict[str, Finding] = {}
    for hash_seed in HASH_SEEDS:
        where = f"in a process with hash seed {hash_seed}"
        try:
            theirs = _elsewhere(target, cases, hash_seed)
        except _DoesNotLoad as error:
            text = f"{where} it does not load: {error}"
            return {one.label: _finding(one, text, None, 0) for one in subjects}
        for subject in subjects:
            number = _first(mine[subject.label], theirs[subject.label])
            if number and subject.label not in found:
                case = _smaller(subject, target, cases[subject.label][number - 1], hash_seed)
                text = f"{where} the same load has another log"
                found[subject.label] = _finding(subject, text, case, number)
    return found


def _first(mine: Sequence[str], theirs: Sequence[str]) -> int:
    """The first that differs, from 1; 0 when none does."""
    pairs = enumerate(zip(mine, theirs, strict=True), start=1)
    return next((number for number, (one, other) in pairs if one != other), 0)


def _smaller(subject: Subject, target: Target, case: Case, hash_seed: str) -> Case:
    """A simpler case that shows it too: all neighbours go to one process, round by round."""
    for _ in range(ROUNDS):
        around = simpler(case)
        try:
            theirs = _elsewhere(target, {subject.label: around}, hash_seed)[subject.label]
        except _DoesNotLoad:
            break
        number = _first(digests(subject, around), theirs)
        if not number:
            break
        case = around[number - 1]
    return case


def _finding(subject: Subject, text: str, case: Case | None, number: int) -> Finding:
    slots = list(subject.parts)
    return Finding(
        kind="determinism",
        slot=slots[0] if len(slots) == 1 else "",
        text=text,
        remedy=REMEDIES["determinism"],
        case=case,
        number=number,
    )

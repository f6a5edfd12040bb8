"""The same cases in fresh processes with other hash seeds: logs must be the same, byte for byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from batchgen.check.case import Case
from batchgen.check.examine import digest, run_once
from batchgen.check.subjects import Subject, find
from batchgen.check.sweep import REMEDIES, Finding, cases

HASH_SEEDS = ("12345", "54321")
MOST_CASES = 40
START = (
    "import json, sys; job = json.load(sys.stdin); sys.path[:] = job['path']; "
    "from batchgen.check.again import answer; print(json.dumps(answer(job)))"
)


def answer(job: dict[str, Any]) -> dict[str, list[str]]:
    """The child's half: label of a subject -> digests of its first cases."""
    settings = [(key, text) for key, text in job["settings"]]
    subjects = [one for one in find(job["target"], settings) if one.label in job["labels"]]
    return {one.label: digests(one, job["count"], job["seed"]) for one in subjects}


def digests(subject: Subject, count: int, seed: int) -> list[str]:
    """One digest per case, which no exception of a part may spoil."""
    found = []
    for case in cases(subject, count, seed):
        try:
            found.append(digest(run_once(subject, case)))
        except Exception as error:
            found.append(type(error).__name__)
    return found


def disagreements(
    subjects: Sequence[Subject],
    target: str,
    settings: Sequence[tuple[str, str]],
    count: int,
    seed: int,
) -> dict[str, Finding]:
    """Label -> finding of the subjects whose logs depend on the process."""
    count = min(count, MOST_CASES)
    job = {
        "path": sys.path,
        "target": target,
        "settings": [list(pair) for pair in settings],
        "labels": [one.label for one in subjects],
        "count": count,
        "seed": seed,
    }
    mine = {one.label: digests(one, count, seed) for one in subjects}
    found: dict[str, Finding] = {}
    for hash_seed in HASH_SEEDS:
        done = subprocess.run(
            [sys.executable, "-c", START],
            input=json.dumps(job),
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            line = (done.stderr.strip().splitlines() or ["no output"])[-1]
            text = f"in a process with hash seed {hash_seed} it does not load: {line}"
            for subject in subjects:
                found.setdefault(subject.label, _finding(subject, text, None, 0))
            return found
        theirs = json.loads(done.stdout)
        for subject in subjects:
            pairs = zip(mine[subject.label], theirs[subject.label], strict=True)
            number = next((n for n, (a, b) in enumerate(pairs, start=1) if a != b), 0)
            if number:
                case = list(cases(subject, number, seed))[-1]
                text = f"in a process with hash seed {hash_seed} the same load has another log"
                found.setdefault(subject.label, _finding(subject, text, case, number))
    return found


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

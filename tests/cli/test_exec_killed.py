"""A job of 500 rows, killed and interrupted at random moments: each row once, the same bytes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from exec_files import write

Run = Callable[..., dict[str, Any]]
NUM_ROWS = 500
ENVIRONMENT = {"SOURCE_DATE_EPOCH": "1700000000", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs the job with more arguments and signals: {code, s, err}."""
    folder = tmp_path_factory.mktemp("killed")
    rng = random.Random(3)
    rows = write(
        folder / "in.jsonl",
        [
            {
                "custom_id": f"r{number}",
                "prompt": "abc " * rng.randrange(1, 9),
                "max_tokens": rng.randrange(1, 60),
                "ignore_eos": True,
                "temperature": rng.choice([0, 0.9]),
            }
            if number % 50
            else "nonsense"
            for number in range(NUM_ROWS)
        ],
    )
    script = str(Path(__file__).parent / "forked_exec.py")
    with subprocess.Popen(
        [sys.executable, script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | ENVIRONMENT,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"

        def once(output: Path, *extra: str, kill: Any = ()) -> dict[str, Any]:
            assert server.stdin is not None
            assert server.stdout is not None
            argv = ["exec", "--model", str(model), "-i", str(rows), "-o", str(output)]
            argv += ["--exact", "--threads", "1", "--progress", "off", *extra]
            journal = output.with_name(f"{output.name}.job") / "journal.sqlite"
            task = {"argv": argv, "err": str(folder / "err"), "kill": kill, "journal": str(journal)}
            server.stdin.write(json.dumps(task) + "\n")
            server.stdin.flush()
            found: dict[str, Any] = json.loads(server.stdout.readline())
            return found | {"err": (folder / "err").read_text()}

        yield once
        server.stdin.close()


@pytest.fixture(scope="module")
def whole(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, float]:
    """The undisturbed output, and how long it took."""
    output = tmp_path_factory.mktemp("whole") / "out.jsonl"
    found = run(output)
    assert found["code"] == 1, found["err"]
    lines = output.read_bytes().splitlines()
    assert len(lines) == NUM_ROWS
    assert sum(json.loads(line)["error"] is None for line in lines) == NUM_ROWS - 10
    return output.read_bytes(), found["s"]


def killed(run: Run, whole: tuple[bytes, float], folder: Path, seed: int, kills: int) -> None:
    """Killed so many times, in jobs one after the other, until the last one is done."""
    want, whole_s = whole
    rng = random.Random(seed)
    number = 0
    output = folder / "0.jsonl"
    while True:
        kill = [[rng.uniform(0.0, 0.7 * whole_s), 0, "SIGKILL"]] if kills else []
        found = run(output, "--resume", "if-possible", kill=kill)
        assert found["code"] in ((-9, 1) if kill else (1,)), found["err"]
        if found["code"] == -9:
            kills -= 1
        if output.exists() and not output.with_name(f"{output.name}.job").exists():
            assert output.read_bytes() == want
            if not kills:
                return
            number += 1
            output = folder / f"{number}.jsonl"


def test_killed_at_random_moments(run: Run, whole: tuple[bytes, float], tmp_path: Path) -> None:
    killed(run, whole, tmp_path, seed=1, kills=10)


@pytest.mark.slow
def test_killed_many_times(run: Run, whole: tuple[bytes, float], tmp_path: Path) -> None:
    killed(run, whole, tmp_path, seed=random.randrange(1 << 30), kills=200)


SLOW = ("--set", "plan.max_num_seqs=4")  # so that there is something left when the signal comes


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_stops_in_good_order(
    name: str, run: Run, whole: tuple[bytes, float], tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    found = run(output, *SLOW, kill=[[0, 50, name]])
    assert found["code"] == 3, found["err"]
    assert "Traceback" not in found["err"]
    assert "stopping after this pass; again stops at once" in found["err"]
    assert "stopped: " in found["err"]
    assert found["err"].strip().endswith("go on by the same command with --resume always")
    assert not output.exists()
    last = run(output, "--resume", "if-possible")
    assert last["code"] == 1, last["err"]
    assert output.read_bytes() == whole[0]


def test_the_second_signal_ends_it_at_once(
    run: Run, whole: tuple[bytes, float], tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    found = run(output, *SLOW, kill=[[0, 50, "SIGINT"], [0, 0, "SIGTERM"]])
    assert found["code"] == 3, found["err"]
    assert "Traceback" not in found["err"]
    last = run(output, "--resume", "if-possible")
    assert last["code"] == 1, last["err"]
    assert output.read_bytes() == whole[0]

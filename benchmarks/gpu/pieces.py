"""What `check.py` does, piece by piece: a command, the time it may take, and where its JSON lies.

A piece is what is done or not: short enough to begin anew. Starts nothing and needs no GPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "benchmarks" / "gpu"
SITE = ROOT / ".gpu-site"  # what `make gpu-wheels` fills
SITE_PYTHON = (3, 12)
CELLS = HERE / "cells.py"
STAGES = ("tests", "ceilings", "kernels", "cells", "peer", "profile")
GROUPS = ("attention", "experts", "small")  # of the kernel table
CELL_S = 60.0  # that a cell of throughput may measure; loading comes on top
PEER_S = 120.0  # that each of two systems may take for the same requests
LOADING_S = 60.0
# A busy GPU shows the tests' mistakes too, and compiling kernels needs processors, not the GPU.
TEST_WORKERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """`command` ends by itself within `limit_s` or is killed; at most `least_s` left, and it is not
    begun. `gives`: the JSON file that it writes, if any."""

    stage: str
    name: str
    command: tuple[str, ...]
    limit_s: float
    least_s: float = 10.0
    gives: str | None = None

    @property
    def label(self) -> str:
        return f"{self.stage}/{self.name}"


def pieces(folder: Path, cell_s: float = CELL_S, peer_s: float = PEER_S) -> list[Piece]:
    """All of them, in the order in which they run. `folder`: where their JSON lies."""
    ceilings = str(folder / "ceilings.json")
    found = [*_tests()]
    found.append(
        Piece(
            stage="ceilings",
            name="all",
            command=_script("ceilings.py", "--out", ceilings, "--folder", str(folder)),
            limit_s=90.0,
            least_s=25.0,
            gives="ceilings.json",
        )
    )
    for group in GROUPS:
        gives = f"kernels-{group}.json"
        arguments = ("--only", group, "--ceilings", ceilings, "--out", str(folder / gives))
        found.append(
            Piece(
                stage="kernels",
                name=group,
                command=_script("kernels.py", *arguments),
                limit_s=180.0,
                least_s=20.0,
                gives=gives,
            )
        )
    for name in cell_names():
        gives = f"cell-{name}.json"
        arguments = ("--cell", name, "--seconds", str(cell_s), "--ceilings", ceilings)
        found.append(
            Piece(
                stage="cells",
                name=name,
                command=_script("cells.py", *arguments, "--out", str(folder / gives)),
                limit_s=cell_s + LOADING_S,
                least_s=cell_s / 2,
                gives=gives,
            )
        )
    return [*found, *_whole(folder, peer_s)]


def _whole(folder: Path, peer_s: float) -> list[Piece]:
    """Systems as a user has them: a peer beside this one, and the profile of the GPU."""
    gives = "peer-transformers.json"
    out = ("--seconds", str(peer_s), "--out", str(folder / gives))
    profile = ("profile", "--device", "cuda", "--force", "-o", str(folder / "profile.json"))
    return [
        Piece(
            stage="peer",
            name="transformers",
            command=_script("peer.py", *out),
            limit_s=2 * (peer_s + LOADING_S),
            least_s=peer_s,
            gives=gives,
        ),
        Piece(
            stage="profile",
            name="small",
            command=(sys.executable, "-P", "-m", "batchgen", *profile),
            limit_s=300.0,
            least_s=60.0,
        ),
    ]


def _tests() -> list[Piece]:
    # Warnings of other versions of the packages are no faults of this machine.
    pytest = (sys.executable, "-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider")
    kernels = ("tests/kernels", "-m", "not slow")
    others = ("tests", "--ignore=tests/kernels", "-m", "gpu", "--continue-on-collection-errors")
    return [
        Piece(
            stage="tests",
            name="kernels",
            command=(*pytest, "-n", str(TEST_WORKERS), *kernels),
            limit_s=300.0,
            least_s=30.0,
        ),
        Piece(
            stage="tests",
            name="gpu",
            command=(*pytest, "-n", str(TEST_WORKERS), *others),
            limit_s=240.0,
        ),
    ]


def _script(name: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, str(HERE / name), *arguments)


def cell_names() -> list[str]:
    """Cells of throughput that `cells.py --list` names, one a line; none without that file."""
    if not CELLS.exists():
        return []
    listed = subprocess.run(
        _script(CELLS.name, "--list"), capture_output=True, text=True, check=False, env=paths({})
    )
    return listed.stdout.split()


def chosen(every: Sequence[Piece], only: str | None) -> list[Piece]:
    """Those of `--only`: stages or labels, with commas. ValueError names what is unknown."""
    if only is None:
        return list(every)
    wanted = [text.strip() for text in only.split(",") if text.strip()]
    known = {*STAGES, *(piece.label for piece in every)}
    for text in wanted:
        if text not in known:
            raise ValueError(f"--only '{text}' is none of {', '.join(sorted(known))}")
    return [piece for piece in every if piece.stage in wanted or piece.label in wanted]


def paths(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with the checkout and the carried wheels on Python's path."""
    before = [environment["PYTHONPATH"]] if environment.get("PYTHONPATH") else []
    mine = [str(ROOT), str(ROOT / "benchmarks")]
    if sys.version_info[:2] == SITE_PYTHON:  # its compiled modules are for no other
        mine.append(str(SITE))
    # Kernels are to run, not to be interpreted, and compiled ones are found again.
    kept = {name: value for name, value in environment.items() if name != "TRITON_INTERPRET"}
    return {**kept, "PYTHONPATH": ":".join([*mine, *before])}


def read_json(path: Path) -> dict[str, object] | None:
    """A piece's JSON; None where it wrote none, or half of it."""
    try:
        found: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found

"""What a line of the kernel table is, and how long it takes. Knows no kernel."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from batchgen.exec.kernels.launching import Work
from batchgen.exec.kernels.timing import Call, median_s, num_copies
from batchgen.exec.kernels.tuning import Tune

COPY, MATMUL = "device_copy", "matmul_bf16"  # the ceilings that targets are shares of


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A call on buffers of its own, what it has to do at least, and torch's way, if there is one.
    `graph`: whether calls may be captured."""

    call: Call
    work: Work
    other: Call | None = None
    graph: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A kernel at a shape. `ceiling`: what its target is a share of; `other` names torch's way."""

    kernel: str
    shape: str
    make: Callable[[torch.device, int], Made]
    ceiling: str = COPY
    target: float | None = None
    other: str = ""


def tune_of(cell: Cell, changes: Sequence[Mapping[str, int]], kernel: str = "") -> Tune:
    """The kernel at the shape of a line, with what `batchgen bench tune` may change. `kernel`: the
    one that is changed, where a line launches several."""

    def make(device: torch.device, seed: int) -> tuple[Call, Work]:
        made = cell.make(device, seed)
        return made.call, made.work

    return Tune(kernel=kernel or cell.kernel, shape=cell.shape, changes=changes, make=make)


def measure(cell: Cell, device: torch.device, ceilings: Mapping[str, float]) -> dict[str, Any]:
    """The line as a JSON object; one that fails has an `error` and no times."""
    line: dict[str, Any] = {
        "kernel": cell.kernel,
        "shape": cell.shape,
        "ceiling": cell.ceiling,
        "target": cell.target,
        "other": cell.other,
    }
    try:
        made = [cell.make(device, 0)]
        work = made[0].work
        made += [cell.make(device, seed) for seed in range(1, num_copies(work.bytes, device))]
        seconds = median_s([one.call for one in made], graph=made[0].graph)
        line |= dataclasses.asdict(work) | {"seconds": seconds}
        line |= shares(work, seconds, cell.ceiling, ceilings)
        others = [one.other for one in made if one.other is not None]
        if others:
            try:
                # Not captured: what torch does may wait or allocate. Its shapes are large.
                line["other_seconds"] = median_s(others, repeats=5, graph=False)
            except Exception as error:
                line["other_error"] = said(error)
    except Exception as error:  # of any kind: a kernel that fails must not cost the other lines
        line["error"] = said(error)
    return line


def shares(
    work: Work, seconds: float, ceiling: str, ceilings: Mapping[str, float]
) -> dict[str, float]:
    """`share` of the named ceiling, and of the floor: what both ceilings allow together."""
    amount = {COPY: work.bytes, MATMUL: work.flops}
    floors = {name: amount[name] / ceilings[name] for name in amount}
    return {"share": floors[ceiling] / seconds, "floor_share": max(floors.values()) / seconds}


def said(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]

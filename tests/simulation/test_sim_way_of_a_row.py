"""How many files the way of a row enters until its first token: what a reader must open."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

import pytest

import batchgen
from batchgen.policy.presets import PRESETS
from batchgen.sim.setup import set_up
from batchgen.simjob import SimJob
from batchgen.trace.generate import lognormal
from batchgen.units import to_ps

PACKAGE = Path(batchgen.__file__).parent
SIM = (PACKAGE / "sim").resolve()


def files_entered(preset: str) -> tuple[set[str], set[str]]:
    """(files of the core, files of the simulator and the cost model) that the second row enters;
    the first has warmed tables and caches."""
    job = SimJob(
        trace="", model="llama-3.1-8b", gpu="h100", gpus=2, policy=preset, arrivals="trace"
    )
    trace = lognormal(700, 1e-9, 20, 1e-9, 2, 0)
    trace.arrival_ps[1] = to_ps(10)
    simulation = set_up(job, trace).simulation
    core: set[str] = set()
    around: set[str] = set()

    def watch(frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        now: int = simulation.env.now  # type: ignore[assignment]
        if event != "call" or now < to_ps(10) or simulation.recorder.v_first[1] >= 0:
            return
        if SIM in path.resolve().parents:
            around.add(f"sim/{path.name}")
        elif PACKAGE in path.parents:
            name = str(path.relative_to(PACKAGE))
            (around if name.startswith("cost/") else core).add(name)

    sys.setprofile(watch)
    try:
        simulation.run()
    finally:
        sys.setprofile(None)
    return core, around


PLANS = {
    f"policy/{name}.py"
    for name in ("arrangement", "density", "planned", "prefix_groups", "prefix_tree", "scanner")
}


@pytest.mark.skipif(batchgen.is_compiled(), reason="compiled functions have no frames to watch")
@pytest.mark.parametrize("preset", PRESETS)
def test_a_row_enters_few_files_before_its_first_token(preset: str) -> None:
    core, around = files_entered(preset)
    assert {"runtime/core.py", "runtime/engine/decide.py", "runtime/engine/rank.py"} <= core
    core -= PLANS  # once for all rows, before any of them moves
    # An idea and a file each: rows that are dealt from a deck, prompts that are paced, KV that is
    # written to the host as rows decode, and what a pass holds that is timed.
    ideas = {"runtime/engine/deck.py", "policy/batching.py"}
    ideas |= {"runtime/engine/streams.py", "runtime/cluster/level.py"}
    more = len(core & ideas)
    assert len(core) <= 16 + more, sorted(core)
    overlaps = "attention_theta" in PRESETS[preset].costs  # passes are no sums: rows' detail
    advised = PRESETS[preset].parts["tail"] == "partition"  # it asks what passes should take
    most = 7 + 3 * overlaps + 2 * advised  # setup.py gives arrivals one after the other
    assert len(around) <= most, sorted(around)
    print(preset, len(core), sorted(core), len(around), sorted(around))

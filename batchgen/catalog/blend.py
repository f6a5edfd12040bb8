"""BlendServe's setting: four mixes, the systems compared on them, and the bars. It runs nothing.

Source: BlendServe (arXiv 2411.16102), sections 3.3, 6.2 and 6.3: Llama-3-8B on one A100.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from batchgen.policy.presets import PRESETS
from batchgen.simjob import SimJob
from batchgen.trace.mixes import BLOCK_TOKENS, LEAST_VIDEO_TOKENS, Rates

MIXES = ((1.4, 0.35), (0.9, 0.35), (1.4, 0.05), (0.9, 0.05))
"""(density, sharing)."""
DEPTH_FIRST, BLEND, SERIAL = "depth-first", "blendserve", ("vllm", "sglang")
VIDEOS = ("predictor.least_tokens", str(LEAST_VIDEO_TOKENS))
SYSTEMS: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "vllm": ("vllm", ()),
    "sglang": ("sglang", ()),
    DEPTH_FIRST: ("blendserve", (("order.part", "depth-first"), VIDEOS)),
    BLEND: ("blendserve", (VIDEOS,)),
}
"""label -> (preset, overrides)."""
COMMON = (
    ("plan.page_tokens", str(BLOCK_TOKENS)),
    ("cost.step_s", "0"),  # CPU time was left out of all measurements (section 6.2)
    ("cost.prefill_step_s", "0"),
)
THETA = float(PRESETS[BLEND].costs["attention_theta"])
OVERLAPPED: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    f"{label}, overlapped": (label, (("cost.attention_theta", str(THETA)),)) for label in SERIAL
}
"""The systems without overlap, as if their kernels overlapped as blendserve's do: what is left is
the order. No published figure is about these."""
OF_OPTIMUM, OF_OPTIMUM_BAR = 0.717, 0.10
SPEEDUP = (1.2, 1.58)
SHARING_BAR = 0.01
READ_ROWS, READ_TOKENS = 256, 10**6


def job_of(label: str, trace: str) -> SimJob:
    preset, overrides = (SYSTEMS | OVERLAPPED)[label]
    return SimJob(
        trace=trace,
        model="llama-3-8b",
        gpu="a100",
        gpus=1,
        layout="tp1",
        policy=preset,
        overrides=(*COMMON, *overrides),
    )


def rates() -> Rates:
    """What the machine of the jobs takes without overlap, at full passes."""
    from batchgen.machine import resolve

    machine = resolve(job_of("vllm", "none"), 0.0)
    cost, budget = machine.planner.home, machine.plan.token_budget
    pair = cost.pass_one_ps(0, 0, 1, 10**9) - cost.pass_one_ps(0, 0, 1, 0)
    read = cost.pass_one_ps(READ_ROWS, READ_TOKENS) - cost.pass_one_ps(READ_ROWS, 0)
    return Rates(
        token_s=cost.pass_one_ps(0, 0, budget) / budget / 1e12,
        pair_s=pair / 1e9 / 1e12,
        read_s=read / READ_TOKENS / 1e12,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Systems on one mix. optimum_s: T_o, the longer of compute and memory time; practical_s: with
    what overlap leaves of the shorter one (the paper's practical optimum, its section 6.2).
    seconds, sharing and failed rows by label; `possible` is the sharing that every block computed
    once gives."""

    density: float
    sharing: float
    optimum_s: float
    practical_s: float
    possible: float
    seconds: dict[str, float]
    shared: dict[str, float]
    failed: dict[str, int]

    @property
    def of_optimum(self) -> float:
        return self.optimum_s / self.seconds[DEPTH_FIRST]

    @property
    def of_practical(self) -> float:
        return self.practical_s / self.seconds[DEPTH_FIRST]

    @property
    def speedup(self) -> float:
        """Over the better of the systems without overlap."""
        return min(self.seconds[label] for label in SERIAL) / self.seconds[BLEND]

    @property
    def order_speedup(self) -> float | None:
        """Over the better of these with the same overlap; None where they were not simulated."""
        times = [self.seconds[label] for label in OVERLAPPED if label in self.seconds]
        return min(times) / self.seconds[BLEND] if times else None

    @property
    def lost_sharing(self) -> float:
        return self.shared[DEPTH_FIRST] - self.shared[BLEND]


def missed(outcomes: Sequence[Outcome]) -> list[str]:
    """What is beyond its bar, in words."""
    lines = []
    for one in outcomes:
        name = f"mix {one.density:g}, {100 * one.sharing:g} %"
        if abs(one.of_optimum / OF_OPTIMUM - 1) > OF_OPTIMUM_BAR:
            lines.append(
                f"{name}: depth first reaches {one.of_optimum:.3f} of the optimum, published "
                f"{OF_OPTIMUM} within {100 * OF_OPTIMUM_BAR:.0f} %"
            )
        if not SPEEDUP[0] <= one.speedup <= SPEEDUP[1]:
            lines.append(
                f"{name}: blendserve {one.speedup:.2f} x, bar {SPEEDUP[0]} to {SPEEDUP[1]}"
            )
        if one.lost_sharing > SHARING_BAR:
            lines.append(
                f"{name}: blendserve shares {100 * one.lost_sharing:.1f} points less than depth "
                f"first, bar {100 * SHARING_BAR:.0f}"
            )
        lines += [
            f"{name}: {count} rows of {label} failed"
            for label, count in one.failed.items()
            if count
        ]
    return lines

"""Where the times of a prediction come from: a profile, a GPU of the catalog, or what is measured
now. Each says so, and how far off it may be. It simulates nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from batchgen.errors import UserError
from batchgen.report.text import duration

if TYPE_CHECKING:
    from batchgen.cli.forecasting import Planned
    from batchgen.cost.api import CostModel
    from batchgen.exec.look import Look
    from batchgen.hardware import GpuSpec
    from batchgen.model import ModelSpec

SPEC_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
UNKNOWN = "how far off it is for this job is not known"


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSource:
    """`cost`: of the job's model; `origin` and `error` in words. `spread`: the least and the most
    of a steady job in its median time, None if nobody looked. `notes`: what is not as it was."""

    cost: CostModel
    origin: str
    error: str
    spread: tuple[float, float] | None = None
    notes: list[str] = field(default_factory=list)


def of_profile(planned: Planned, profile: Path) -> TimeSource:
    """Raises UserError where the profile does not fit the model."""
    from batchgen.cli.forecasting import differences
    from batchgen.cost.profile import load_profile

    spread = load_profile(profile).spread
    return TimeSource(
        cost=_profiled(planned, profile),
        origin=f"the profile {profile}",
        error="the range is how far its machine strayed; `batchgen validate prediction` tells the "
        "error",
        spread=None if spread is None else (spread.least, spread.most),
        notes=differences(planned, profile),
    )


def of_catalog(planned: Planned, name: str) -> TimeSource:
    """A GPU by its published numbers. Raises UserError for one that the catalog does not have, and
    for a model that the roofline does not know."""
    from batchgen.hardware import load_gpu

    gpu = load_gpu(name)
    return TimeSource(
        cost=_roofline(planned, gpu),
        origin=f"the published numbers of {gpu.name} (roofline)",
        error=f"{UNKNOWN} (docs/gpu.md has what was measured on an H200)",
    )


def of_this_machine(planned: Planned, say: Callable[[str], None]) -> TimeSource | None:
    """A short look, what a look of today has kept, or what a product and a copy take; of a GPU its
    numbers in the catalog, None if it is not there. Raises UserError as `of_catalog`."""
    if planned.job.device != "cpu":
        name = _catalog_name()
        return None if name is None else of_catalog(planned, name)
    look = _look(planned, say)
    return _of_ceilings(planned) if look is None else _of_look(planned, look)


def _look(planned: Planned, say: Callable[[str], None]) -> Look | None:
    """None for models that are not profiled. Raises UserError where the job is too small."""
    from batchgen.exec.look import look_at_machine

    assert planned.plan is not None
    try:
        table = planned.fresh_table()
        return look_at_machine(
            planned.job,
            planned.folder,
            planned.plan.page_tokens,
            say,
            tokens=int(table.prompt.sum(dtype=int) + table.budget.sum(dtype=int)),
            longest=int(table.budget.max()),
        )
    except UserError as error:
        if error.code == "small":
            raise
        # latent attention is not profiled
        say(f"note: {error.message}")
        return None


def _of_look(planned: Planned, look: Look) -> TimeSource:
    from batchgen.cost.profile import ProfiledCost, parse_profile
    from batchgen.layout import Layout
    from batchgen.model import load_model

    parsed = parse_profile(look.profile)
    when = f"{duration(look.age_s)} ago, kept" if look.age_s else f"in {duration(look.took_s)}"
    return TimeSource(
        cost=ProfiledCost(load_model(planned.folder), parsed, Layout()),
        origin=f"a short look at this machine with this model ({when})",
        error=f"{UNKNOWN}: its own passes were off by {look.pass_error:.0%} in the median; "
        "`batchgen profile` measures longer",
        spread=None if parsed.spread is None else (parsed.spread.least, parsed.spread.most),
    )


def _of_ceilings(planned: Planned) -> TimeSource:
    """What a product and a copy take here, in the roofline."""
    from batchgen.exec.look import ceilings_of
    from batchgen.hardware import load_gpu

    most = ceilings_of(planned.job)
    machine = replace(
        load_gpu("h100"),  # for the fields that a job on one CPU does not read: links, memory
        name="this machine",
        peak_flops={"bf16": most.matmul_flops},
        hbm_bytes_per_s=most.memory_bytes_s,
    )
    return TimeSource(
        cost=_roofline(planned, machine),
        origin="a product and a copy on this machine (roofline)",
        error=f"{UNKNOWN}, and it may be far; `batchgen profile` measures the model",
    )


def _profiled(planned: Planned, profile: Path) -> CostModel:
    from batchgen.cost.build import build_cost
    from batchgen.hardware import load_gpu
    from batchgen.layout import Layout
    from batchgen.model import load_model

    # The GPU only fills a slot of the signature: with a profile no number of it is used.
    return build_cost(load_model(planned.folder), load_gpu("h100"), Layout(), profile=profile)


def _roofline(planned: Planned, gpu: GpuSpec) -> CostModel:
    from batchgen.cost.build import build_cost
    from batchgen.layout import Layout

    return build_cost(_as_run(planned), gpu, Layout())


def _as_run(planned: Planned) -> ModelSpec:
    """The model with the bytes that the executor gives it."""
    from batchgen.model import load_model

    dtype = SPEC_DTYPES[planned.job.dtype]
    return replace(
        load_model(planned.folder),
        weight_dtype=dtype,
        expert_dtype=dtype,
        embedding_dtype=dtype,
        kv_dtype=dtype,
    )


def _catalog_name() -> str | None:
    """The longest name of the catalog that the GPU's own name holds."""
    from batchgen.exec.machine_facts import gpu_facts
    from batchgen.hardware import gpu_names

    own = "".join(one for one in str(gpu_facts()["name"]).lower() if one.isalnum())
    found = [name for name in gpu_names() if name.replace("-", "") in own]
    return max(found, key=len, default=None)

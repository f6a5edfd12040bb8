"""Makes the plan of a run from a model, a machine, a layout and a preset. It times nothing.

Sizes that a preset leaves open take the defaults that engines use on such a machine; every one can
be set with --set plan.NAME=value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from batchgen.cost.capacity import Capacity, capacity
from batchgen.cost.residency import ATTENTION, KV, WEIGHTS, Residency
from batchgen.errors import UserError
from batchgen.hardware import GpuSpec
from batchgen.layout import Layout
from batchgen.model import ModelSpec
from batchgen.plan import MOST_PAGE_TOKENS, MOST_SIZE, EngineSpec, Plan
from batchgen.policy.options import one_of, option, read_option
from batchgen.policy.presets import Preset

# vLLM V1 for offline use: GPUs of at least 70 GiB other than A100 take large passes, since a larger
# budget made the A100 slower (vLLM PR 17885).
LARGE_GPU_BYTES = 70 * 2**30
LARGE = {"token_budget": 16384, "max_num_seqs": 1024}
SMALL = {"token_budget": 8192, "max_num_seqs": 256}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What --set plan.NAME=value may change; None takes the preset's or the machine's default."""

    token_budget: int | None = option(None, least=1, most=MOST_SIZE)
    engine_token_budget: int | None = option(None, least=1, most=MOST_SIZE)
    max_num_seqs: int | None = option(None, least=1, most=MOST_SIZE)
    page_tokens: int | None = option(None, least=1, most=MOST_PAGE_TOKENS)
    boundary: int | None = option(None, least=1, most=MOST_SIZE)
    memory_fraction: float = option(0.9, least=0.01, most=1)
    host: bool = True
    b_attn: int = option(0, least=0, most=MOST_SIZE)
    b_moe: int = option(0, least=0, most=MOST_SIZE)
    prefix_cache: bool | None = None
    depth: int = option(1, least=1, most=2)
    prefill_engines: int = option(0, least=0, most=MOST_SIZE)
    weights: str = one_of(*WEIGHTS)
    kv: str = one_of(*KV)
    disk_share: float = option(1.0, least=0, most=1)
    attention: str = one_of(*ATTENTION)
    row_bytes: int = option(0, least=0, most=1 << 40)
    resident_share: float = option(0.0, least=0, most=1)
    gpu_batches: int = option(1, least=1, most=1024)
    max_context: int | None = option(None, least=2, most=MOST_SIZE)

    def context_of(self, model: ModelSpec) -> int:
        """Tokens that a row of the model may come to, its prompt and its outputs together."""
        return self.max_context or model.max_context

    @property
    def residency(self) -> Residency:
        """Raises UserError for places that do not go together."""
        return Residency(
            weights=self.weights,
            kv=self.kv,
            attention=self.attention,
            row_bytes=self.row_bytes,
            disk_share=self.disk_share,
            resident_share=self.resident_share,
            gpu_batches=self.gpu_batches,
        )


def options_by_name() -> dict[str, dataclasses.Field[Any]]:
    """The options of the plan."""
    return {field.name: field for field in dataclasses.fields(PlanOptions)}


def plan_options(
    overrides: Mapping[str, str], preset: Mapping[str, object] | None = None
) -> PlanOptions:
    """The options of a preset, then the "plan.*" entries of --set; raises UserError for an unknown
    name or a bad value."""
    values: dict[str, object] = {}
    fields = options_by_name()
    texts = {f"plan.{name}": str(value) for name, value in (preset or {}).items()}
    texts |= {key: text for key, text in overrides.items() if key.startswith("plan.")}
    for key, text in texts.items():
        name = key.partition(".")[2]
        if name not in fields:
            raise UserError(
                f"{'--set ' if key in overrides else ''}{key}: the plan has no such option",
                remedy=f"its options: {', '.join(fields)}",
            )
        values[name] = read_option(key, fields[name], text)
    return PlanOptions(**values)  # type: ignore[arg-type]


def build_plan(
    model: ModelSpec,
    gpu: GpuSpec,
    layout: Layout,
    preset: Preset,
    *,
    gpus_per_node: int,
    max_context: int,
    options: PlanOptions | None = None,
) -> tuple[Plan, Capacity]:
    """The plan and the capacities it was computed from.

    An engine that spans nodes owns their host memory together. A pipeline of S stages is S engines
    of the plan, one per batch in flight, that follow each other; each has its part of the pages.
    Raises UserError when the model does
    not fit.
    """
    options = options or PlanOptions()
    large = gpu.hbm_bytes >= LARGE_GPU_BYTES and not gpu.name.lower().startswith(("a100", "a800"))
    machine = LARGE if large else SMALL
    page_tokens = options.page_tokens or preset.page_tokens
    # The default of a pass is that of each GPU batch.
    block = options.gpu_batches * (preset.token_budget or machine["token_budget"])
    token_budget = options.token_budget or min(block, MOST_SIZE)
    if options.engine_token_budget is not None and options.token_budget is None:
        of_engine = options.gpu_batches * options.engine_token_budget
        token_budget = max(1, min(of_engine // layout.attention_dp, MOST_SIZE))
    seats = options.gpu_batches * (preset.max_num_seqs or machine["max_num_seqs"])
    max_num_seqs = options.max_num_seqs or min(seats, MOST_SIZE)
    sizes = capacity(
        model,
        gpu,
        layout,
        memory_fraction=options.memory_fraction,
        page_tokens=page_tokens,
        token_budget=token_budget,
        max_num_seqs=max_num_seqs,
        gpus_per_node=gpus_per_node,
        residency=options.residency,
        b_moe=options.b_moe,
    )
    if sizes.seats:
        max_num_seqs = min(options.max_num_seqs or preset.max_num_seqs or sizes.seats, sizes.seats)
    per_engine, batches = layout.gpus_per_engine, layout.pp
    nodes_per_engine = max(1, per_engine // gpus_per_node)
    engines_per_node = max(1, gpus_per_node // per_engine)
    prefill = options.prefill_engines
    if prefill and not 0 < prefill < layout.num_engines:
        raise UserError(
            f"--set plan.prefill_engines={prefill}: the layout has {layout.num_engines} engines",
            remedy="leave at least one engine to decode, or choose a layout with more engines",
        )
    # A fixed share each, so that no engine sees what another plans (DESIGN section 5).
    share = sizes.host_pages * nodes_per_engine // engines_per_node // batches
    host_pages = share if options.host else 0
    engines = tuple(
        EngineSpec(
            engine=index,
            node=index // batches // engines_per_node,
            num_ranks=layout.ranks_per_engine,
            gpus_per_rank=layout.gpus_per_rank,
            hbm_pages=sizes.hbm_pages // batches,
            host_pages=host_pages,
            role="both" if not prefill else "prefill" if index < prefill * batches else "decode",
        )
        for index in range(layout.num_engines * batches)
    )
    plan = Plan(
        page_tokens=page_tokens,
        boundary=options.boundary or preset.boundary,
        engines=engines,
        token_budget=token_budget,
        max_num_seqs=max_num_seqs,
        max_context=max_context,
        b_attn=options.b_attn,
        b_moe=options.b_moe,
        depth=options.depth,
    )
    return plan, sizes

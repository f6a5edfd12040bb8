"""Where weights and KV live when HBM is short: on the GPU, or on its host. It knows no times."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from batchgen.errors import UserError
from batchgen.layout import Layout
from batchgen.model import DTYPE_BYTES, ModelSpec

WEIGHTS = ("hbm", "spill", "layers", "experts")
KV = ("hbm", "host")
ATTENTION = ("gpu", "cpu")

KV_BUFFER_BYTES = 2 << 30
"""Device buffers for KV that comes from the host: of two layers, a gigabyte each (BatchGen keeps at
most two layers' KV on the GPU, paper section 3.2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Residency:
    """weights: "hbm", all of them; "spill", the routed experts that do not fit stay on the host;
    "experts", all routed experts do, and two at a time are on the GPU; "layers", all layers do, two
    at a time on the GPU. What is not there crosses the host link in every pass.

    kv "host": the KV of all rows stays on the host; with attention "gpu" it crosses the link in
    every pass, with "cpu" the host computes the attention of decodes. `row_bytes`: device memory
    that a running row takes beside its KV (0: none), which bounds their number.
    """

    weights: str = "hbm"
    kv: str = "hbm"
    attention: str = "gpu"
    row_bytes: int = 0

    def __post_init__(self) -> None:
        if self.attention == "cpu" and self.kv != "host":
            raise UserError(
                "plan.attention=cpu reads KV of the host", remedy="add --set plan.kv=host"
            )

    @property
    def streams(self) -> bool:
        """Whether passes wait for the host link."""
        return self != Residency(row_bytes=self.row_bytes)


def check_places(layout: Layout, residency: Residency) -> None:
    """Raise UserError for what is not on the GPUs of a pipeline."""
    if layout.pp > 1 and residency.streams:
        raise UserError(
            f"layout {layout}: plan.weights, plan.kv and plan.attention on the host are not "
            "simulated for pipelines",
            remedy="leave pp out, or keep weights and KV in HBM",
        )


def placed(
    model: ModelSpec, layout: Layout, residency: Residency, held: dict[str, int]
) -> tuple[int, int]:
    """(bytes on a GPU, bytes that it fetches in every pass) of the weights `held` by module, for
    all places but "spill"."""
    total = sum(held.values())
    if residency.weights == "layers":
        streamed = total - sum(held[name] for name in ("embedding", "lm_head", "final_norm"))
        return total - streamed + ceil(2 * streamed / model.num_layers), streamed
    if residency.weights == "experts":
        expert = model.expert_parameters * DTYPE_BYTES[model.expert_dtype] / layout.expert_tp
        return total - held["experts"] + ceil(2 * expert), held["experts"]
    return total, 0

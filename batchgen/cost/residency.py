"""Where weights and KV live when HBM is short: on the GPU, its host, or the host's disks. It knows
no times."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from batchgen.errors import UserError
from batchgen.hardware import GpuSpec
from batchgen.layout import Layout
from batchgen.model import DTYPE_BYTES, ModelSpec

WEIGHTS = ("hbm", "spill", "layers", "experts", "disk", "moe-layers")
KV = ("hbm", "host", "disk")
ATTENTION = ("gpu", "cpu")

HIDDEN_BYTES = 2
"""Of an element of hidden states."""

# Part of the host memory left to the pool after the weights: the rest is the operating system,
# page tables and staging buffers. The same of a disk, for its file system.
HOST_SAFETY = 0.9

KV_BUFFER_BYTES = 2 << 30
"""Device buffers for KV that comes from the host: of two layers, a gigabyte each (BatchGen keeps at
most two layers' KV on the GPU, paper section 3.2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Residency:
    """weights: "hbm", all of them; "spill", the routed experts that do not fit stay on the host;
    "experts", all routed experts do, and two at a time are on the GPU; "moe-layers", the same with
    those of two layers on the GPU; "layers", all layers do, two at a time on the GPU; "disk", as
    "layers", with `disk_share` of them on the disks and the rest on the host. Of "layers" and
    "disk" `resident_share` stays on the GPU. What is not there crosses the host link in every pass,
    what is on the disks is read from them too: the host has room for two layers of it.

    kv "host": the KV of all rows stays on the host; with attention "gpu" it crosses the link in
    every pass, with "cpu" the host computes the attention of decodes. "disk": the same from the
    disks, through buffers of the host. `row_bytes`: device memory that a running row takes beside
    its KV (0: none), which bounds their number. `gpu_batches`: a pass goes through the layers one
    by one, over so many GPU batches in each; only one of them has its activations on the GPU, the
    hidden states of the others wait on the host.
    """

    weights: str = "hbm"
    kv: str = "hbm"
    attention: str = "gpu"
    row_bytes: int = 0
    disk_share: float = 1.0
    resident_share: float = 0.0
    gpu_batches: int = 1

    def __post_init__(self) -> None:
        if self.attention == "cpu" and self.kv == "hbm":
            raise UserError(
                "plan.attention=cpu reads KV of the host", remedy="add --set plan.kv=host"
            )
        if self.disk_share != 1.0 and self.weights != "disk":
            raise UserError(
                "plan.disk_share divides weights between disk and host",
                remedy="add --set plan.weights=disk",
            )
        if self.resident_share and self.weights not in ("layers", "disk"):
            raise UserError(
                "plan.resident_share divides layers between GPU and host",
                remedy="add --set plan.weights=layers",
            )
        if self.gpu_batches > 1 and not self.streams:
            raise UserError(
                "plan.gpu_batches divides passes whose weights or KV come from the host",
                remedy="add --set plan.weights=layers, or leave it out",
            )

    @property
    def streams(self) -> bool:
        """Whether passes wait for the host link."""
        return (self.weights, self.kv) != ("hbm", "hbm")


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
    if residency.weights in ("layers", "disk"):
        layers = total - sum(held[name] for name in ("embedding", "lm_head", "final_norm"))
        streamed = layers - round(residency.resident_share * layers)
        return total - streamed + ceil(2 * streamed / model.num_layers), streamed
    if residency.weights == "experts":
        expert = model.expert_parameters * DTYPE_BYTES[model.expert_dtype] / layout.expert_tp
        return total - held["experts"] + ceil(2 * expert), held["experts"]
    if residency.weights == "moe-layers":
        if not model.moe_layers:
            raise UserError(
                f"plan.weights=moe-layers: {model.name} has no routed experts",
                remedy="give plan.weights=layers",
            )
        two = ceil(2 * held["experts"] / max(1, model.moe_layers))
        return total - held["experts"] + two, held["experts"]
    return total, 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRoom:
    """What the weights leave of the memories of one node for KV, in bytes (negative: they do not
    fit), and the weights that lie on its disks."""

    host: int
    disk: int
    weights_on_disk: int


def node_room(
    model: ModelSpec,
    gpu: GpuSpec,
    residency: Residency,
    streamed: int,
    held: int,
    gpus: int,
    token_budget: int,
) -> NodeRoom:
    """Of a node with so many GPUs, each of which streams `streamed` of the `held` bytes that are
    its part of the model, in passes of `token_budget` tokens.

    The host keeps one copy of the weights of the node (BatchGen paper, section 5.2), but for those
    on the disks: of these it has two layers for every GPU, and buffers of the KV that passes by.
    """
    on_disk = staged = 0
    if residency.weights == "disk":
        on_disk = int(model.weight_bytes * residency.disk_share * streamed / held)
        staged = gpus * ceil(2 * residency.disk_share * streamed / model.num_layers)
    if residency.kv == "disk":
        staged += gpus * KV_BUFFER_BYTES
    if residency.gpu_batches > 1:
        staged += gpus * token_budget * model.hidden * HIDDEN_BYTES
    host = gpu.host_bytes - (model.weight_bytes - on_disk) - staged
    return NodeRoom(
        host=int(host * HOST_SAFETY),
        disk=int((gpu.disk_bytes - on_disk) * HOST_SAFETY),
        weights_on_disk=on_disk,
    )

"""How many KV pages fit beside the weights, per rank and per host. It does not choose a layout."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from batchgen.cost.residency import (
    KV_BUFFER_BYTES,
    NodeRoom,
    Residency,
    check_places,
    node_room,
    placed,
)
from batchgen.errors import UserError
from batchgen.hardware import GpuSpec
from batchgen.layout import Layout, check_layout, kv_split, stage_weight_bytes
from batchgen.model import ModelSpec
from batchgen.pipeline import stage_models
from batchgen.plan import MOST_SIZE

# Context, graphs and communication buffers of one GPU. Measured on a 24 GB card with a budget of
# 2,048 tokens: 0.9 x memory - weights - about 1.2 GB is the KV room (feasibility study on vLLM
# 0.19 logs, Llama-3.1-8B); 0.33 GB of that are activations and logits, counted apart below.
CONTEXT_BYTES = 870_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Sizes of the KV pools and what they were computed from. Pages hold `page_tokens` tokens.

    `hbm_pages` is per rank, `host_pages` per node (0: no room beside the weights). Of a pipeline
    `hbm_pages` is for all its batches, by the stage that has room for the fewest; bytes are those
    of that stage's GPUs. With KV on host or disks `hbm_pages` is a rank's part of these, and
    there is no other tier. `streamed_bytes` are weights that each GPU fetches in every pass,
    `disk_bytes` those of them that come from the disks, `seats` the rows that device memory bounds
    (0: it does not).
    `kv_bytes_per_token` is what one token takes on each GPU of its rank, and
    `host_kv_bytes_per_token` what it takes in host memory.
    """

    hbm_pages: int
    host_pages: int
    page_tokens: int
    kv_bytes_per_token: int
    host_kv_bytes_per_token: int
    weight_bytes_per_gpu: int
    workspace_bytes: int
    kv_pool_bytes: int
    streamed_bytes: int = 0
    disk_bytes: int = 0
    seats: int = 0

    @property
    def hbm_tokens(self) -> int:
        return self.hbm_pages * self.page_tokens


def workspace_bytes(
    model: ModelSpec, layout: Layout, *, token_budget: int, max_num_seqs: int, b_moe: int = 0
) -> int:
    """Memory of one GPU for activations, windowed KV and buffers at `token_budget` tokens a pass.

    Residual and normed states, the projections of attention and the widest FFN buffer are alive at
    once, in bf16; logits of `max_num_seqs` rows in float32. Routed experts take `b_moe` tokens of
    the engine at a time (0: all). Of a pipeline `model` is that of a stage; the windows of all its
    batches are there at once.
    """
    tp = layout.tp
    ffn = token_budget * 3 * model.ffn / tp if model.dense_layers else 0.0
    if model.is_moe:
        grouped = token_budget
        if b_moe:
            grouped = min(token_budget, ceil(b_moe / layout.attention_dp))
        routed = model.top_k * (2 * model.expert_ffn / layout.expert_tp + model.hidden)
        ffn = max(ffn, grouped * routed + token_budget * 3 * model.shared_ffn / tp)
    heads = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim / tp
    activations = 2 * (token_budget * (4 * model.hidden + heads) + ffn)
    logits = max_num_seqs * model.vocab * 4 / tp
    window = layout.pp * max_num_seqs * model.kv_window_bytes / kv_split(model, tp)
    return CONTEXT_BYTES + ceil(activations + logits + window)


def capacity(
    model: ModelSpec,
    gpu: GpuSpec,
    layout: Layout,
    *,
    memory_fraction: float = 0.9,
    page_tokens: int = 64,
    token_budget: int = 8192,
    max_num_seqs: int = 256,
    gpus_per_node: int | None = None,
    residency: Residency | None = None,
    b_moe: int = 0,
) -> Capacity:
    """KV pages per rank and per node under `layout`.

    `memory_fraction` is the part of the HBM that the engine may use, `b_moe` the most tokens of an
    engine that routed experts take at a time (0: all). Of a block of several GPU batches
    (`residency.gpu_batches`) the workspace is that of one. Raises UserError when the
    weights and the workspace leave less than two pages, and when weights that are to be streamed
    fit neither the host nor its disks.
    """
    if not 0.0 < memory_fraction <= 1.0:
        raise UserError(f"the memory fraction must lie in (0, 1], got {memory_fraction}")
    check_layout(model, layout)
    residency = residency or Residency()
    check_places(layout, residency)
    usable = int(memory_fraction * gpu.hbm_bytes)
    fullest: tuple[int, ...] = ()
    held_by_stage = stage_weight_bytes(model, layout)
    for stage, held in zip(stage_models(model, layout.pp), held_by_stage, strict=True):
        weights, streamed = placed(model, layout, residency, held)
        work = workspace_bytes(
            stage,
            layout,
            token_budget=ceil(token_budget / residency.gpu_batches),
            max_num_seqs=ceil(max_num_seqs / residency.gpu_batches),
            b_moe=b_moe,
        )
        per_token = ceil(stage.kv_bytes_per_token / kv_split(model, layout.tp))
        least = 2 * layout.pp * per_token * page_tokens
        if residency.kv != "hbm":
            least = KV_BUFFER_BYTES
        if residency.weights == "spill":
            streamed = min(max(0, weights + work + least - usable), held["experts"])
            weights -= streamed
        room = usable - weights - work
        if room < least:
            raise UserError(
                f"{model.name} does not fit on {gpu.name} under layout {layout}: per GPU "
                f"{weights / 1e9:.1f} GB weights and {work / 1e9:.1f} GB workspace against "
                f"{usable / 1e9:.1f} GB usable ({gpu.hbm_bytes / 1e9:.1f} GB x "
                f"{memory_fraction:g})",
                remedy="use more GPUs per engine (--gpus, --layout), a larger GPU, "
                "or a smaller token budget",
                code="does_not_fit",
            )
        found = room // (per_token * page_tokens), room, per_token, weights, streamed, work
        fullest = min(fullest, found) if fullest else found
    pages, room, per_token, weights, streamed, work = fullest
    node = gpus_per_node or gpu.gpus_per_node
    held_bytes = max(sum(held.values()) for held in held_by_stage)
    left = node_room(model, gpu, residency, streamed, held_bytes, node, token_budget)
    _check_host(model, gpu, residency, streamed, left)
    kv_page_bytes = model.kv_bytes_per_token * page_tokens
    host_pages = max(0, left.host // kv_page_bytes)
    if residency.kv != "hbm":
        tier = left.host if residency.kv == "host" else left.disk
        pages, host_pages = max(0, tier // kv_page_bytes) // max(1, node // layout.tp), 0
        if pages < 2:
            raise _no_room_for_kv(model, gpu, residency, left)
    return Capacity(
        hbm_pages=pages,
        host_pages=host_pages,
        page_tokens=page_tokens,
        kv_bytes_per_token=per_token,
        host_kv_bytes_per_token=model.kv_bytes_per_token,
        weight_bytes_per_gpu=weights,
        workspace_bytes=work,
        kv_pool_bytes=room,
        streamed_bytes=streamed,
        disk_bytes=round(streamed * residency.disk_share) if residency.weights == "disk" else 0,
        seats=_seats(room, residency.row_bytes * layout.pp),
    )


def _seats(room: int, row_bytes: int) -> int:
    """Rows that device memory holds; 0: it does not bound them."""
    return min(max(1, room // row_bytes), MOST_SIZE) if row_bytes else 0


def _check_host(
    model: ModelSpec, gpu: GpuSpec, residency: Residency, streamed: int, left: NodeRoom
) -> None:
    """Raise UserError when the memories of a node do not hold the weights that are streamed."""
    weights_gb = model.weight_bytes / 1e9
    if streamed and left.host < 0:
        remedy = "leave part of them on the disks: --set plan.weights=disk"
        if residency.weights == "disk":
            remedy = "a larger plan.disk_share, or a larger host"
        raise UserError(
            f"plan.weights={residency.weights}: {gpu.host_bytes / 1e9:.0f} GB of a host do not "
            f"hold what is to be there of the {weights_gb:.0f} GB of {model.name}",
            remedy=remedy,
            code="does_not_fit",
        )
    if left.weights_on_disk and left.disk < 0:
        raise UserError(
            f"plan.weights=disk: {gpu.disk_bytes / 1e9:.0f} GB of disks do not hold the "
            f"{left.weights_on_disk / 1e9:.0f} GB of {model.name} that are to be there",
            remedy="use a machine with larger disks",
            code="does_not_fit",
        )


def _no_room_for_kv(
    model: ModelSpec, gpu: GpuSpec, residency: Residency, left: NodeRoom
) -> UserError:
    where, holds, weights = "a host", gpu.host_bytes, model.weight_bytes - left.weights_on_disk
    remedy = "leave KV in HBM, or more weights on the disks (--set plan.weights=disk)"
    if residency.kv == "disk":
        where, holds, weights = "the disks of a node", gpu.disk_bytes, left.weights_on_disk
        remedy = "leave KV in HBM or on the host"
    return UserError(
        f"plan.kv={residency.kv}: {holds / 1e9:.0f} GB of {where} hold no KV beside the "
        f"{weights / 1e9:.0f} GB of {model.name} there",
        remedy=remedy,
        code="does_not_fit",
    )

"""How many KV pages fit beside the weights, per rank and per host. It does not choose a layout."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from batchgen.cost.residency import KV_BUFFER_BYTES, Residency, placed
from batchgen.errors import UserError
from batchgen.hardware import GpuSpec
from batchgen.layout import Layout, check_layout, kv_split, weight_bytes_per_gpu
from batchgen.model import ModelSpec
from batchgen.plan import MOST_SIZE

# Context, graphs and communication buffers of one GPU. Measured on a 24 GB card with a budget of
# 2,048 tokens: 0.9 x memory - weights - about 1.2 GB is the KV room (feasibility study on vLLM
# 0.19 logs, Llama-3.1-8B); 0.33 GB of that are activations and logits, counted apart below.
CONTEXT_BYTES = 870_000_000

# Part of the host memory left to the pool after the weights: the rest is the operating system,
# page tables and staging buffers.
HOST_SAFETY = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Sizes of the KV pools and what they were computed from. Pages hold `page_tokens` tokens.

    `hbm_pages` is per rank, `host_pages` per node (0: no room beside the weights). With KV on the
    host `hbm_pages` is a rank's part of the host, and there is no other tier. `streamed_bytes` are
    weights that each GPU fetches in every pass, `seats` the rows that device memory bounds (0: it
    does not).
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
    seats: int = 0

    @property
    def hbm_tokens(self) -> int:
        return self.hbm_pages * self.page_tokens


def workspace_bytes(
    model: ModelSpec, layout: Layout, *, token_budget: int, max_num_seqs: int
) -> int:
    """Memory of one GPU for activations, windowed KV and buffers at `token_budget` tokens a pass.

    Residual and normed states, the projections of attention and the widest FFN buffer are alive at
    once, in bf16; logits of `max_num_seqs` rows in float32.
    """
    tp = layout.tp
    ffn = 3 * model.ffn / tp if model.dense_layers else 0.0
    if model.is_moe:
        routed = model.top_k * (2 * model.expert_ffn / layout.expert_tp + model.hidden)
        ffn = max(ffn, routed + 3 * model.shared_ffn / tp)
    heads = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim / tp
    activations = token_budget * 2 * (4 * model.hidden + heads + ffn)
    logits = max_num_seqs * model.vocab * 4 / tp
    window = max_num_seqs * model.kv_window_bytes / kv_split(model, tp)
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
) -> Capacity:
    """KV pages per rank and per node under `layout`.

    `memory_fraction` is the part of the HBM that the engine may use. The host keeps one copy of the
    weights of the node (BatchGen paper, section 5.2). Raises UserError when the weights and the
    workspace leave less than two pages.
    """
    if not 0.0 < memory_fraction <= 1.0:
        raise UserError(f"the memory fraction must lie in (0, 1], got {memory_fraction}")
    check_layout(model, layout)
    residency = residency or Residency()
    held = weight_bytes_per_gpu(model, layout)
    weights, streamed = placed(model, layout, residency, held)
    work = workspace_bytes(model, layout, token_budget=token_budget, max_num_seqs=max_num_seqs)
    per_token = ceil(model.kv_bytes_per_token / kv_split(model, layout.tp))
    usable = int(memory_fraction * gpu.hbm_bytes)
    least = KV_BUFFER_BYTES if residency.kv == "host" else 2 * per_token * page_tokens
    if residency.weights == "spill":
        streamed = min(max(0, weights + work + least - usable), held["experts"])
        weights -= streamed
    room = usable - weights - work
    if room < least:
        raise UserError(
            f"{model.name} does not fit on {gpu.name} under layout {layout}: per GPU "
            f"{weights / 1e9:.1f} GB weights and {work / 1e9:.1f} GB workspace against "
            f"{usable / 1e9:.1f} GB usable ({gpu.hbm_bytes / 1e9:.1f} GB x {memory_fraction:g})",
            remedy="use more GPUs per engine (--gpus, --layout), a larger GPU, "
            "or a smaller token budget",
            code="does_not_fit",
        )
    host_room = int((gpu.host_bytes - model.weight_bytes) * HOST_SAFETY)
    host_pages = max(0, host_room // (model.kv_bytes_per_token * page_tokens))
    pages = room // (per_token * page_tokens)
    if residency.kv == "host":
        node = gpus_per_node or gpu.gpus_per_node
        pages, host_pages = host_pages // max(1, node // layout.tp), 0
        if pages < 2:
            raise UserError(
                f"plan.kv=host: {gpu.host_bytes / 1e9:.0f} GB of a host hold no KV beside the "
                f"{model.weight_bytes / 1e9:.0f} GB of {model.name}",
                remedy="leave KV in HBM",
                code="does_not_fit",
            )
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
        seats=min(max(1, room // residency.row_bytes), MOST_SIZE) if residency.row_bytes else 0,
    )

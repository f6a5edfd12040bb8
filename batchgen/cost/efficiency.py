"""What kernels and engines reach of the peaks: the calibration constants of the roofline, as data.

Sources are named beside each number: "aiconfigurator" is NVIDIA's table of measured vLLM kernels
(Apache-2.0), "InferSim" Alibaba's table of H20 and H800 kernels (Apache-2.0), "logs" a fit to
public vLLM 0.19 logs, "BatchGen" a fit to the published completion times of the BatchGen paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import Field, asdict, dataclass, fields
from itertools import pairwise
from typing import Any

from batchgen.cost.block import SCHEDULES
from batchgen.errors import UserError
from batchgen.policy.options import kinds_of, one_of, option, read_option

Points = tuple[tuple[float, float], ...]
LEAST_RATE = 1e6
"""Bytes per second of a link or disk. Nothing is slower; somebody meant gigabytes."""


def _rate() -> Any:
    """A link's or disks'; 0 takes the catalog's."""
    return option(0.0, least=LEAST_RATE, most=1e15, or_zero=True, unit="bytes per second")


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """Achieved fractions and fixed times. Tables are (x, fraction) points, linear in between.

    Tables over the ridge take peak FLOP/s over HBM bytes/s of the machine and dtype: the higher
    the ridge, the smaller the part of the peak that a kernel reaches.
    """

    # Large GEMM (m >= 4096) by ridge. H20 fp8 0.91 (InferSim); A100 bf16 0.86, H200 bf16 0.77,
    # H100 bf16 0.79, H200 fp8 0.54, H100 fp8 0.48 (medians over n, k >= 2048, aiconfigurator).
    gemm: Points = ((74.0, 0.91), (153.0, 0.86), (250.0, 0.78), (412.0, 0.54), (590.0, 0.48))
    # Grouped GEMM of experts over the plain one. H20 0.75 to 0.9 absolute in prefill (InferSim);
    # H100 and H200 bf16 0.46 to 0.53 absolute, that is 0.6 to 0.7 relative (aiconfigurator).
    grouped: float = option(0.85, least=0.01, most=2)
    # Prefill attention by ridge. H20 0.86 to 0.94 (InferSim), H100 and H200 0.57 (aiconfigurator).
    prefill_attention: Points = ((37.0, 0.90), (206.0, 0.57), (295.0, 0.57))
    # Part of the time of a compute-bound pass that kernels of these fractions fill; the rest is
    # element-wise work, gaps and stragglers. About 0.7 (BatchGen).
    engine: float = option(0.7, least=0.01, most=1)
    # Weights read at small batch over HBM bandwidth, by ridge. Of two bytes: A100 0.69, H200 0.78,
    # H100 0.83 (n x k >= 32M, aiconfigurator). Of one byte and less: H20 0.45 to 0.5, products and
    # experts alike (InferSim); experts of DeepSeek-V3 under EP8 at 64 tokens and more: H200 0.66,
    # H100 0.73 (aiconfigurator).
    weight_bandwidth: Points = ((153.0, 0.69), (206.0, 0.78), (295.0, 0.83))
    small_weight_bandwidth: Points = ((74.0, 0.48), (412.0, 0.66), (590.0, 0.73))
    # Decode attention over HBM bandwidth by rows, at about 4K of context: H100 0.3 to 0.5 at one
    # row, 0.70 at 16, 0.86 at 64, 0.88 at 256 (aiconfigurator); RTX PRO 6000 0.1 to 0.35, 0.5 to
    # 0.73, 0.67 to 0.84 at 128 (logs); H20 0.69 (InferSim).
    decode_bandwidth: Points = ((1.0, 0.35), (4.0, 0.55), (16.0, 0.70), (64.0, 0.80), (256.0, 0.85))
    # MLA decode over bf16 peak by rows, H20 (InferSim): 0.40 at one row of 8K, 0.61 at 16 to 32,
    # 0.73 at 64 to 128, 0.83 at 256. Scaled by `prefill_attention` over its first point elsewhere:
    # that gives 0.39, 0.46, 0.53 on the H800 where 0.44, 0.51, 0.54 were measured.
    mla_decode: Points = (
        (1.0, 0.40),
        (16.0, 0.61),
        (32.0, 0.61),
        (64.0, 0.73),
        (128.0, 0.73),
        (256.0, 0.83),
    )
    # All-reduce over NVLink: 0.6 to 0.7 of the one-way rate at 16 MB on H100 (aiconfigurator).
    nvlink: float = option(0.70, least=0.01, most=1)
    # The same over PCIe: about 15.5 of 64 GB/s on the RTX PRO 6000 (logs).
    pcie_peer: float = option(0.25, least=0.01, most=1)
    # Point-to-point exchange over RDMA: 43 to 58 GB/s on 50 GB/s links, counting the copies that
    # NVLink forwards (DeepEP README); 0.85 of the link without them.
    network: float = option(0.85, least=0.01, most=1)
    # Copies between HBM and host by one GPU alone, of its own link: 50 to 55.6 of 64 GB/s from
    # pinned memory on H100 hosts (vLLM's KV connector), 25 of 32 over PCIe 4.0.
    host_link: float = option(0.80, least=0.01, most=1)
    # What all GPUs of a node copy from the host together, and to it; 0: the catalog's. Eight H20
    # reach about 32 GB/s each (BatchGen).
    node_host_bytes_per_s: float = _rate()
    # Part of the host link's rate that the engine's own way of copying reaches: kernels that read
    # weights of the host as they need them stay below the copy engines.
    host_copies: float = option(1.0, least=0.01, most=1)
    # Part of what passes fetch over the host link, or else of all the rest of them, whichever is
    # shorter, that is not hidden behind the longer: 0 is perfect overlap, 1 none. FlexGen's own
    # cost model adds the two for decodes (its cost_model.py, Apache-2.0).
    stream_theta: float = option(0.0, least=0, most=1)
    # In which order passes that fetch over the host link copy and compute, one formula for each
    # (`batchgen.cost.block`): "free" all copies beside all else; "zig-zag" FlexGen's block
    # schedule; "cgopipe" MoE-Lightning's pipeline of micro-batches; "layer-ahead" ZeRO-Inference's
    # prefetch; "as-read" kernels that read weights of the host, as vLLM's CPU offload.
    block_schedule: str = one_of(*SCHEDULES)
    # Engines of a node that hold the same weights fetch a part of each layer each, over their own
    # links, and gather it over the links between GPUs (ZeRO-Inference).
    gathered_layers: bool = False
    # The disks of a node; 0: the catalog's (DeepNVMe: 10, 27, 48 GB/s are read of four Gen4, four
    # Gen5, eight Gen5 drives, and 5, 11, 26 written).
    disk_read_bytes_per_s: float = _rate()
    disk_write_bytes_per_s: float = _rate()
    # Attention of decodes on the CPUs of a node: KV bytes read in a second. About 140 GB/s of the
    # 205 that eight channels of DDR4-3200 give (28-core AMD 7453, BatchGen paper's set-up).
    cpu_attention_bytes_per_s: float = option(140e9, least=1e6, most=1e15)
    # One kernel of a layer inside a CUDA graph beyond its bytes or FLOPs: launch, fill, drain. A
    # dense layer has about ten: one H100 reads the weights of an 8B model in 6.0 ms and decodes one
    # row in about 6.8 ms (`batchgen.cost.terms` counts the kernels of other layers).
    kernel_s: float = option(2.5e-6, least=0, most=1)
    # Per further attention sub-batch and layer: launch and the checkpoint of its hidden states,
    # below 5 us each (BatchGen paper, table 2).
    sub_batch_s: float = option(10e-6, least=0, most=1)
    # Host work per step (logs: c0), and more when a step holds a prefill (logs: c1).
    step_s: float = option(300e-6, least=0, most=10)
    prefill_step_s: float = option(4e-3, least=0, most=10)
    # One collective of an engine that spans nodes beside its bytes: launch, barrier, stragglers;
    # an MoE layer has two, a layer of a tensor-parallel engine too. 65 to 100 ms per decode step of
    # 58 MoE layers (BatchGen), bytes included.
    internode_collective_s: float = option(0.15e-3, least=0, most=1)
    # The same inside a node, of an exchange: 77 + 114 us less 75 + 116 us of bytes at EP8 (DeepEP
    # README) leaves nothing; a barrier of about 10 us.
    intranode_collective_s: float = option(10e-6, least=0, most=1)
    # Slope of decode attention beside a prompt over that of decodes alone, where FlashAttention 2
    # runs both in one launch, without splitting rows: 1.7 on RTX PRO 6000, 2.4 on RTX 4090 at 128
    # rows (operator profiles of LLMServingSim, MIT).
    decode_beside_prompt: float = option(1.7, least=1, most=10)
    # How hidden states reach the experts: "dispatch" sends a token once to each node that has
    # experts of it (DeepEP), "gather" all tokens to all GPUs and the sums back (all-gather and
    # reduce-scatter, every rank padded to the fullest). "all-reduce" does that for decodes alone;
    # passes with prompts sum what there is by two all-reduces (DP attention of SGLang, whose ranks
    # then hold different numbers of tokens).
    exchange: str = one_of("dispatch", "gather", "all-reduce")
    # Passes of prompts alone run on every node of an engine by itself, without exchange between
    # nodes: the experts that a node lacks come from its host during the pass (BatchGen paper,
    # section 3.4: prefill is data-parallel with offloading).
    prefill_within_node: bool = False
    # Part of the shorter of compute and collectives that is not hidden behind the longer:
    # 1 is serial, 0 perfect overlap (NanoFlow measures 1.17x between the two).
    theta: float = option(1.0, least=0, most=1)
    # The same of the attention of decodes and the rest of a pass: engines run one after the other;
    # NanoFlow overlaps them, and keeps about 0.1 to 0.3 of the shorter (its interference map).
    attention_theta: float = option(1.0, least=0, most=1)
    # Preparing another layout or role: 5 to 10 s (BatchGen paper, table 2).
    switch_s: float = option(7.5, least=0, most=3600)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def interpolate(points: Points, x: float) -> float:
    """Linear between the points, constant beyond them."""
    if x <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in pairwise(points):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[-1][1]


def constants_by_name() -> dict[str, Field[Any]]:
    """The constants that may be given: all but the tables."""
    return {field.name: field for field in fields(Efficiency) if kinds_of(field)[0] != "Points"}


def efficiency_of(
    overrides: Mapping[str, str], preset: Mapping[str, Any] | None = None
) -> Efficiency:
    """The constants of a preset, then the "cost.*" entries of --set.

    Raises UserError for an unknown name, for a table, and for a value out of its range.
    """
    known = constants_by_name()
    texts = {f"cost.{name}": str(value) for name, value in (preset or {}).items()}
    texts |= {key: text for key, text in overrides.items() if key.startswith("cost.")}
    values: dict[str, Any] = {}
    for key, text in texts.items():
        name = key.partition(".")[2]
        if name not in known:
            raise UserError(
                f"--set {key}: costs have no such constant",
                remedy=f"their constants: {', '.join(known)}",
            )
        values[name] = read_option(key, known[name], text)
    return Efficiency(**values)


BESIDE_KERNELS = (
    *("step_s", "prefill_step_s", "switch_s", "decode_beside_prompt", "cpu_attention_bytes_per_s"),
    "attention_theta",
    *("pcie_peer", "nvlink", "network", "host_link", "node_host_bytes_per_s", "host_copies"),
    *("stream_theta", "block_schedule", "gathered_layers"),
    *("disk_read_bytes_per_s", "disk_write_bytes_per_s"),
)
"""Constants that count beside tables of kernels: host work, links, what these do not hold."""
BESIDE_PROFILES = (*BESIDE_KERNELS, "internode_collective_s", "intranode_collective_s")
"""Those beside operator profiles, which hold no collectives."""


def refuse_constants(overrides: Mapping[str, str], why: str, *, but: Sequence[str] = ()) -> None:
    """Raises UserError for "cost.*" entries, those of `but` excepted, where they would change
    nothing."""
    for key in overrides:
        if key.startswith("cost.") and key.removeprefix("cost.") not in but:
            raise UserError(f"--set {key}: {why}", remedy="leave it out")

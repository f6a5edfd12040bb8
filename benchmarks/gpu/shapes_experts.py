"""Lines of the kernel table: mixtures of experts of Qwen3-30B-A3B's shape, and the layer around."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from cell import COPY, MATMUL, Cell, Made, tune_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Sizes of one layer, as in the model's configuration."""

    experts: int = 128
    k: int = 8
    hidden: int = 2048
    width: int = 768


QWEN3_30B = Mixture()
MIXTRAL = Mixture(experts=8, k=2, hidden=4096, width=14336)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Random weights and tokens. Routing of random logits is about uniform."""

    x: torch.Tensor
    router: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


def layer_of(tokens: int, size: Mixture, device: torch.device) -> Layer:
    def normal(scale: float, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(std=scale)

    return Layer(
        x=normal(1.0, tokens, size.hidden),
        router=normal(size.hidden**-0.5, size.experts, size.hidden),
        gate_up=normal(size.hidden**-0.5, size.experts, 2 * size.width, size.hidden),
        down=normal(size.width**-0.5, size.experts, size.hidden, size.width),
    )


def mixture(tokens: int, size: Mixture, ceiling: str, target: float | None) -> Cell:
    """The two products with the gate between them; torch's way is `grouped_mm`."""

    def make(device: torch.device, seed: int) -> Made:
        from batchgen.exec.kernels.experts import experts, experts_work
        from batchgen.exec.kernels.experts_grouped import experts_grouped
        from batchgen.exec.kernels.route_experts import route_experts

        torch.manual_seed(seed)
        one = layer_of(tokens, size, device)
        weights, chosen = route_experts(functional.linear(one.x, one.router), k=size.k)
        arguments = one.x, weights, chosen, one.gate_up, one.down
        return Made(
            call=lambda: experts(*arguments),
            work=experts_work(tokens, size.k, size.experts, size.hidden, size.width, 2),
            other=lambda: experts_grouped(*arguments),
        )

    return Cell(
        kernel="experts",
        shape=_shape(tokens, size),
        make=make,
        ceiling=ceiling,
        target=target,
        other="by grouped_mm",
    )


def whole(tokens: int, size: Mixture, ceiling: str) -> Cell:
    """From the normed tokens on: router, choice, experts, sum. It has no target of its own."""

    def make(device: torch.device, seed: int) -> Made:
        from batchgen.exec.kernels.experts import experts, experts_work
        from batchgen.exec.kernels.route_experts import route_experts

        torch.manual_seed(seed)
        one = layer_of(tokens, size, device)

        def call() -> object:
            weights, chosen = route_experts(functional.linear(one.x, one.router), k=size.k)
            return experts(one.x, weights, chosen, one.gate_up, one.down)

        work = experts_work(tokens, size.k, size.experts, size.hidden, size.width, 2)
        return Made(call=call, work=work)

    return Cell(kernel="experts and router", shape=_shape(tokens, size), make=make, ceiling=ceiling)


def _shape(tokens: int, size: Mixture) -> str:
    return f"{tokens}, {size.k} of {size.experts}, {size.hidden} x {size.width}"


CELLS = (
    mixture(16384, QWEN3_30B, MATMUL, 0.5),
    mixture(2048, QWEN3_30B, COPY, None),
    mixture(256, QWEN3_30B, COPY, 0.75),
    mixture(256, MIXTRAL, COPY, 0.75),
    whole(16384, QWEN3_30B, MATMUL),
    whole(256, QWEN3_30B, COPY),
)

FEW_CHANGES = (
    {"UP_N": 64, "UP_STAGES": 4},
    {"UP_N": 128, "UP_K": 64, "UP_STAGES": 4},
    {"UP_N": 64, "DOWN_N": 64, "UP_K": 128, "DOWN_K": 128},
    {"DOWN_N": 64, "DOWN_STAGES": 4},
    {"UP_WARPS": 4, "DOWN_WARPS": 4},
    {"UP_WARPS": 8, "DOWN_WARPS": 8},
)
MANY_CHANGES = (
    {"BLOCK_M": 64},
    {"UP_N": 128, "DOWN_N": 128, "UP_WARPS": 4, "DOWN_WARPS": 4},
    {"UP_N": 128, "DOWN_N": 128, "UP_WARPS": 8, "DOWN_WARPS": 8},
    {"UP_STAGES": 3, "DOWN_STAGES": 3},
    {"GROUP_M": 1},
    {"GROUP_M": 32},
)
TUNE = (
    *(tune_of(mixture(n, QWEN3_30B, COPY, None), FEW_CHANGES) for n in (64, 128, 256, 512)),
    *(tune_of(mixture(n, QWEN3_30B, MATMUL, None), MANY_CHANGES) for n in (2048, 4096, 16384)),
)

"""Gated MLPs: one dense, and one of routed experts. Shapes: T tokens, H hidden, I width, E experts,
K experts per token, S = T * K."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from batchgen.exec import compiled
from batchgen.exec.arithmetic import Arithmetic, add_in_order
from batchgen.exec.config import ClampedSwiglu
from batchgen.exec.kernels.use import uses_kernels
from batchgen.exec.packed import PackedMatrix, packed_experts
from batchgen.exec.routing import Router

# Rows of an expert that is not packed. Over torch with one and two threads (hidden 512, width 256):
# 16 rows 0.94 and 1.24 times as fast, 24 rows 0.89 and 1.14, 32 rows 0.86 and 1.05
# (benchmarks/compiled.py --large-groups).
LARGE_GROUP = 24


def gated(
    gate_up: torch.Tensor, arithmetic: Arithmetic, clamp: ClampedSwiglu | None = None
) -> torch.Tensor:
    """silu(gate) * up, or the clamped form; the last dimension holds gate before up."""
    if uses_kernels(gate_up) and not arithmetic.exact:
        from batchgen.exec.kernels.swiglu import swiglu

        return swiglu(gate_up, None if clamp is None else (clamp.limit, clamp.alpha))
    gate, up = gate_up.chunk(2, dim=-1)
    if clamp is None:
        return arithmetic.silu(gate) * up
    gate, up = gate.clamp(max=clamp.limit), up.clamp(-clamp.limit, clamp.limit)
    return (up + 1) * (gate * arithmetic.sigmoid(gate * clamp.alpha))


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseMlp:
    """Gated SiLU MLP. gate_up [2I, H] holds gate above up; down [H, I]; each may be packed, gate_up
    as a gated matrix if there is no bias."""

    arithmetic: Arithmetic
    gate_up: torch.Tensor
    down: torch.Tensor
    gate_up_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None

    def __call__(self, x_TH: torch.Tensor) -> torch.Tensor:
        inner = self.arithmetic.linear(x_TH, self.gate_up, self.gate_up_bias)
        if not (isinstance(self.gate_up, PackedMatrix) and self.gate_up.gated):
            inner = gated(inner, self.arithmetic)
        return self.arithmetic.linear(inner, self.down, self.down_bias)

    def matrices(self) -> Iterator[torch.Tensor]:
        """One weight of every shape of product."""
        yield from (self.gate_up, self.down)


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseMlp:
    """Routed experts, summed by their weights, and a shared MLP for every token.

    gate_up [E, 2I, H], down [E, H, I], biases [E, 2I] and [E, H]. Both matrices may be packed,
    gate_up as a gated one, if there are no biases and no clamp.
    """

    arithmetic: Arithmetic
    router: Router
    gate_up: torch.Tensor
    down: torch.Tensor
    gate_up_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None
    clamp: ClampedSwiglu | None = None
    shared: DenseMlp | None = None

    def __call__(self, x_TH: torch.Tensor) -> torch.Tensor:
        gate_up, down = self.gate_up, self.down
        if isinstance(gate_up, PackedMatrix) and isinstance(down, PackedMatrix):
            routed = self._packed(x_TH, gate_up, down)
        elif uses_kernels(x_TH) and not self.arithmetic.exact:
            routed = self._by_kernels(x_TH)
        else:
            routed = self._compiled(x_TH) if self._is_compiled(x_TH) else self._in_torch(x_TH)
        return routed if self.shared is None else routed + self.shared(x_TH)

    def matrices(self) -> Iterator[torch.Tensor]:
        """One weight of every shape of product."""
        yield from (self.router.weight, self.gate_up[0], self.down[0])
        if self.shared is not None:
            yield from self.shared.matrices()

    @property
    def packed_router(self) -> PackedMatrix | None:
        """The router, if the library can choose experts by it."""
        weight = self.router.weight
        return weight if self.router.config.plain and isinstance(weight, PackedMatrix) else None

    def _packed(
        self, x_TH: torch.Tensor, gate_up: PackedMatrix, down: PackedMatrix
    ) -> torch.Tensor:
        router, packed = self.router, self.packed_router
        return packed_experts(
            x_TH,
            packed,
            router(x_TH) if packed is None else None,
            (gate_up, down),
            router.experts_per_token,
            router.config.normalise,
        )

    def _by_kernels(self, x_TH: torch.Tensor) -> torch.Tensor:
        from batchgen.exec.kernels.experts import experts

        weights, chosen = self.router(x_TH)
        clamp = None if self.clamp is None else (self.clamp.limit, self.clamp.alpha)
        return experts(
            x_TH.contiguous(),
            weights.contiguous(),
            chosen.to(torch.int32).contiguous(),
            self.gate_up,
            self.down,
            gate_up_bias=self.gate_up_bias,
            down_bias=self.down_bias,
            clamp=clamp,
        )

    def _is_compiled(self, x_TH: torch.Tensor) -> bool:
        """Whether the library runs this: it knows no biases, and one kind of gate."""
        covered = self.arithmetic.compiled and self.clamp is None and self.gate_up_bias is None
        return covered and not self._prefers_torch(x_TH)

    def _prefers_torch(self, x_TH: torch.Tensor) -> bool:
        """Large groups of bfloat16: there the library's products are slower than torch's."""
        mean_group = len(x_TH) * self.router.experts_per_token / len(self.gate_up)
        return x_TH.dtype == torch.bfloat16 and mean_group >= LARGE_GROUP

    def _compiled(self, x_TH: torch.Tensor) -> torch.Tensor:
        router = self.router
        if router.config.plain:
            return compiled.sparse_mlp(
                x_TH,
                router.weight,
                self.gate_up,
                self.down,
                router.experts_per_token,
                router.config.normalise,
            )
        return compiled.chosen_experts(x_TH, *router(x_TH), self.gate_up, self.down)

    def _in_torch(self, x_TH: torch.Tensor) -> torch.Tensor:
        weights, experts = self.router(x_TH)
        owners, order = experts.flatten().sort(stable=True)
        counts = torch.bincount(owners, minlength=len(self.gate_up))
        grouped = x_TH.index_select(0, order // self.router.experts_per_token)
        sums = self.arithmetic
        inner = sums.grouped(grouped, self.gate_up, self.gate_up_bias, owners, counts)
        inner = gated(inner, sums, self.clamp)
        outputs = sums.grouped(inner, self.down, self.down_bias, owners, counts)
        parked = torch.empty_like(outputs).index_copy_(0, order, outputs)
        parked = parked.view(*experts.shape, -1) * weights[..., None]
        # One fixed order of addition per token, the order of its experts by weight.
        return add_in_order(parked.unbind(1))


Mlp = DenseMlp | SparseMlp

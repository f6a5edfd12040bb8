"""Routers: from hidden states to the experts of a token and their weights, in float32."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from batchgen.exec.arithmetic import Arithmetic, add_in_order
from batchgen.exec.config import RoutingConfig
from batchgen.exec.kernels.use import uses_kernels


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """weight [E, H], bias [E] and correction [E] where the model has them."""

    config: RoutingConfig
    experts_per_token: int
    arithmetic: Arithmetic
    weight: torch.Tensor
    bias: torch.Tensor | None = None
    correction: torch.Tensor | None = None

    def __call__(self, x_TH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights in the dtype of x and expert numbers, each [T, K], the best expert first; ties go
        to the lower expert."""
        config = self.config
        x = x_TH.to(self.weight.dtype)
        logits_TE = self.arithmetic.linear(x, self.weight, self.bias)
        if uses_kernels(logits_TE) and not self.arithmetic.exact:
            return self._by_kernel(logits_TE, x_TH.dtype)
        logits_TE = logits_TE.float()
        if config.score == "sigmoid":
            scores_TE = self.arithmetic.sigmoid(logits_TE)
        elif config.score == "softmax":
            scores_TE = torch.softmax(logits_TE, dim=-1)
        else:  # of the chosen ones, below
            scores_TE = logits_TE
        ranks_TE = scores_TE if self.correction is None else scores_TE + self.correction
        if config.groups_kept < config.groups:
            ranks_TE = self._within_best_groups(ranks_TE)
        # A stable descending sort: topk leaves the order of equal experts open.
        order_TE = torch.sort(ranks_TE, dim=-1, descending=True, stable=True).indices
        experts_TK = order_TE[:, : self.experts_per_token]
        weights_TK = scores_TE.gather(1, experts_TK)
        if config.score == "chosen-softmax":
            weights_TK = torch.softmax(weights_TK, dim=-1)
        elif config.normalise:
            total = add_in_order(weights_TK.unbind(-1))[:, None]
            # Sigmoids may all be zero; those of a softmax that were chosen are not.
            weights_TK = weights_TK / (total + 1e-20 if config.score == "sigmoid" else total)
        return (weights_TK * config.scaling).to(x_TH.dtype), experts_TK

    def _by_kernel(
        self, logits_TE: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        from batchgen.exec.kernels.route_experts import route_experts

        config = self.config
        return route_experts(
            logits_TE,
            k=self.experts_per_token,
            score=config.score,
            normalise=config.normalise,
            scaling=config.scaling,
            correction=self.correction,
            groups=config.groups,
            groups_kept=config.groups_kept,
            group_top=config.group_top,
            dtype=dtype,
        )

    def _within_best_groups(self, ranks_TE: torch.Tensor) -> torch.Tensor:
        """Ranks with those outside the best groups below all others."""
        config = self.config
        by_group = ranks_TE.view(len(ranks_TE), config.groups, -1)
        best = torch.sort(by_group, dim=-1, descending=True, stable=True).values
        merit_TG = add_in_order(best[..., : config.group_top].unbind(-1))
        order = torch.sort(merit_TG, dim=-1, descending=True, stable=True).indices
        kept = torch.zeros_like(merit_TG, dtype=torch.bool)
        kept.scatter_(1, order[:, : config.groups_kept], True)
        return by_group.masked_fill(~kept[..., None], -torch.inf).flatten(1)

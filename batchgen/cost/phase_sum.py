"""The phase-sum bound of a pass: products and attention one after the other, each at the speed of a
ceiling. Nothing here is fitted.

The products of a pass take as long as its weights at the bandwidth of memory or their FLOPs at the
rate of matrix products, whichever is longer; KV of decoding rows is read after that; scores of
prompts are FLOPs. Ordinary engines overlap neither, and the best of them reach 55 to 77 % of it.
Experts are touched as under uniform routing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from batchgen.cost.experts import touched_experts
from batchgen.model import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseSum:
    """A model on one device with a rate of products and a bandwidth."""

    model: ModelSpec
    matmul_flops_per_s: float
    memory_bytes_per_s: float

    def pass_s(
        self,
        *,
        decodes: int,
        context_tokens: int,
        chunk_tokens: int = 0,
        chunk_pairs: int = 0,
        samples: int | None = None,
    ) -> float:
        """Seconds of a pass. `context_tokens`: KV that the decoding rows read, all together;
        `chunk_pairs`: the sum of (start + length)^2 - start^2 over the chunks; `samples`: tokens
        whose logits are made (None: those of the decoding rows)."""
        tokens = decodes + chunk_tokens
        if not tokens:
            return 0.0
        read = context_tokens * self.model.kv_bytes_per_token
        pairs = chunk_pairs * self.model.num_layers * self.model.prefill_flops_per_pair
        products = self._products_s(tokens, decodes if samples is None else samples)
        return products + read / self.memory_bytes_per_s + pairs / self.matmul_flops_per_s

    def steady_output_tokens_per_s(
        self, *, prompt_tokens: int, output_tokens: int, rows: int
    ) -> float:
        """Output tokens per second of `rows` rows of one shape that are replaced as they end: each
        decodes at a mean context, and prompts are computed beside it, at the rate of products."""
        context = prompt_tokens + (output_tokens + 1) / 2
        step_s = self.pass_s(decodes=rows, context_tokens=round(rows * context))
        flops = self.model.flops_per_token()
        layers = sum(count for name, count in flops.items() if name != "lm_head")
        scores = prompt_tokens**2 * self.model.num_layers * self.model.prefill_flops_per_pair
        prompt_s = (prompt_tokens * layers + scores) / self.matmul_flops_per_s
        return output_tokens / (output_tokens * step_s / rows + prompt_s)

    def _products_s(self, tokens: int, samples: int) -> float:
        model = self.model
        weights = dict(model.weight_bytes_by_module())
        if model.is_moe:
            touched = float(
                touched_experts(np.array(float(tokens)), model.num_experts, model.top_k)
            )
            weights["experts"] = round(weights["experts"] * touched / model.num_experts)
        read = sum(weights.values())
        if not model.tied:  # an embedding is looked up, not read
            read -= model.embedding_parameters * 2
        flops = {
            name: count * (samples if name == "lm_head" else tokens)
            for name, count in model.flops_per_token().items()
        }
        return max(read / self.memory_bytes_per_s, sum(flops.values()) / self.matmul_flops_per_s)

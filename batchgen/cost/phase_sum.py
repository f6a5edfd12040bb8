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

from batchgen.cost.api import FloatArray, IntArray
from batchgen.cost.experts import touched_experts
from batchgen.cost.list_schedule import Passes
from batchgen.model import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """Seconds of passes by phase, float64 [num_passes] each."""

    products: FloatArray
    kv: FloatArray
    scores: FloatArray

    @property
    def total(self) -> FloatArray:
        return self.products + self.kv + self.scores


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseSum:
    """A model on one device with a rate of products and a bandwidth."""

    model: ModelSpec
    matmul_flops_per_s: float
    memory_bytes_per_s: float

    def phases_s(self, passes: Passes) -> Phases:
        """Seconds of each pass; one without tokens takes none."""
        model = self.model
        per_pair = model.num_layers * model.prefill_flops_per_pair
        return Phases(
            products=self._products_s(passes.decodes + passes.chunk_tokens, passes.samples),
            kv=np.asarray(passes.context * (model.kv_bytes_per_token / self.memory_bytes_per_s)),
            scores=np.asarray(passes.chunk_pairs * (per_pair / self.matmul_flops_per_s)),
        )

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
        one = Passes.of(
            [
                (
                    decodes,
                    context_tokens,
                    chunk_tokens,
                    chunk_pairs,
                    decodes if samples is None else samples,
                )
            ]
        )
        return float(self.phases_s(one).total[0])

    def steady_s(self, *, prompt_tokens: int, output_tokens: int, rows: int) -> Phases:
        """Seconds of a row, by phase, when `rows` rows of one shape are replaced as they end, at
        the least: prompts are spread so that their FLOPs hide behind weights wherever a pass has
        room for that. No list schedule of such rows, from the first pass to the last, is faster.

        A prompt gives the first token, decodes the others. Weights are read once for at most
        `rows` decodes; experts that fewer rows touch are more for each.
        """
        model = self.model
        decodes = output_tokens - 1
        one = np.array([rows], dtype=np.int64)
        read = self._read_s(one) * (decodes / rows)
        tokens, samples = (np.array([n]) for n in (decodes + prompt_tokens, output_tokens))
        context = decodes * (prompt_tokens + output_tokens / 2)
        scores = prompt_tokens**2 * model.num_layers * model.prefill_flops_per_pair
        return Phases(
            products=np.maximum(read, self._flops_s(tokens, samples)),
            kv=np.array([context * (model.kv_bytes_per_token / self.memory_bytes_per_s)]),
            scores=np.array([scores / self.matmul_flops_per_s]),
        )

    def steady_output_tokens_per_s(
        self, *, prompt_tokens: int, output_tokens: int, rows: int
    ) -> float:
        """Output tokens per second of `steady_s`."""
        one = self.steady_s(prompt_tokens=prompt_tokens, output_tokens=output_tokens, rows=rows)
        return output_tokens / float(one.total[0])

    def _products_s(self, tokens: IntArray, samples: IntArray) -> FloatArray:
        times = np.maximum(self._read_s(tokens), self._flops_s(tokens, samples))
        return np.where(tokens > 0, times, 0.0)

    def _read_s(self, tokens: IntArray) -> FloatArray:
        """Seconds to read the weights for passes of so many tokens."""
        model = self.model
        weights = dict(model.weight_bytes_by_module())
        experts = weights.pop("experts", 0)
        read = np.full(len(tokens), float(sum(weights.values())))
        if model.is_moe:
            touched = touched_experts(tokens.astype(np.float64), model.num_experts, model.top_k)
            read += np.rint(experts * touched / model.num_experts)
        else:
            read += experts
        if not model.tied:  # an embedding is looked up, not read
            read -= weights["embedding"]
        return read / self.memory_bytes_per_s

    def _flops_s(self, tokens: IntArray, samples: IntArray) -> FloatArray:
        """Seconds of the products of so many tokens, and of the logits of `samples` of them."""
        flops = self.model.flops_per_token()
        head = flops.pop("lm_head", 0)
        total = tokens * float(sum(flops.values())) + samples * float(head)
        return total / self.matmul_flops_per_s

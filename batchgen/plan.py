"""The plan: the static part of a run, chosen before it starts. The runtime only reads it.

A plan is data. `batchgen.cost.capacity` computes the sizes in it from a model, a machine and a
layout.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """One engine: the ranks that step together under one pass counter.

    `num_ranks` is the number of scheduling ranks: 1 for a tensor-parallel group (one KV pool, split
    by heads), the DP-attention degree for a lockstep engine (one KV pool per rank).
    `hbm_pages` is per rank.
    """

    engine: int
    node: int
    num_ranks: int = 1
    gpus_per_rank: int = 1
    hbm_pages: int

    @property
    def num_gpus(self) -> int:
        return self.num_ranks * self.gpus_per_rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything static that the runtime and both backends agree on before the first event.

    Sizes are in pages of `page_tokens` tokens; `host_pages` has one entry per node (0: no host
    tier). `token_budget` and `max_num_seqs` are per rank and pass. `b_attn` and `b_moe` are
    sub-batch sizes in sequences and tokens (0: the whole batch at once). `max_context` is in
    tokens.
    """

    page_tokens: int
    boundary: int
    engines: tuple[EngineSpec, ...]
    host_pages: tuple[int, ...]
    token_budget: int
    max_num_seqs: int
    max_context: int
    b_attn: int = 0
    b_moe: int = 0
    depth: int = 1

    def __post_init__(self) -> None:
        for name in ("page_tokens", "boundary", "token_budget", "max_num_seqs", "max_context"):
            if getattr(self, name) < 1:
                raise ValueError(f"plan.{name} must be at least 1, got {getattr(self, name)}")
        if self.depth != 1:
            raise ValueError(
                f"plan.depth must be 1 (pipelined steps are not built), got {self.depth}"
            )

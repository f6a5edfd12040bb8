"""The plan: the static part of a run, chosen before it starts. The runtime only reads it.

A plan is data. `batchgen.cost.capacity` computes the sizes in it from a model, a machine and a
layout.
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_SIZE = 1 << 24
"""Of anything that is counted in rows, tokens or passes: far above what a machine takes, far below
what overflows."""
MOST_PAGE_TOKENS = 1 << 17
"""Every rank counts the rows of every residue of a page."""

ROLES = ("both", "prefill", "decode")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """One engine: the ranks that step together under one pass counter.

    `num_ranks` is the number of scheduling ranks: 1 for a tensor-parallel group (one KV pool, split
    by heads), the DP-attention degree for a lockstep engine (one KV pool per rank).
    `hbm_pages` is per rank, `host_pages` the engine's share of its node's host memory. An engine of
    role "prefill" hands its rows over to one of role "decode" when their prompts are complete.
    """

    engine: int
    node: int
    num_ranks: int = 1
    gpus_per_rank: int = 1
    hbm_pages: int
    host_pages: int = 0
    role: str = "both"

    @property
    def num_gpus(self) -> int:
        return self.num_ranks * self.gpus_per_rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything static that the runtime and both backends agree on before the first event.

    Sizes are in pages of `page_tokens` tokens. `token_budget` and `max_num_seqs` are per rank and
    pass; no pass holds more tokens, so that its workspace can be planned. `b_attn` and `b_moe` are
    sub-batch sizes in sequences and tokens (0: the whole batch at once). `max_context` is in
    tokens. `depth` is the number of steps that may be launched at once, 1 or 2: with 2 a pass is
    decided while the one before it runs, and outcomes are known one pass later.
    """

    page_tokens: int
    boundary: int
    engines: tuple[EngineSpec, ...]
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
        if self.depth not in (1, 2):
            raise ValueError(f"plan.depth must be 1 or 2, got {self.depth}")
        roles = [spec.role for spec in self.engines]
        for role in roles:
            if role not in ROLES:
                raise ValueError(f"an engine's role must be one of {ROLES}, got {role!r}")
        if ("prefill" in roles) != ("decode" in roles) or len({*roles} - {"both"}) == 1:
            raise ValueError("engines that prefill need engines that decode, and the other way")
        if "both" in roles and "prefill" in roles:
            raise ValueError("either all engines do both, or each prefills or decodes")

    @property
    def lag(self) -> int:
        """Passes between a pass and the first decision that knows its outcome, less one."""
        return self.depth - 1

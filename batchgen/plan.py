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

MOST_RANKS = 1 << 14
MOST_PAGES = 1 << 48

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

    def __post_init__(self) -> None:
        for name, least, most in (
            ("engine", 0, MOST_SIZE),
            ("node", 0, MOST_SIZE),
            ("num_ranks", 1, MOST_RANKS),
            ("gpus_per_rank", 1, MOST_RANKS),
            ("hbm_pages", 0, MOST_PAGES),
            ("host_pages", 0, MOST_PAGES),
        ):
            _check("engine", self, name, least, most)

    @property
    def num_gpus(self) -> int:
        return self.num_ranks * self.gpus_per_rank


def _check(what: str, spec: object, name: str, least: int, most: int) -> None:
    """Sizes that a machine can have; a plan may come from a file."""
    value = getattr(spec, name)
    if not least <= value <= most:
        raise ValueError(f"{what}.{name} must be from {least} to {most}, got {value}")


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
        for name, least, most in (
            ("page_tokens", 1, MOST_PAGE_TOKENS),
            ("boundary", 1, MOST_SIZE),
            ("token_budget", 1, MOST_SIZE),
            ("max_num_seqs", 1, MOST_SIZE),
            ("max_context", 1, 2**31 - 1),
            ("b_attn", 0, MOST_SIZE),
            ("b_moe", 0, MOST_SIZE),
            ("depth", 1, 2),
        ):
            _check("plan", self, name, least, most)
        if [spec.engine for spec in self.engines] != list(range(len(self.engines))):
            raise ValueError("engines must be numbered 0, 1, 2, ... in this order")
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

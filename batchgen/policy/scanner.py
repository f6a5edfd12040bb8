"""The dual scanner: how two units at the ends of an order share memory and steps. Formulas only.

Source: BlendServe (arXiv 2411.16102), section 5.3 and algorithm 3.
"""

from __future__ import annotations

from typing import NamedTuple

from batchgen.policy.arrangement import Unit


class Split(NamedTuple):
    """KV tokens and prompt tokens per step of the left and the right unit."""

    left_kv: float
    right_kv: float
    left_prompts: float
    right_prompts: float


def split(
    left: Unit, right: Unit, whole: float, kv_tokens: float, step_tokens: float
) -> Split | None:
    """How `kv_tokens` are shared so that both units together have the density `whole`; None: one
    density, nothing to blend. A `whole` beyond both gives all to the nearer one. Prompts per step
    keep as many rows decoding as the memory of a unit holds at half of their outputs, at most
    `step_tokens` and at least one."""
    if not left.density > right.density:
        return None
    if left.density == float("inf"):  # prompts alone: they take no memory that counts
        share = 0.5
    else:
        share = (whole - right.density) / (left.density - right.density)
    share = min(max(share, 0.0), 1.0)
    kv = kv_tokens * share, kv_tokens * (1.0 - share)
    prompts = [
        min(
            max(
                part
                / (one.prompt_tokens + one.output_tokens / 2)
                * one.prompt_tokens
                / max(one.output_tokens, 1.0),
                1.0,
            ),
            step_tokens,
        )
        for part, one in zip(kv, (left, right), strict=True)
    ]
    return Split(kv[0], kv[1], prompts[0], prompts[1])

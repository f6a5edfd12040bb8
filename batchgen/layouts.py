"""The layouts that a model can take on a number of GPUs. It does not rank them.

Left out is only what another candidate does as well: lockstep ranks of a dense model (independent
engines do the same without waiting for each other), and a layout whose passes and pools are those
of one that is listed. Stages of lockstep ranks are not simulated. Experts lie whole on the GPUs of
an engine, or each is cut over all of them: engines offer nothing in between (vLLM: experts over all
ranks or none).
"""

from __future__ import annotations

from collections.abc import Iterator

from batchgen.layout import Layout
from batchgen.model import ModelSpec

MOST_STAGES = 8
"""Of a pipeline. Bubbles and hops only grow with more, while every stage has fewer layers."""


def candidates(
    model: ModelSpec, num_gpus: int, gpus_per_node: int, *, pipelines: bool = False
) -> list[Layout]:
    """All of them, small engines first: tp a power of two that divides the attention heads, engines
    that fill nodes evenly or are whole nodes; pipelines: and stages of the layers on one rank each.
    Whether they fit, and whether engines beyond `batchgen.layout.MAX_INSTANCE_GPUS` are wanted, is
    the caller's to say."""
    found: list[Layout] = []
    for size in (n for n in range(1, num_gpus + 1) if num_gpus % n == 0):
        if gpus_per_node % size and size % gpus_per_node:
            continue
        for tp in (1 << bit for bit in range(size.bit_length())):
            if size % tp or model.num_heads % tp:
                continue
            if pipelines and 1 < size // tp <= min(MOST_STAGES, model.num_layers):
                found += _stages(model, tp, size // tp, num_gpus // size)
            if tp < size and not model.is_moe:
                continue
            whole = [size] if model.is_moe and 1 < size <= model.num_experts else []
            found += [
                Layout(tp=tp, attention_dp=size // tp, ep=ep, num_engines=num_gpus // size)
                for ep in (*whole, 1)
            ]
    return found


def _stages(model: ModelSpec, tp: int, stages: int, pipelines: int) -> Iterator[Layout]:
    """Pipelines of `tp` GPUs a stage, with whole or cut experts."""
    whole = [tp] if model.is_moe and 1 < tp <= model.num_experts else []
    for ep in (*whole, 1):
        yield Layout(tp=tp, ep=ep, pp=stages, num_engines=pipelines)

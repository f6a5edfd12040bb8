"""The layouts that a model can take on a number of GPUs. It does not rank them.

Left out is only what another candidate does as well: lockstep ranks of a dense model (independent
engines do the same without waiting for each other), and a layout whose passes and pools are those
of one that is listed. Experts lie whole on the GPUs of an engine, or each is cut over all of them:
engines offer nothing in between (vLLM: experts over all ranks or none).
"""

from __future__ import annotations

from batchgen.layout import Layout
from batchgen.model import ModelSpec


def candidates(model: ModelSpec, num_gpus: int, gpus_per_node: int) -> list[Layout]:
    """All of them, small engines first: tp a power of two that divides the attention heads, engines
    that fill nodes evenly or are whole nodes. Whether they fit, and whether engines beyond
    `batchgen.layout.MAX_INSTANCE_GPUS` are wanted, is the caller's to say."""
    found = []
    for size in (n for n in range(1, num_gpus + 1) if num_gpus % n == 0):
        if gpus_per_node % size and size % gpus_per_node:
            continue
        for tp in (1 << bit for bit in range(size.bit_length())):
            if size % tp or model.num_heads % tp or (tp < size and not model.is_moe):
                continue
            whole = [size] if model.is_moe and 1 < size <= model.num_experts else []
            found += [
                Layout(tp=tp, attention_dp=size // tp, ep=ep, num_engines=num_gpus // size)
                for ep in (*whole, 1)
            ]
    return found

"""Pipelines: which layers of a model each stage has. No memory and no speed here."""

from __future__ import annotations

from dataclasses import replace

from batchgen.model import ModelSpec


def stage_layers(num_layers: int, stages: int) -> list[tuple[int, int]]:
    """(first layer, end) of every stage. Layers that are left over go one each to the stages just
    before the last, which has the head to do."""
    each, over = divmod(num_layers, stages)
    spans, begin = [], 0
    for stage in range(stages):
        more = stages - 1 - over <= stage < stages - 1
        end = begin + each + more
        spans.append((begin, end))
        begin = end
    return spans


def stage_models(model: ModelSpec, stages: int) -> list[ModelSpec]:
    """The model of every stage: its layers, with embedding and head as if it had them.

    Windowed layers are spread evenly; a stage that would have nothing else counts them as full,
    like a model of windowed layers alone.
    """
    if stages == 1:
        return [model]
    layers, windowed = model.num_layers, model.window_layers
    return [
        replace(
            model,
            num_layers=end - begin,
            first_k_dense=max(0, min(model.first_k_dense, end) - begin),
            window_layers=windowed * end // layers - windowed * begin // layers,
        )
        for begin, end in stage_layers(layers, stages)
    ]

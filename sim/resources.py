"""What the GPUs of a run were busy with: the modules of its passes by the resource that they wait
for. It reads what was recorded.

A pass takes the sum of its modules; one that waits for a host link or a CPU beside them takes the
longest of these. Layers count as floating-point work where the FLOPs of their pass take longer at
the GPU's peak than its bytes at the bandwidth of its memory, else as memory traffic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from batchgen.report.limits import BESIDE, LAYERS, RESOURCES

if TYPE_CHECKING:
    from batchgen.cost.api import CostModel, PassLoad
    from batchgen.hardware import GpuSpec
    from batchgen.sim.setup import Setup


def resources_s(ready: Setup, gpu: GpuSpec) -> dict[str, float]:
    """Seconds per resource, mean over GPUs; a mean pass stands for the passes of a step, and the
    engine's own layout for those of its tail."""
    machine, recorder = ready.machine, ready.simulation.recorder
    cost = machine.planner.home
    totals, load = recorder.mean_loads(cost.num_ranks)
    if not len(totals["passes"]):
        return {}
    parts = _by_resource(cost, load, gpu, machine.model.weight_dtype)
    weight = machine.layout.gpus_per_stage / machine.layout.num_gpus / 1e12
    return {
        name: float((part * totals["passes"]).sum() * weight)
        for name, part in parts.items()
        if part.any()
    }


def _by_resource(cost: CostModel, load: PassLoad, gpu: GpuSpec, dtype: str) -> dict[str, Any]:
    """ps of each mean pass by resource."""
    found = {name: np.zeros(load.num_passes) for name in RESOURCES}
    modules = {name: part.astype(float) for name, part in cost.breakdown(load).items()}
    computes = cost.flops(load) / gpu.peak_for(dtype) > cost.hbm_bytes(load) / gpu.hbm_bytes_per_s
    layers = np.zeros(load.num_passes)
    for name, part in modules.items():
        if name in BESIDE:
            continue
        if name in LAYERS:
            found[LAYERS[name]] += part
        else:
            layers += part
    found["compute"] += np.where(computes, layers, 0.0)
    found["memory"] += np.where(computes, 0.0, layers)
    on_gpu = sum(found.values())
    # What runs beside the GPU's own work: the longest takes the whole pass.
    for name in BESIDE:
        beside = modules.get(name)
        if beside is None:
            continue
        longer = beside > on_gpu
        for resource in found:
            found[resource] = np.where(longer, 0.0, found[resource])
        found[BESIDE[name]] = np.where(longer, beside, found[BESIDE[name]])
        on_gpu = np.maximum(on_gpu, beside)
    return found

"""What the links between the memories of a node give one of its GPUs. It knows no passes.

    host link   min(own link x host_link, what the node gives / GPUs of the node) x host_copies
    disk        what the disks of the node give / GPUs of the node

GPUs of the node: those that the job has there, as if all of them copied at any time. A share that
followed who copies just now would be nearer the truth when few engines are left.
"""

from __future__ import annotations

from dataclasses import dataclass

from batchgen.cost.efficiency import Efficiency
from batchgen.hardware import GpuSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class TierRates:
    """Bytes per second of one GPU: its host link, each direction, and its part of the disks."""

    host: float
    disk_read: float
    disk_write: float


def tier_rates(gpu: GpuSpec, efficiency: Efficiency, gpus_of_node: int) -> TierRates:
    """With so many GPUs of the job on a node."""
    gpus = max(1, gpus_of_node)
    node = efficiency.node_host_bytes_per_s or gpu.node_host_bytes_per_s
    link = min(gpu.host_bytes_per_s * efficiency.host_link, node / gpus)
    return TierRates(
        host=link * efficiency.host_copies,
        disk_read=(efficiency.disk_read_bytes_per_s or gpu.disk_read_bytes_per_s) / gpus,
        disk_write=(efficiency.disk_write_bytes_per_s or gpu.disk_write_bytes_per_s) / gpus,
    )

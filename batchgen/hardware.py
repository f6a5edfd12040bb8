"""What a machine gives: peaks, bandwidths, links, memory, price. It knows no achieved fractions.

Numbers come from the catalog (`catalog/hardware.yaml`), a source beside each; what kernels reach of
them is in `batchgen.cost.efficiency`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSpec:
    """One GPU and its share of a node. Link rates are bytes per second, one direction, per GPU.

    `peak_flops` maps a compute dtype (bf16, fp8, fp4) to dense FLOP/s. `host_bytes` is the memory
    of the whole node, `host_bytes_per_s` the raw PCIe rate (or C2C) of one GPU. Of the whole node
    too: `node_host_bytes_per_s`, what all its GPUs together copy from or to the host, and disks.
    """

    name: str
    peak_flops: Mapping[str, float]
    hbm_bytes: int
    hbm_bytes_per_s: float
    intra_bytes_per_s: float
    intra_latency_s: float
    inter_bytes_per_s: float
    inter_latency_s: float
    host_bytes: int
    host_bytes_per_s: float
    node_host_bytes_per_s: float
    disk_bytes: int
    disk_read_bytes_per_s: float
    disk_write_bytes_per_s: float
    gpus_per_node: int
    price_per_hour_usd: float

    def __post_init__(self) -> None:
        if "bf16" not in self.peak_flops:
            raise ValueError(f"hardware {self.name}: peak_flops must hold bf16")
        for field in (
            "hbm_bytes",
            "hbm_bytes_per_s",
            "intra_bytes_per_s",
            "inter_bytes_per_s",
            "host_bytes_per_s",
            "node_host_bytes_per_s",
            "disk_bytes",
            "disk_read_bytes_per_s",
            "disk_write_bytes_per_s",
            "gpus_per_node",
        ):
            if getattr(self, field) <= 0:
                raise ValueError(f"hardware {self.name}: {field} must be positive")

    def peak_for(self, weight_dtype: str) -> float:
        """Dense FLOP/s for linear layers whose weights are stored as `weight_dtype`.

        A dtype without matrix units of its own is computed in bf16 (weight-only quantisation);
        mxfp4 runs as fp8 by fp4 where there are fp4 units, and as bf16 elsewhere.
        """
        if weight_dtype == "mxfp4":
            usable = "fp4" in self.peak_flops and "fp8" in self.peak_flops
            return self.peak_flops["fp8" if usable else "bf16"]
        if weight_dtype == "nvfp4":
            return self.peak_flops.get("fp4", self.peak_flops["bf16"])
        if weight_dtype == "fp32":
            return self.peak_flops.get("fp32", self.peak_flops["bf16"])
        return self.peak_flops.get(weight_dtype, self.peak_flops["bf16"])


def load_gpu(name: str) -> GpuSpec:
    """A GPU by catalog name (any case, aliases); UserError with the closest names otherwise."""
    from batchgen.catalog.loader import find_gpu

    return find_gpu(name)


def gpu_price(name: str) -> tuple[float, str]:
    """US dollars of a GPU-hour in the catalog, and where that is from."""
    from batchgen.catalog.loader import price_of

    return price_of(name)


def gpu_names() -> list[str]:
    """Names of the catalog, in its order."""
    from batchgen.catalog.loader import catalog_gpu_names

    return catalog_gpu_names()

"""What a measurement ran on, for documents: processor or GPU, versions. Measures nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

import batchgen

DRIVER_FILE = Path("/proc/driver/nvidia/version")


def machine_facts(device: str, dtype: str) -> dict[str, Any]:
    """JSON of the machine; of a GPU what torch and the driver tell, None where they do not."""
    facts: dict[str, Any] = {
        "device": device,
        "name": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "dtype": dtype,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "batchgen": batchgen.__version__,
    }
    if device == "cuda":
        facts |= gpu_facts() | {"processor": facts["name"]}
    return facts


def gpu_facts() -> dict[str, Any]:
    """The first GPU; `name` is its own."""
    found = torch.cuda.get_device_properties(0)
    return {
        "name": found.name,
        "compute_capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "memory_bytes": found.total_memory,
        "l2_bytes": getattr(found, "L2_cache_size", None),
        # kHz: the highest clocks; newer versions of torch tell them, older ones do not.
        "clock_khz": getattr(found, "clock_rate", None),
        "memory_clock_khz": getattr(found, "memory_clock_rate", None),
        "driver": driver_version(),
        "cuda": torch.version.cuda,
        "triton": _version_of("triton"),
    }


def driver_version(file: Path = DRIVER_FILE) -> str | None:
    """The NVIDIA driver's, from the kernel's file; None where there is none."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", text)
    return None if found is None else found.group()


def processor_name() -> str:
    """From /proc/cpuinfo, or what the platform module knows."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def processor_flags() -> str:
    """Those instruction sets of the processor that decide which products run, sorted; "" where the
    system does not say."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return ""
    for line in path.read_text(errors="replace").splitlines():
        if line.startswith("flags"):
            found = line.partition(":")[2].split()
            return " ".join(sorted(one for one in found if one.startswith(("avx", "amx", "fma"))))
    return ""


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

"""How much memory this process may still take, of the machine and of the container it is in; and
how much it has."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path


def free_memory_bytes(root: Path = Path("/")) -> int:
    """The least of what the system and every memory control group above this process leave free.

    Cached files count as free: the kernel takes them back. `root` is where /proc and /sys are.
    """
    limits = [_machine_bytes(root), *_group_bytes(root)]
    return max(0, min(limits))


def resident_bytes(root: Path = Path("/")) -> int:
    """Memory of this process now; where the system does not tell, the most that it has had."""
    try:
        pages = (root / "proc/self/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return peak_resident_bytes()


def peak_resident_bytes() -> int:
    """The most memory that this program has had; where the system tells only that, the process,
    which may have been a larger program before."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _machine_bytes(root: Path) -> int:
    try:
        for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass  # not Linux: pages that nothing uses at all
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _group_bytes(root: Path) -> Iterator[int]:
    """Limit less usage of each control group with a limit, versions 1 and 2.

    In a container the path of the group may be that of the host, which is not mounted here; the top
    of the mount is the container's own group then, and it is always among those looked at.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    mount = root / "sys/fs/cgroup"
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            top, names = mount, ("memory.max", "memory.current", "inactive_file ")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
            top = mount / "memory"
        else:
            continue
        folder = top / path.strip("/")
        while True:
            free = _one_group(folder, *names)
            if free is not None:
                yield free
            if folder == top or top not in folder.parents:
                break
            folder = folder.parent


def _one_group(folder: Path, limit: str, usage: str, cached: str) -> int | None:
    try:
        most = (folder / limit).read_text(encoding="ascii").strip()
        if most == "max":
            return None
        used = int((folder / usage).read_text(encoding="ascii"))
        stat = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
        files = sum(int(line.split()[1]) for line in stat if line.startswith(cached))
        return int(most) - used + files
    except (OSError, ValueError, IndexError):
        return None

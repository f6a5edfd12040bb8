"""What a CUDA machine can do at most: device, link, host memory, disk; below 20 s.

    python3 benchmarks/gpu/ceilings.py [--out JSON] [--folder DIR] [--quick]

Bandwidths of copies count bytes read plus bytes written, those of the link and the disk bytes once.
Every figure is the median of several runs; products are of random numbers, since zeros run faster.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from batchgen.exec.kernels.timing import median_s

COPY_BYTES = 4 << 30  # far beyond the cache; both buffers fit beside anything
MATMUL_SIDE = 8192
LINK_BYTES = 1 << 30
HOST_BYTES = 1 << 30  # beyond the caches of any processor
DISK_BYTES = 1 << 30
DISK_S = 5.0  # after which a slow disk is not asked again
PIECE_BYTES = 16 << 20
RUNS = 5

Runs = list[float]


def device_copy() -> Runs:
    """Bytes/s that a copy on the device reads and writes."""
    source = torch.empty(COPY_BYTES // 4, dtype=torch.float32, device="cuda").normal_()
    target = torch.empty_like(source)

    def by_driver() -> object:
        return target.copy_(source)

    def by_kernel() -> object:  # on some GPUs faster than what the driver does
        return torch.mul(source, 1.0, out=target)

    median_s([by_driver], repeats=20, graph=False)  # a GPU that idled runs slowly at first
    found = [
        [2 * COPY_BYTES / median_s([way], repeats=7, graph=False) for _ in range(RUNS)]
        for way in (by_driver, by_kernel)
    ]
    return max(found, key=statistics.median)


def matmul() -> Runs:
    """FLOP/s of a square product of random bfloat16 numbers."""
    shape = (MATMUL_SIDE, MATMUL_SIDE)
    a, b = (torch.randn(shape, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    out = torch.empty_like(a)
    calls = [lambda: torch.mm(a, b, out=out)]
    return [2 * MATMUL_SIDE**3 / median_s(calls, repeats=10) for _ in range(RUNS)]


def _pinned() -> torch.Tensor:
    return torch.empty(LINK_BYTES, dtype=torch.uint8, pin_memory=True).fill_(1)


def _link(*turns: tuple[torch.Tensor, torch.Tensor]) -> Runs:
    """Bytes/s of all copies (target, source) together, each on a stream of its own."""
    streams = [torch.cuda.Stream() for _ in turns]
    found = []
    for _ in range(RUNS + 1):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for stream, (target, source) in zip(streams, turns, strict=True):
            with torch.cuda.stream(stream):
                target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        found.append(len(turns) * LINK_BYTES / (time.perf_counter() - begin))
    return found[1:]  # the first one warms up


def to_device() -> Runs:
    """Bytes/s from pinned memory to the device."""
    return _link((torch.empty(LINK_BYTES, dtype=torch.uint8, device="cuda"), _pinned()))


def from_device() -> Runs:
    """Bytes/s from the device to pinned memory."""
    return _link((_pinned(), torch.ones(LINK_BYTES, dtype=torch.uint8, device="cuda")))


def both_ways() -> Runs:
    """Bytes/s of both directions together, at the same time."""
    up, down = (torch.ones(LINK_BYTES, dtype=torch.uint8, device="cuda") for _ in range(2))
    return _link((up, _pinned()), (_pinned(), down))


def host_copy() -> Runs:
    """Bytes/s that a copy in host memory reads and writes, with the threads of this process."""
    source = torch.ones(HOST_BYTES, dtype=torch.uint8)
    target = torch.ones_like(source)
    return [2 * HOST_BYTES / _wall_s(lambda: target.copy_(source)) for _ in range(RUNS + 1)][1:]


def disk(folder: Path) -> Iterator[tuple[str, Runs]]:
    """Bytes/s written until the disk has them, and read with the file out of the page cache."""
    path = folder / f"ceilings-{os.getpid()}.bin"
    piece = os.urandom(PIECE_BYTES)  # disks and file systems may squeeze what repeats
    writes: Runs = []
    reads: Runs = []
    begin = time.perf_counter()
    try:
        while not writes or (len(writes) < 3 and time.perf_counter() - begin < DISK_S):
            writes.append(DISK_BYTES / _wall_s(lambda: _write(path, piece)))
            reads.append(DISK_BYTES / _wall_s(lambda: _read(path)))
    finally:
        path.unlink(missing_ok=True)
    yield "disk_write", writes
    yield "disk_read", reads


def _write(path: Path, piece: bytes) -> None:
    with path.open("wb", buffering=0) as file:
        for _ in range(DISK_BYTES // PIECE_BYTES):
            file.write(piece)
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read(path: Path) -> None:
    """Around the page cache where the file system allows it, else with it asked to forget."""
    buffer = mmap.mmap(-1, PIECE_BYTES)  # at a page's boundary, as direct reads want it
    try:
        number = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        number = os.open(path, os.O_RDONLY)
    try:
        while os.readv(number, [buffer]):
            pass
    finally:
        os.close(number)


def _wall_s(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


DEVICE: dict[str, Callable[[], Runs]] = {"device_copy": device_copy, "matmul_bf16": matmul}
HOST: dict[str, Callable[[], Runs]] = {
    "to_device": to_device,
    "from_device": from_device,
    "both_ways": both_ways,
    "host_copy": host_copy,
}
UNITS = {"matmul_bf16": "FLOP/s"}


def measure(folder: Path | None) -> dict[str, dict[str, Any]]:
    """By name: unit, median and runs, or the error. Without a folder only those of the device."""
    found: dict[str, dict[str, Any]] = {}
    parts = DEVICE if folder is None else DEVICE | HOST
    for name, part in parts.items():
        try:
            found[name] = _entry(name, part())
        except Exception as error:  # one that fails must not cost the others
            found[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
        torch.cuda.empty_cache()
    if folder is not None:
        try:
            found |= {name: _entry(name, runs) for name, runs in disk(folder)}
        except OSError as error:
            found["disk"] = {"error": str(error)[:300]}
    return found


def _entry(name: str, runs: Runs) -> dict[str, Any]:
    return {"unit": UNITS.get(name, "B/s"), "median": statistics.median(runs), "runs": runs}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--folder", type=Path, default=Path("."), help="on the disk to measure")
    parser.add_argument("--quick", action="store_true", help="those of the device alone")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: no CUDA device here", file=sys.stderr)
        return 2
    begin = time.perf_counter()
    found = measure(None if given.quick else given.folder)
    if given.out is not None:
        content = {"ceilings": found, "seconds": round(time.perf_counter() - begin, 2)}
        given.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for name, entry in found.items():
        shown = entry.get("error") or f"{entry['median'] / 1e9:12,.1f} G{entry['unit']}"
        print(f"{name:12} {shown}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The compiled operations of the CPU: built from `native/` when first used, then kept.

Decides nothing: `exec.attention` and `exec.layers` have the same operations in torch, which run
where there is no compiler. The library is built by the machine's C++ compiler for its processor,
and kept in the user's cache folder under a digest of all that shapes it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from batchgen.exec.arena import KvArena
from batchgen.exec.batch import SegmentTable

FOLDER = Path(__file__).with_name("native")
FLAGS = ("-O3", "-std=c++17", "-march=native", "-fopenmp", "-fPIC", "-shared")
COMPILERS = ("g++", "c++")
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
MAX_GROUPS = 32  # query heads per kv head: TILE_QUERIES of native/attention.cpp
BUILD_TIMEOUT_S = 120.0
SWITCH = "BATCHGEN_COMPILED"


def is_compiled(dtype: torch.dtype, groups: int = 1) -> bool:
    """Whether the library covers `dtype` with `groups` query heads per kv head, and is there.

    Builds it if need be. False where it cannot be built and with BATCHGEN_COMPILED=0.
    """
    covered = dtype in KINDS and groups <= MAX_GROUPS and os.environ.get(SWITCH) != "0"
    return covered and _load() is not None


def attend(arena: KvArena, layer: int, q_TND: torch.Tensor, segments: SegmentTable) -> torch.Tensor:
    """Attention [T, N, D] of all tokens of a pass; KV of the pass is written already.

    Threads are those of torch. Raises ValueError where `is_compiled` says no.
    """
    library = _load()
    q_TND = q_TND.contiguous()
    out_TND = torch.empty_like(q_TND)
    _, layers, _, kv_heads, page_tokens, head_dim = arena.storage.shape
    sizes = (ctypes.c_int64 * 8)(
        *segments.tables.shape, layer, layers, q_TND.shape[1], kv_heads, page_tokens, head_dim
    )
    kind = KINDS[q_TND.dtype] if q_TND.dtype == arena.storage.dtype else -1
    if library is None or library.batchgen_paged_attention(
        kind,
        torch.get_num_threads(),
        q_TND.data_ptr(),
        arena.storage.data_ptr(),
        out_TND.data_ptr(),
        segments.tables.ctypes.data,
        segments.firsts.ctypes.data,
        segments.starts.ctypes.data,
        segments.lengths.ctypes.data,
        sizes,
    ):
        raise ValueError(f"no compiled attention for {tuple(q_TND.shape)} {q_TND.dtype}")
    return out_TND


def sparse_mlp(
    x_TH: torch.Tensor,
    router: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    top_k: int,
    renormalise: bool,
) -> torch.Tensor:
    """Routed experts [T, H]: router [E, H], gate_up [E, 2I, H], down [E, H, I], all contiguous.

    Raises ValueError where `is_compiled` says no.
    """
    library = _load()
    x_TH = x_TH.contiguous()
    out_TH = torch.empty_like(x_TH)
    experts, hidden, width = down.shape
    sizes = (ctypes.c_int64 * 6)(len(x_TH), hidden, width, experts, top_k, renormalise)
    if library is None or library.batchgen_experts(
        KINDS.get(x_TH.dtype, -1),
        torch.get_num_threads(),
        x_TH.data_ptr(),
        router.data_ptr(),
        gate_up.data_ptr(),
        down.data_ptr(),
        out_TH.data_ptr(),
        sizes,
    ):
        raise ValueError(f"no compiled experts for {x_TH.dtype}")
    return out_TH


@functools.cache
def _load() -> Any:
    """The library, or None."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), *COMPILERS))), None)
    if compiler is None:
        return None
    try:
        library = ctypes.CDLL(str(_build(compiler)))
    except (OSError, RuntimeError, subprocess.SubprocessError):  # RuntimeError: no home folder
        return None  # torch does the work, and run.json says so
    for function, pointers in (("batchgen_paged_attention", 8), ("batchgen_experts", 6)):
        entry = getattr(library, function)
        entry.restype = ctypes.c_int
        entry.argtypes = [ctypes.c_int, ctypes.c_int, *[ctypes.c_void_p] * pointers]
    return library


def _build(compiler: str) -> Path:
    """The library's path, built there unless it is there already."""
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, check=True, timeout=BUILD_TIMEOUT_S
    ).stdout
    files = sorted(file for file in FOLDER.iterdir() if file.suffix in (".cpp", ".h"))
    parts = (
        *(file.read_bytes() for file in files),
        version,
        " ".join(FLAGS).encode(),
        _processor().encode(),
    )
    digest = hashlib.blake2b(b"\0".join(parts), digest_size=12).hexdigest()
    target = _cache_folder() / f"native-{digest}.so"
    if target.is_file():
        return target
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        sources = [str(file) for file in files if file.suffix == ".cpp"]
        command = [compiler, *FLAGS, *sources, "-o", str(made)]
        subprocess.run(command, capture_output=True, check=True, timeout=BUILD_TIMEOUT_S)
        made.replace(target)  # at once: another process never sees half a file
    return target


def _cache_folder() -> Path:
    """A folder of this user that can be written."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "batchgen"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _processor() -> str:
    """What -march=native depends on: a home folder may serve machines of several kinds."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.machine() + platform.processor()

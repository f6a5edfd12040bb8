"""The compiled operations of the CPU: built from `native/` when first used, then kept.

Decides nothing: `exec.attention` and `exec.mlp` have the same operations in torch, which run where
there is no compiler. The library is built by the machine's C++ compiler for its processor,
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

FOLDER = Path(__file__).with_name("native")
FLAGS = ("-O3", "-std=c++17", "-march=native", "-fopenmp", "-fPIC", "-shared")
COMPILERS = ("g++", "c++")
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
BUILD_TIMEOUT_S = 120.0
SWITCH = "BATCHGEN_COMPILED"


def is_compiled(dtype: torch.dtype) -> bool:
    """Whether the library covers `dtype`, and is there.

    Builds it if need be. False where it cannot be built and with BATCHGEN_COMPILED=0.
    """
    covered = dtype in KINDS and os.environ.get(SWITCH) != "0"
    return covered and load_library() is not None


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
    return _experts(x_TH, router, None, None, gate_up, down, top_k, renormalise)


def chosen_experts(
    x_TH: torch.Tensor,
    weights_TK: torch.Tensor,
    experts_TK: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
) -> torch.Tensor:
    """As `sparse_mlp`, for experts that were chosen already. Raises ValueError as it does."""
    chosen = experts_TK.to(torch.int32).contiguous(), weights_TK.float().contiguous()
    return _experts(x_TH, None, *chosen, gate_up, down, experts_TK.shape[1], False)


def _experts(
    x_TH: torch.Tensor,
    router: torch.Tensor | None,
    experts_TK: torch.Tensor | None,
    weights_TK: torch.Tensor | None,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    top_k: int,
    renormalise: bool,
) -> torch.Tensor:
    library = load_library()
    x_TH = x_TH.contiguous()
    out_TH = torch.empty_like(x_TH)
    experts, hidden, width = down.shape
    sizes = (ctypes.c_int64 * 6)(len(x_TH), hidden, width, experts, top_k, renormalise)
    if library is None or library.batchgen_experts(
        KINDS.get(x_TH.dtype, -1),
        torch.get_num_threads(),
        x_TH.data_ptr(),
        *(0 if given is None else given.data_ptr() for given in (router, experts_TK, weights_TK)),
        gate_up.data_ptr(),
        down.data_ptr(),
        out_TH.data_ptr(),
        sizes,
    ):
        raise ValueError(f"no compiled experts for {x_TH.dtype}")
    return out_TH


@functools.cache
def load_library() -> Any:
    """The library, or None."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), *COMPILERS))), None)
    if compiler is None:
        return None
    try:
        library = ctypes.CDLL(str(_build(compiler)))
    except (OSError, RuntimeError, subprocess.SubprocessError):  # RuntimeError: no home folder
        return None  # torch does the work, and run.json says so
    for function, pointers, floats in (
        ("batchgen_paged_attention", 9, 1),
        ("batchgen_experts", 8, 0),
    ):
        entry = getattr(library, function)
        entry.restype = ctypes.c_int
        entry.argtypes = [
            *[ctypes.c_int] * 2,
            *[ctypes.c_void_p] * pointers,
            *[ctypes.c_float] * floats,
        ]
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

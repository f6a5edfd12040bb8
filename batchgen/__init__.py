"""batchgen: plan and run offline (batch) LLM inference.

The package root imports nothing heavy; backends load lazily, through the command line or
`run_batch` and `iter_batch`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchgen.errors import BatchgenError, Unfinished, UserError

if TYPE_CHECKING:
    from batchgen.api import BatchResult, RowResult, iter_batch, run_batch

__all__ = [
    "BatchResult",
    "BatchgenError",
    "RowResult",
    "Unfinished",
    "UserError",
    "__version__",
    "is_compiled",
    "iter_batch",
    "run_batch",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """What `batchgen.api` has, loaded when it is first asked for."""
    if name in ("BatchResult", "RowResult", "iter_batch", "run_batch"):
        from batchgen import api

        return getattr(api, name)
    raise AttributeError(f"module 'batchgen' has no attribute '{name}'")


def is_compiled() -> bool:
    """Whether the scheduler and the simulator run as C; see hatch_build.py. Decisions are equal."""
    from importlib.util import find_spec

    found = find_spec("batchgen.runtime.core")
    return found is not None and not str(found.origin).endswith(".py")

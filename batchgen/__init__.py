"""batchgen: plan and run offline (batch) LLM inference.

The package root imports nothing heavy; backends load lazily through the command line.
"""

from __future__ import annotations

from batchgen.errors import BatchgenError, UserError

__all__ = ["BatchgenError", "UserError", "__version__", "is_compiled"]

__version__ = "0.1.0"


def is_compiled() -> bool:
    """Whether the scheduler and the simulator run as C; see hatch_build.py. Decisions are equal."""
    from importlib.util import find_spec

    found = find_spec("batchgen.runtime.core")
    return found is not None and not str(found.origin).endswith(".py")

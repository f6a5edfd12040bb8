"""batchgen: plan and run offline (batch) LLM inference.

The package root imports nothing heavy; backends load lazily through the command line.
"""

from __future__ import annotations

from batchgen.errors import BatchgenError, UserError

__all__ = ["BatchgenError", "UserError", "__version__"]

__version__ = "0.1.0"

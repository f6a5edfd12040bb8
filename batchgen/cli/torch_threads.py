"""The thread settings of a process that is about to load torch. Loads nothing itself."""

from __future__ import annotations

import os


def calm_threads() -> None:
    """Let idle OpenMP threads sleep instead of spin; call before torch is imported.

    After each operation the threads of libgomp spin for the next one. Where other processes want
    the cores, they spin against each other: 12 rows on 2 threads of a busy 2-core machine took 25 s
    spinning and 1.6 s sleeping. What the user has set stands.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

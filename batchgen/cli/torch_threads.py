"""The thread settings of a process that is about to load torch. Loads nothing itself."""

from __future__ import annotations

import os

SPINS = 10_000  # some tens of microseconds


def calm_threads() -> None:
    """Let idle OpenMP threads spin briefly and then sleep; call before torch is imported.

    After each operation the threads of libgomp spin for the next one. Where other processes want
    the cores, they spin against each other: 12 rows on 2 threads of a busy 2-core machine took 25 s
    spinning and 1.6 s sleeping. Without any spinning the operations of a small model wait for
    sleepers: a decode step of `benchmarks/decode_step.py` with attention and experts in torch took
    167 ms sleeping at once, 81 ms with this many spins, 90 ms with endless ones (2 quiet cores).
    What the user has set stands.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))

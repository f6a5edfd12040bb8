"""How much a server takes. Data only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """file_bytes, rows: of one input file, OpenAI's by default. stored_bytes: of all files.
    unfinished: batches that may wait and run. slice_s: how long a batch has the engine while others
    wait, 0: to its end."""

    file_bytes: int = 200_000_000
    rows: int = 50_000
    stored_bytes: int = 50_000_000_000
    unfinished: int = 64
    slice_s: float = 300.0

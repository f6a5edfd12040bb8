"""A policy of one's own: rows with an even number come first. It changes nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from batchgen.policy.base import OrderPart, Part
from batchgen.policy.presets import Preset
from batchgen.sequence import Table


class EvensFirst(OrderPart):
    """Rows whose number is a multiple of `divisor`, then the others, each by number."""

    keyed = True
    changes = "never"  # the key of a row never changes

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        divisor: int = 2

    def key(self, table: Table, row: int) -> int:
        return row + (len(table) if row % self.config.divisor else 0)


EVENS = Preset(
    name="evens",
    parts={
        "recovery": "rehome",
        "phase": "mixed",
        "memory": "recompute-newest",
        "order": "evens-first",
        "admission": "fits-now",
        "batching": "chunks",
        "placement": "round-robin",
        "tail": "run-out",
        "predictor": "none",
    },
    page_tokens=16,
    source="a test of the plug-in mechanism",
)

"""How a job stands at one moment: the one object behind the display, the status file and events.
Data and its plain forms; it measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FORM = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the simulator said before the run: seconds in all, and the sequences and output tokens
    that it had finished by the time of the snapshot; `slower`: elapsed time over the time at which
    the simulator had as many output tokens, None before the first."""

    total_s: float
    sequences: int
    output_tokens: int
    slower: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """`rows` of the input, `done` and `failed` of them by all processes of the job, `earlier` of
    these by others than this one. Sequences are samples of rows: `running` have a place on the
    device, `waiting` have none yet or are suspended to the host.

    Tokens were computed by this process: `input_tokens` of prompts (again after a preemption too),
    `output_tokens` sampled; rates are those of the last seconds. `kv_pages`: leased in the last
    step, of `kv_pages_total`. phase: "fill", "steady" or "tail". left_s: (least, most), None as
    long as nothing is known. elapsed_s: since the first pass.
    """

    rows: int
    done: int
    failed: int
    earlier: int
    elapsed_s: float
    running: int
    waiting: int
    input_tokens: int
    output_tokens: int
    input_tokens_per_s: float
    output_tokens_per_s: float
    kv_pages: int
    kv_pages_total: int
    phase: str
    left_s: tuple[float, float] | None
    expected: Expected | None = None

    @property
    def mean_output_tokens_per_s(self) -> float:
        return self.output_tokens / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def kv_use(self) -> float:
        """Part of the pages that are leased."""
        return self.kv_pages / self.kv_pages_total if self.kv_pages_total else 0.0

    def as_json(self) -> dict[str, Any]:
        """The same as a JSON object: what the status file and `--json-events` have."""
        found: dict[str, Any] = {
            "form": FORM,
            "rows": self.rows,
            "done": self.done,
            "failed": self.failed,
            "earlier": self.earlier,
            "elapsed_s": round(self.elapsed_s, 3),
            "phase": self.phase,
            "running": self.running,
            "waiting": self.waiting,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "input_tokens_per_s": round(self.input_tokens_per_s, 1),
            "output_tokens_per_s": round(self.output_tokens_per_s, 1),
            "mean_output_tokens_per_s": round(self.mean_output_tokens_per_s, 1),
            "kv_pages": self.kv_pages,
            "kv_pages_total": self.kv_pages_total,
            "left_s": None if self.left_s is None else [round(one, 1) for one in self.left_s],
        }
        if self.expected is not None:
            one = self.expected
            found["expected"] = {
                "total_s": round(one.total_s, 3),
                "sequences": one.sequences,
                "output_tokens": one.output_tokens,
                "slower": None if one.slower is None else round(one.slower, 3),
            }
        return found


def snapshot_of(value: Mapping[str, Any]) -> Snapshot:
    """The snapshot that `as_json` wrote. Raises KeyError, TypeError or ValueError for others."""
    if value["form"] != FORM:
        raise ValueError(f"form {value['form']!r:.20}")
    left, expected = value["left_s"], value.get("expected")
    counts: tuple[str, ...] = ("rows", "done", "failed", "earlier", "running", "waiting")
    counts += ("input_tokens", "output_tokens", "kv_pages", "kv_pages_total")
    return Snapshot(
        **{name: int(value[name]) for name in counts},
        elapsed_s=float(value["elapsed_s"]),
        input_tokens_per_s=float(value["input_tokens_per_s"]),
        output_tokens_per_s=float(value["output_tokens_per_s"]),
        phase=str(value["phase"]),
        left_s=None if left is None else (float(left[0]), float(left[1])),
        expected=None if expected is None else Expected(**expected),
    )

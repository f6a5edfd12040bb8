"""What a backend hands to the reports: one finished run as columns. It computes no metric.

Both backends fill the same record, so that every table, plot and file means the same for a
simulated and a real run. Times are int64 picoseconds since the run's zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROW_COLUMNS = (
    "row",
    "prompt_tokens",
    "output_tokens",
    "engine",
    "rank",
    "arrival_ps",
    "first_token_ps",
    "end_ps",
    "preemptions",
    "recomputed_tokens",
    "adopted_tokens",
    "migrations",
    "suspensions",
    "status",
)
STEP_COLUMNS = (
    "engine",
    "q0",
    "passes",
    "start_ps",
    "duration_ps",
    "kind",
    "running",
    "prompt_tokens",
    "output_tokens",
    "finished",
    "kv_pages",
    "flops",
    "hbm_bytes",
)
FLOAT_COLUMNS = frozenset({"flops", "hbm_bytes"})


def stage_column(stage: int) -> str:
    """Of a step: what its passes took in a stage of their pipeline; not there without pipelines."""
    return f"stage{stage}_ps"


KIND_DECODE, KIND_MIXED, KIND_PREFILL = 0, 1, 2
KIND_NAMES = ("decode", "mixed", "prefill")
STATUS_DONE, STATUS_FAILED = 0, 1


@dataclass(slots=True, kw_only=True)
class RunRecord:
    """One run, finished or interrupted.

    backend: "sim" or "exec". config: resolved configuration, versions, seed and fingerprint.

    rows: one entry per row; every column of `ROW_COLUMNS` is int64. `output_tokens` were produced
    and kept; `first_token_ps` and `end_ps` are -1 if it never came to that; `engine` and `rank` are
    -1 if the row was never placed; `status` is 0 done, 1 failed. `row_reasons` holds the finish
    reason or error code of each row, in the same order.

    steps: one entry per step that ran, in any order; int64 but for `flops` and `hbm_bytes`
    (float64, whole step over all GPUs of the engine, 0 if unknown). `kind` is 0 decode, 1 mixed,
    2 prefill; `running` is the rows in the first pass; `prompt_tokens`, `output_tokens` and
    `finished` are totals of the step; `kv_pages` are the most pages leased in it, all ranks: at its
    begin or at the end of one of its passes, before rows that ended in that pass gave theirs back.
    An engine of a pipeline is one of its batches in flight, and its GPUs are those of one stage:
    `stage_column(s)` says what the step took of stage s, which is engine s of the pipeline.

    marks: {"t_ps", "engine" (-1: the cluster), "kind", "text"}; kind is "phase", "switch", "fault",
    "copy", "steal" or a word of the backend's own. The text of a fault begins with "lost", "slow"
    or "back"; the plots draw these.

    engines: {"engine", "node", "num_gpus", "hbm_pages_total", "peak_flops", "peak_bw"}; the last
    three are of the whole engine (pages, FLOP/s, byte/s; 0 if unknown). "page_tokens" may be there.

    wall_s: what the run itself took on this machine. gpu_price_per_hour: US dollars, 0 if unknown.
    decisions: the decision log as bytes of a gzip file, read once when the run is written.
    """

    policy: str
    backend: str
    model: str
    gpu: str
    layout: str
    num_gpus: int
    config: dict[str, Any]
    rows: dict[str, NDArray[Any]]
    row_reasons: list[str]
    steps: dict[str, NDArray[Any]]
    marks: list[dict[str, Any]]
    engines: list[dict[str, Any]]
    wall_s: float
    gpu_price_per_hour: float
    decisions: Iterable[bytes] | None = field(default=None, repr=False, compare=False)

    @property
    def num_stages(self) -> int:
        """Stages of the pipelines; 1 without."""
        return max(1, sum(stage_column(stage) in self.steps for stage in range(len(self.engines))))

    def __post_init__(self) -> None:
        self.rows = checked("rows", self.rows, ROW_COLUMNS)
        self.steps = checked("steps", self.steps, STEP_COLUMNS)
        if len(self.row_reasons) != len(self.rows["row"]):
            raise ValueError(
                f"row_reasons has {len(self.row_reasons)} entries, rows has {len(self.rows['row'])}"
            )
        known = {engine["engine"] for engine in self.engines}
        unknown = set(self.steps["engine"].tolist()) - known
        if unknown:
            raise ValueError(f"steps name engines that are not in engines: {sorted(unknown)[:5]}")


def checked(
    name: str, table: dict[str, NDArray[Any]], expected: tuple[str, ...]
) -> dict[str, NDArray[Any]]:
    """`table` with int64 and float64 columns; raises ValueError on a missing or ragged column.

    Narrower integers are widened; a float where an integer belongs is an error, not a rounding.
    """
    import numpy as np

    missing = [column for column in expected if column not in table]
    if missing:
        raise ValueError(f"{name} lacks the columns {missing}")
    columns: dict[str, NDArray[Any]] = {}
    for column, values in table.items():
        array = np.asarray(values)
        wanted = np.dtype(np.float64 if column in FLOAT_COLUMNS else np.int64)
        if len(array) and not np.can_cast(array.dtype, wanted, "same_kind"):
            raise ValueError(f"{name}['{column}'] is {array.dtype}, not {wanted}")
        columns[column] = array.astype(wanted, copy=False)
    lengths = {column: len(array) for column, array in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{name} has columns of different lengths: {lengths}")
    return columns

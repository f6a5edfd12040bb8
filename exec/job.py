"""What `batchgen exec` is asked to do. It checks ranges only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from batchgen.errors import UserError
from batchgen.job.error_limit import ErrorLimit, check_row_timeout
from batchgen.job.journal import ORDERS
from batchgen.job.sampling import check_range
from batchgen.job.shape import Shape

CAPABILITIES = frozenset({"host", "prefix"})
"""One device with a host tier and shared prefix pages: no switch of layouts, no padding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecJob:
    """One job on one device.

    Page counts None: as much as runs at once, bounded by a part of the free memory
    (`exec.sizing.LIMITS`).
    `max_tokens`: output budget of rows that name none. `exact`: the same tokens whatever the policy
    does, in float32 on the cpu. `temperature`: of rows that name none (None: the checkpoint's).
    `body`: module:function of the body that every row runs. `folder`: where the job keeps what it
    has achieved until its output is in place (None: beside the output). `resume`: "never",
    "always" or "if-possible". `order` of the output: "input" or "completion". `form` of the input:
    one of `job.inputs.FORMS` or "auto"; `shape`: how its rows get their prompts; `strict`: fields
    that are not known make error rows; `models`: names that rows may give, none: any;
    `log`: decisions go to the job's folder ("auto"), also to the run's record ("steps", "full"), or
    nowhere ("off"). `some_must_run`: an input of bad rows alone is refused.
    """

    model: Path
    input: Path
    output: Path
    policy: str = "batchgen"
    overrides: tuple[tuple[str, str], ...] = ()
    dtype: str = "float32"
    exact: bool = False
    device: str = "cpu"
    max_tokens: int = 256
    temperature: float | None = None
    seed: int = 0
    limit: int | None = None
    hbm_pages: int | None = None
    host_pages: int | None = None
    threads: int | None = None
    force: bool = False
    log: str = "auto"
    body: str | None = None
    folder: Path | None = None
    resume: str = "never"
    order: str = "input"
    form: str = "auto"
    shape: Shape | None = None
    strict: bool = False
    models: tuple[str, ...] = ()
    some_must_run: bool = True
    row_timeout_s: float | None = None
    max_errors: ErrorLimit | None = None
    error_file: Path | None = None
    manifest: Path | None = None
    output_form: str = "jsonl"
    shard: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name, value in (("max-tokens", self.max_tokens), ("limit", self.limit)):
            if value is not None and value < 1:
                raise UserError(f"--{name} is {value}", remedy="give at least 1")
        check_row_timeout(self.row_timeout_s)
        if self.order not in ORDERS:
            remedy = f"choose one of {', '.join(ORDERS)}"
            raise UserError(f"--order is '{self.order}'", remedy=remedy)
        if self.temperature is not None:
            try:
                check_range("temperature", self.temperature)
            except ValueError:
                remedy = "give a number from 0 (greedy) to 100"
                raise UserError(f"--temperature is {self.temperature}", remedy=remedy) from None

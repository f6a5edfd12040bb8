"""A job looked at before it runs: every row read and encoded, memory planned; no weights are loaded
and nothing is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from batchgen.exec.config import load_config
from batchgen.exec.free_memory import free_memory_bytes
from batchgen.exec.generation import sampling_defaults
from batchgen.exec.hub import find_model
from batchgen.exec.job import CAPABILITIES, ExecJob
from batchgen.exec.past import Past
from batchgen.exec.prepare import ReadRows, check_job, limits_of_rows, plan_rows, read_all, table_of
from batchgen.exec.sizing import itemsize, weight_bytes
from batchgen.exec.tokenizer import Tokenizer
from batchgen.job.checking import BadRows
from batchgen.job.jsonl import InputDigest
from batchgen.plan import Plan
from batchgen.policy.presets import build_policy
from batchgen.runtime.core import Runtime
from batchgen.sequence import Table

Ints = npt.NDArray[np.int64]


@dataclass(slots=True, kw_only=True)
class Survey:
    """`bad`: rows that cannot run; `plan` None if none can. Prompts and budgets count tokens of
    each sequence. `memory`: bytes by parts. `first_prompt`: the text of the first row's tokens,
    special tokens and all."""

    job: ExecJob
    folder: Path
    read: ReadRows
    bad: BadRows
    prompt_tokens: Ints
    max_output: Ints
    first_prompt: str
    plan: Plan | None = None
    memory: dict[str, int] = field(default_factory=dict)
    page_keys: list[list[int]] | None = None

    produced: None = None

    def fresh_table(self) -> Table:
        """The rows that can run, as a scheduler has them."""
        return table_of(self.read.jobs)

    def runtime(self, *, table: Table) -> Runtime:
        """The scheduler as it would run them, but for bodies. Only with a plan."""
        assert self.plan is not None
        preset, overrides, _ = check_job(self.job)
        return Runtime(
            table,
            self.plan,
            build_policy(preset, overrides, CAPABILITIES),
            page_keys=None if self.page_keys is None else self.page_keys.__getitem__,
        )


def survey(job: ExecJob) -> Survey:
    """Look at a job. Raises UserError for what is wrong with the job itself: its options, its
    model, an input that cannot be read."""
    check_job(job)
    folder = find_model(job.model)
    config = load_config(folder)
    tokenizer = Tokenizer(folder)
    bad = BadRows()
    limits = limits_of_rows(job, config.max_context, sampling_defaults(folder, job.temperature))
    try:
        rows = read_all(job, tokenizer, limits, InputDigest(), Past(), bad.add)
    finally:
        tokenizer.release()
    jobs = rows.jobs
    found = Survey(
        job=job,
        folder=folder,
        read=rows,
        bad=bad,
        prompt_tokens=jobs.prompt_tokens(),
        max_output=jobs.max_output(),
        first_prompt=tokenizer.written(jobs[0].prompt_ids) if jobs else "",
    )
    if jobs:
        # What passes take of a GPU is measured by running them: here it is not known.
        found.plan, found.page_keys = plan_rows(job, jobs, config, pass_bytes=0)
        engine = found.plan.engines[0]
        page_bytes = config.kv_page_elements(found.plan.page_tokens) * itemsize(job)
        found.memory = {
            "weight_bytes": weight_bytes(job, config),
            "hbm_pages_bytes": engine.hbm_pages * page_bytes,
            "host_pages_bytes": engine.host_pages * page_bytes,
            "prompt_bytes": jobs.prompts.held_bytes,
            "free_bytes": free_memory_bytes(),
        }
    return found

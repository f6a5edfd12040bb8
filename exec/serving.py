"""Batches of a server as jobs of this executor, with one model that stays in memory."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace

from batchgen.errors import UserError
from batchgen.exec.generation import sampling_defaults
from batchgen.exec.hub import find_model
from batchgen.exec.job import ExecJob
from batchgen.exec.kept import KeptModel
from batchgen.exec.prepare import check_options
from batchgen.exec.run import execute
from batchgen.exec.sizing import check_weights_fit
from batchgen.exec.tokenizer import Tokenizer
from batchgen.serve.engine import Task


class Batches:
    """Runs tasks with the model and the options of `job`. Raises UserError for a model or options
    that cannot run any. `say` gets lines for whoever runs the server."""

    def __init__(self, job: ExecJob, say: Callable[[str], None]) -> None:
        folder = find_model(job.model)
        check_options(job)
        sampling_defaults(folder, job.temperature)
        Tokenizer(folder).release()
        check_weights_fit(job, folder)
        # Bad rows alone are a batch like any other: all of it is in the file of errors.
        self._job = replace(job, some_must_run=False, form="jsonl")
        self._say = say
        self._kept = KeptModel()
        self._kept.model(folder, job.dtype, job.exact, job.device)

    def __call__(self, task: Task) -> None:
        """Until the output is in place, or until the task is to stop (Unfinished)."""
        job = replace(
            self._job,
            input=task.input,
            output=task.output,
            folder=task.folder,
            resume="never" if task.anew else "if-possible",
            force=task.anew,
        )
        try:
            execute(
                job,
                stopping=task.stopping,
                giving_up=task.giving_up,
                on_line=task.on_line,
                kept=self._kept,
                say=self._say,
            )
        except MemoryError:
            raise UserError("memory is short", remedy="free some", code="out_of_memory") from None
        finally:
            gc.collect()  # arenas of this job go before those of the next come

"""A small fixed job, timed: whether the machine is as fast as when it was profiled."""

from __future__ import annotations

import statistics

import numpy as np

from batchgen.exec.profile_passes import Prompt, run_job
from batchgen.exec.worker import Worker

ROWS, PROMPT_TOKENS, OUTPUT_TOKENS = 16, 48, 24
FEWEST, MOST, ENOUGH_S = 4, 24, 0.4


def calibrate(worker: Worker) -> float:
    """Seconds of the job: the median of some runs (more of a short one), the first not counted.

    The worker must have no rows; its arenas are made anew.
    """
    generator = np.random.default_rng(5)
    prompts = [
        Prompt(
            ids=generator.integers(0, worker.config.vocab_size, PROMPT_TOKENS).tolist(),
            max_output=OUTPUT_TOKENS,
            stop_ids=frozenset(),
        )
        for _ in range(ROWS)
    ]
    times: list[float] = []
    while len(times) < FEWEST or (sum(times) < ENOUGH_S and len(times) < MOST):
        passes = run_job(worker, "vllm", prompts, ROWS)
        times.append(sum(one.seconds for one in passes))
    return statistics.median(times[1:])

"""A small fixed job, timed again and again: how fast the machine is, and whether it stays so."""

from __future__ import annotations

import statistics
import time

import numpy as np

from batchgen.exec.profile_passes import Prompt, run_job
from batchgen.exec.worker import Worker

ROWS, PROMPT_TOKENS, OUTPUT_TOKENS = 16, 48, 24
FEWEST, ENOUGH_S = 4, 0.4
LEAST_PAUSE = 2.0  # between looks at a job of many parts, in durations of a look


class Calibration:
    """Looks at a machine through `worker`, which must have no rows at each; its arenas are made
    anew. The first look pays for what is new and does not count."""

    def __init__(self, worker: Worker) -> None:
        generator = np.random.default_rng(5)
        self._worker = worker
        self._prompts = [
            Prompt(
                ids=generator.integers(0, worker.config.vocab_size, PROMPT_TOKENS).tolist(),
                max_output=OUTPUT_TOKENS,
                stop_ids=frozenset(),
            )
            for _ in range(ROWS)
        ]
        self.times_s: list[float] = []
        self._looked_s = 0.0
        self._once()

    def look(self) -> None:
        """Time the job once."""
        self.times_s.append(self._once())
        self._looked_s = time.perf_counter()

    def look_again(self) -> None:
        """A look, unless the last was a moment ago: looking takes the smaller part of the time."""
        if time.perf_counter() - self._looked_s >= LEAST_PAUSE * self.times_s[-1]:
            self.look()

    def look_long(self) -> None:
        """Some looks, more at a short job."""
        before = len(self.times_s)
        while len(self.times_s) < before + FEWEST or sum(self.times_s[before:]) < ENOUGH_S:
            self.look()

    @property
    def median_s(self) -> float:
        return statistics.median(self.times_s)

    @property
    def drift(self) -> float:
        """Median of the later half of the looks over that of the earlier half, less 1."""
        half = len(self.times_s) // 2
        return statistics.median(self.times_s[half:]) / statistics.median(self.times_s[:half]) - 1

    def _once(self) -> float:
        passes = run_job(self._worker, "vllm", self._prompts, ROWS)
        return sum(one.seconds for one in passes)

"""Overheads of passes: what was put in is found again, and stalls do not move it."""

from __future__ import annotations

import numpy as np
import pytest

from batchgen.cost.overheads import (
    MeasuredPass,
    Overheads,
    errors_by_kind,
    fit_overheads,
    predicted_s,
)
from batchgen.units import PS_PER_US


class KnownCost:
    """1 us per token, 2 us per sample, 1 ns per KV token; and overheads, if there are any."""

    def __init__(self, overheads: Overheads | None = None) -> None:
        self.overheads = overheads

    def pass_one_ps(
        self,
        decodes: int,
        context: int,
        chunk_tokens: int = 0,
        chunk_pairs: int = 0,
        chunk_reads: int = 0,
        samples: int = 0,
        checkpoint: int = 0,
    ) -> int:
        micros = decodes + chunk_tokens + 2 * samples + 1e-3 * context
        if self.overheads is not None:
            rows, tokens = np.array([float(decodes)]), np.array([float(chunk_tokens)])
            extra = self.overheads.decode_s(rows) + self.overheads.prefill_s(tokens)
            extra = extra + self.overheads.context_s(rows) * context
            seconds = self.overheads.step_s + extra[0]
            micros += 1e6 * seconds
        return round(micros * PS_PER_US)


TRUE = Overheads(
    step_s=300e-6,
    context=((1, -0.4e-9), (64, -0.4e-9)),
    decode=((1, 10e-6), (8, 80e-6), (64, 640e-6)),
    prefill=((16, -8e-6), (256, 500e-6)),
)


def measured(decodes: int, context: int, chunk: int) -> MeasuredPass:
    samples = decodes + (chunk > 0)
    load = (decodes, context, chunk, chunk**2, 0, samples)
    return MeasuredPass(
        decodes=decodes,
        context=context,
        chunk_tokens=chunk,
        chunk_pairs=chunk**2,
        chunk_reads=0,
        samples=samples,
        seconds=KnownCost(TRUE).pass_one_ps(*load) / (1e6 * PS_PER_US),
    )


def job() -> list[MeasuredPass]:
    contexts = (40, 200, 900)
    passes = [measured(rows, rows * c, 0) for rows in (1, 8, 64) for c in contexts]
    passes += [measured(0, 0, chunk) for chunk in (16, 256) for _ in range(3)]
    return passes + [measured(8, 8 * c, 16) for c in contexts]


def test_known_overheads_are_found_again() -> None:
    found = fit_overheads(KnownCost(), job())
    # The part of one row cannot be told from the step's when both are always there.
    assert found.step_s == pytest.approx(TRUE.step_s - 8e-6, rel=0.05)
    assert found.context_s(np.array([1.0, 64.0])) == pytest.approx(-0.4e-9, rel=0.05)
    complete = KnownCost(found)
    for item in job():
        assert predicted_s(complete, item) == pytest.approx(item.seconds, rel=0.02)
    between = measured(32, 32 * 100, 0)
    assert predicted_s(complete, between) == pytest.approx(between.seconds, rel=0.02)
    beyond = measured(128, 128 * 100, 0)
    assert predicted_s(complete, beyond) == pytest.approx(beyond.seconds, rel=0.2)
    report = errors_by_kind(complete, job())
    assert {kind: entry["count"] for kind, entry in report.items()} == {
        "decode": 9,
        "mixed": 3,
        "prefill": 6,
    }
    assert all(abs(entry["error"]) < 0.02 for entry in report.values())


def test_stalls_do_not_count() -> None:
    calm = [measured(8, 8 * c, 0) for c in range(40, 140)]
    stalled = [
        MeasuredPass(
            decodes=p.decodes,
            context=p.context,
            chunk_tokens=0,
            chunk_pairs=0,
            chunk_reads=0,
            samples=p.samples,
            seconds=p.seconds * (50 if number % 17 == 0 else 1),
        )
        for number, p in enumerate(calm)
    ]
    complete = KnownCost(fit_overheads(KnownCost(), stalled))
    for item in calm:
        assert predicted_s(complete, item) == pytest.approx(item.seconds, rel=0.02)


def test_no_passes_and_passes_of_one_kind() -> None:
    assert fit_overheads(KnownCost(), []) == Overheads()
    alone = fit_overheads(KnownCost(), [measured(1, 40, 0)])
    assert (alone.context, alone.prefill) == (((1, 0.0),), ())
    assert predicted_s(KnownCost(alone), measured(1, 40, 0)) == pytest.approx(
        measured(1, 40, 0).seconds
    )
    assert Overheads().decode_s(np.array([0.0, 5.0])).tolist() == [0.0, 0.0]

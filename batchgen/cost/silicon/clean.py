"""Leaves rows out, each for one stated reason, and counts them. It fits nothing.

Two rules need a prediction: a server that queued is known by its time to the first token, against
the prefills of its batch, and a deployment of several workers by more than twice the predicted time
between tokens. Both are for rows whose `batch_size` is not what ran together; the second alone can
leave a row out for its error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from batchgen.cost.silicon.loop import Prediction
from batchgen.cost.silicon.rows import Row
from batchgen.cost.silicon.setup import LINEAR, NOT_EXPRESSED, SPARSE, Setup, setup
from batchgen.errors import UserError

DISAGGREGATED = "disaggregated"
MISLABELLED = "GB200, 12 to 72 GPUs: disaggregated under another label"
SPECULATIVE = "DeepSeek on TensorRT-LLM: probably unmarked speculative decoding"
UNKNOWN = "model, GPU or layout that the catalog or the tables lack"
DUPLICATE = "exact duplicate"
EAGER = "flat in the batch above 0.3 ms per layer: eager, bound by the host"
QUEUED = "first token later than all prefills of the batch: the server queued"
WORKERS = "several workers (dynamo), above twice the predicted time"
REASONS = (
    *(DISAGGREGATED, MISLABELLED, SPECULATIVE, LINEAR, SPARSE, UNKNOWN),
    *(DUPLICATE, EAGER, QUEUED, WORKERS),
)
EAGER_LAYER_S = 0.3e-3
FLAT = 1.1  # times the shortest, over at least twice the batch
QUEUE_S = 1.0  # beyond the prefills of the whole batch
SEVERAL = 2.0  # times the prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A row that stays, and its prediction by kernels alone."""

    row: Row
    setup: Setup
    prediction: Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleaned:
    """`left_out` counts rows by reason, in the order of `REASONS`; with the cases they are all."""

    cases: list[Case]
    left_out: dict[str, int]


def clean(rows: Sequence[Row], predict: Callable[[Setup], Prediction]) -> Cleaned:
    """`predict` raises UserError for what no table covers."""
    left_out: Counter[str] = Counter()
    known: list[tuple[Row, Setup]] = []
    seen: set[tuple[object, ...]] = set()
    for row in rows:
        reason, one = _judge(row)
        if one is not None:
            key = (*_configuration(row, one), one.batch, round(row.ttft_s, 6), round(row.tpot_s, 6))
            if key in seen:
                reason = DUPLICATE
            else:
                seen.add(key)
                known.append((row, one))
        if reason:
            left_out[reason] += 1
    flat = _flat(known)
    cases = []
    for number, (row, one) in enumerate(known):
        if number in flat:
            left_out[EAGER] += 1
            continue
        try:
            prediction = predict(one)
        except UserError:
            left_out[UNKNOWN] += 1
            continue
        reason = _by_prediction(row, one, prediction)
        if reason:
            left_out[reason] += 1
        else:
            cases.append(Case(row=row, setup=one, prediction=prediction))
    counts = {reason: left_out[reason] for reason in REASONS if left_out[reason]}
    return Cleaned(cases=cases, left_out=counts)


def _judge(row: Row) -> tuple[str, Setup | None]:
    """The reason to leave it out, or what it ran on."""
    if row.mode != "agg":
        return DISAGGREGATED, None
    if row.gpu == "gb200" and row.tp >= 12:
        return MISLABELLED, None
    name = row.model.rsplit("/", 1)[-1]
    if name.startswith("DeepSeek") and row.backend == "trtllm":
        return SPECULATIVE, None
    if name in NOT_EXPRESSED:
        return NOT_EXPRESSED[name], None
    if not (row.batch and row.prompt_tokens and row.output_tokens):
        return UNKNOWN, None
    try:
        return "", setup(row)
    except UserError:
        return UNKNOWN, None


def _configuration(row: Row, one: Setup) -> tuple[object, ...]:
    """What is alike in rows that differ in their batch only. Dumps name versions differently."""
    lengths = row.prompt_tokens, row.output_tokens
    return row.backend, one.model.name, one.gpu.name, row.precision, *lengths, one.layout


def _flat(known: Sequence[tuple[Row, Setup]]) -> set[int]:
    """Rows whose time per token is long and hardly depends on the batch."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for number, (row, one) in enumerate(known):
        groups.setdefault((*_configuration(row, one), row.version), []).append(number)
    found: set[int] = set()
    for numbers in groups.values():
        batches = [known[number][1].batch for number in numbers]
        times = [known[number][0].tpot_s for number in numbers]
        layers = known[numbers[0]][1].model.num_layers
        wide = max(batches) >= 2 * min(batches)
        if wide and min(times) > EAGER_LAYER_S * layers and max(times) < FLAT * min(times):
            found.update(numbers)
    return found


def _by_prediction(row: Row, one: Setup, prediction: Prediction) -> str:
    prompts = one.batch * one.layout.attention_dp
    if row.ttft_s > QUEUE_S + prompts * prediction.prefill_s:
        return QUEUED
    if row.is_dynamo and row.tpot_s > SEVERAL * prediction.tpot_s:
        return WORKERS
    return ""

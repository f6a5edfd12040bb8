"""What a batch row is: one that can run, one that cannot, one that is answered; and the limits of
a job. Reads nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from batchgen.job.jsonl import MAX_LINE_BYTES
from batchgen.job.options import Generation
from batchgen.job.sampling import Sampling, SamplingDefaults

TokenIds = Sequence[int] | npt.NDArray[np.int32]
"""Ids of a text; a large job keeps them in columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLimits:
    """Limits and defaults of a job, in tokens; `default_max_output` None fills the context.
    `sampling`: what rows get that do not say how they sample.

    keep_requests: rows keep their object of the input, for bodies that read it. strict: a field
    that is not known makes an error row; else it counts in `unknown` and is ignored. models: names
    that rows may give for their model, None: any. options: those that were met, so that they are
    read once.
    """

    max_context: int
    default_max_output: int | None = None
    run_seed: int = 0
    max_line_bytes: int = MAX_LINE_BYTES
    keep_requests: bool = False
    strict: bool = False
    models: frozenset[str] | None = None
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)
    unknown: Counter[str] = field(default_factory=Counter)
    options: dict[Any, Generation] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """A row that can run. `index` counts rows from 0 in input order, `line` lines from 1; `request`
    is empty unless it was to be kept.

    `stop` are texts and `stop_token_ids` tokens that end an answer beside the model's own tokens.
    `num_samples` answers are wanted; a row that `job.samples` made for one of them is `sample`.
    """

    index: int
    line: int
    custom_id: str
    kind: str  # "chat", "completion" or "response"
    model: str | None
    prompt_ids: TokenIds
    max_output: int
    sampling: Sampling
    ignore_eos: bool
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    num_samples: int = 1
    sample: int = 0
    request: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A row that cannot run and why. `custom_id` is None if the row has no usable one; `numbers`:
    those of the message, by name."""

    index: int
    line: int
    custom_id: str | None
    code: str
    message: str
    numbers: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A row that an earlier process has answered: its id is taken, and nothing is to be done."""

    index: int

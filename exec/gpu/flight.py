"""A pass that was launched: who is in it, and how to learn what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from batchgen.exec.batch import PassResult
from batchgen.exec.gpu.telling import Wish
from batchgen.exec.rows import Ints


@dataclass(slots=True, kw_only=True)
class Flight:
    """Rows [R] that get a token, with their slots, the generations that they were of, and the
    tokens that each has computed behind the pass. `tokens` [R] on the host are whole when `mark`
    has passed, and so are the `logprobs` of `wish`; `kept` lives until then. `result` is there when
    the outcome is known.
    """

    rows: list[int] = field(default_factory=list)
    slots: Ints | None = None
    generations: Ints | None = None
    ends: Ints | None = None
    tokens: torch.Tensor | None = None
    wish: Wish | None = None
    logprobs: torch.Tensor | None = None
    mark: Any = None
    kept: tuple[Any, ...] = ()
    began_s: float = 0.0
    result: PassResult | None = None

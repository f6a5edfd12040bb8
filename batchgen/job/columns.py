"""Rows that can run as columns: an array or a run of bytes each for many rows, and no object for
one. They are made where prompts are encoded, and may come from another process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from batchgen.job.row import JobRow

Ints = npt.NDArray[np.int64]


@dataclass(slots=True, kw_only=True)
class Columns:
    """Rows [rows] in order. `index` and `line` as in `JobRow`.

    `ids`: UTF-8 of the custom ids one behind the other; `id_ends` [rows] in bytes. `tokens`: those
    of prompts likewise, `num_tokens` [rows]. `commons`: what rows have in common, as rows whose
    own fields mean nothing and whose seed is 1 or -1; `common` [rows] their numbers. `seeds` [rows]
    without their sign: 64 bits hold the rest of any. `requests`: where they are kept, one a row.
    """

    index: Ints
    line: Ints
    ids: bytes
    id_ends: Ints
    max_output: Ints
    seeds: npt.NDArray[np.uint64]
    common: npt.NDArray[np.int32]
    commons: list[JobRow]
    tokens: npt.NDArray[np.int32]
    num_tokens: Ints
    requests: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.index)

    def custom_id(self, number: int) -> str:
        begin = int(self.id_ends[number - 1]) if number else 0
        return self.ids[begin : int(self.id_ends[number])].decode()

    def rows(self) -> Iterator[JobRow]:
        """Each as an object."""
        ends = np.cumsum(self.num_tokens)
        for number in range(len(self)):
            common = self.commons[self.common[number]]
            end = int(ends[number])
            seed = int(self.seeds[number]) * common.sampling.seed
            yield replace(
                common,
                index=int(self.index[number]),
                line=int(self.line[number]),
                custom_id=self.custom_id(number),
                prompt_ids=tuple(self.tokens[end - int(self.num_tokens[number]) : end].tolist()),
                max_output=int(self.max_output[number]),
                sampling=common.sampling.with_seed(seed),
                request=self.requests[number] if self.requests else {},
            )

    def only(self, kept: npt.NDArray[np.bool_]) -> Columns:
        """Those rows of which `kept` [rows] says so."""
        sizes = np.diff(self.id_ends, prepend=0)
        ids = np.frombuffer(self.ids, dtype=np.uint8)
        return Columns(
            index=self.index[kept],
            line=self.line[kept],
            ids=ids[np.repeat(kept, sizes)].tobytes(),
            id_ends=np.cumsum(sizes[kept]),
            max_output=self.max_output[kept],
            seeds=self.seeds[kept],
            common=self.common[kept],
            commons=self.commons,
            tokens=self.tokens[np.repeat(kept, self.num_tokens)],
            num_tokens=self.num_tokens[kept],
            requests=[one for one, keep in zip(self.requests, kept, strict=True) if keep]
            if self.requests
            else [],
        )

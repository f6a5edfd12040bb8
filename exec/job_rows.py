"""The rows of a job as columns: what a million of them take is their ids, not objects.

A row is made anew from its columns whenever it is asked for. Each sample of a row is one here.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from batchgen.exec.prompt_store import PromptStore
from batchgen.job.columns import Columns
from batchgen.job.rows import JobRow
from batchgen.job.samples import sample_of

Ints = npt.NDArray[np.int64]


class JobRows(Sequence[JobRow]):
    """What was added, sample by sample, in order; `prompts` holds the ids of prompts.

    What many rows have in common (sampling but for its seed, stops, kind, model) is kept once.
    """

    def __init__(self) -> None:
        self.prompts = PromptStore()
        self._index, self._line = array("q"), array("q")
        self._id_end, self._ids = array("Q", [0]), bytearray()
        self._max_output, self._seed = array("q"), array("Q")
        self._common = array("i")
        self._commons: list[JobRow] = []
        self._number_of: dict[tuple[Any, ...], int] = {}
        self._requests: dict[int, dict[str, Any]] = {}
        self._row_of = array("q")  # of each sample
        self._first = array("q")  # sample of each row

    def extend(self, rows: Columns) -> None:
        """All samples of rows of the input, behind those that are there; rows come in the order of
        their index."""
        if not len(rows):
            return
        number, first = len(self._index), len(self._row_of)
        self._index.frombytes(rows.index.tobytes())
        self._line.frombytes(rows.line.tobytes())
        self._id_end.frombytes((rows.id_ends + len(self._ids)).astype(np.uint64).tobytes())
        self._ids += rows.ids
        self._max_output.frombytes(rows.max_output.tobytes())
        self._seed.frombytes(rows.seeds.tobytes())
        self.prompts.extend(rows.tokens, rows.num_tokens)
        for place, request in enumerate(rows.requests):
            self._requests[number + place] = request
        common = np.array([self._common_of(one) for one in rows.commons], dtype=np.int32)
        self._common.frombytes(common[rows.common].tobytes())
        samples = np.array([one.num_samples for one in rows.commons])[rows.common]
        self._first.frombytes((first + np.cumsum(samples) - samples).astype(np.int64).tobytes())
        row_of = np.repeat(np.arange(number, number + len(rows), dtype=np.int64), samples)
        self._row_of.frombytes(row_of.tobytes())

    def _common_of(self, row: JobRow) -> int:
        ends = row.ignore_eos, row.stop, row.stop_token_ids
        key = (row.kind, row.model, row.sampling, ends, row.num_samples)
        number = self._number_of.setdefault(key, len(self._commons))
        if number == len(self._commons):
            self._commons.append(row)
        return number

    def __len__(self) -> int:
        return len(self._row_of)

    @overload
    def __getitem__(self, sample: int) -> JobRow: ...
    @overload
    def __getitem__(self, sample: slice) -> list[JobRow]: ...

    def __getitem__(self, sample: int | slice) -> JobRow | list[JobRow]:
        if isinstance(sample, slice):
            return [self[one] for one in range(*sample.indices(len(self)))]
        number = self._row_of[sample]
        common = self._commons[self._common[number]]
        seed = self._seed[number] * common.sampling.seed
        row = replace(
            common,
            index=self._index[number],
            line=self._line[number],
            custom_id=self._ids[self._id_end[number] : self._id_end[number + 1]].decode(),
            max_output=self._max_output[number],
            prompt_ids=self.prompts[number],
            sampling=replace(common.sampling, seed=seed),
            request=self._requests.get(number, {}),
        )
        return sample_of(row, sample % len(self) - self._first[number])

    def prompts_of_samples(self) -> list[npt.NDArray[np.int32]]:
        """A view per sample."""
        return [self.prompts[number] for number in self._row_of]

    # -- columns ----------------------------------------------------------------------------------

    def prompt_tokens(self) -> Ints:
        """Of each sample."""
        return self.prompts.sizes()[self._rows()]

    def max_output(self) -> Ints:
        """Most tokens that each sample may produce."""
        return np.array(self._max_output, dtype=np.int64)[self._rows()]

    def places(self, wanted: Mapping[tuple[int, int], Any]) -> dict[int, Any]:
        """What is known by (row of the input, sample), by the number of the sample here."""
        found = {}
        index = np.array(self._index, dtype=np.int64)
        for (row, sample), value in wanted.items():
            number = int(np.searchsorted(index, row))
            if number < len(index) and index[number] == row:
                found[self._first[number] + sample] = value
        return found

    def _rows(self) -> Ints:
        return np.array(self._row_of, dtype=np.int64)

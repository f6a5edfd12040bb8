"""What a body sees of its row in the executor: texts and ids, as far as the core knows of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from batchgen.coroutine import BodyError, SequenceView
from batchgen.exec.stops import ending_ids, said
from batchgen.oneline import shown

if TYPE_CHECKING:
    from batchgen.exec.tokenizer import Tokenizer
    from batchgen.exec.worker import Worker
    from batchgen.job.rows import JobRow
    from batchgen.sequence import Table


class TextView(SequenceView):
    """Tokens that the core has not accounted for yet (of a pass that still runs) are not shown, so
    that a body never depends on the speed of the machine."""

    has_text = True

    def __init__(
        self, table: Table, row: int, job: JobRow, worker: Worker, tokenizer: Tokenizer
    ) -> None:
        super().__init__(table, row)
        self._job = job
        self._worker = worker
        self._tokenizer = tokenizer

    @property
    def custom_id(self) -> str:
        return self._job.custom_id

    @property
    def request(self) -> dict[str, Any]:
        return self._job.request

    @property
    def prompt(self) -> str:
        return self._tokenizer.decode(self.prompt_ids)

    @property
    def prompt_ids(self) -> Sequence[int]:
        return np.asarray(self._job.prompt_ids).tolist()

    @property
    def answer(self) -> str:
        return self.answers[-1]

    @property
    def answer_ids(self) -> Sequence[int]:
        return self._stages()[-1]

    @property
    def answers(self) -> list[str]:
        """An answer that a stop text ended, without it; that text is behind it all the same, before
        a follow-up."""
        if not self._job.stop:
            return [self._tokenizer.decode(ids) for ids in self._stages()]
        ending = ending_ids(self._job, self._tokenizer.eos_token_ids)
        ends = [stage.reason == "stop" for stage in self._worker.stages(self.row)]
        return [
            said(
                self._tokenizer.decode,
                ids,
                ended_by_stop=stopped,
                ending=ending,
                stops=self._job.stop,
                min_tokens=self._job.sampling.min_tokens,
            )[0]
            for ids, stopped in zip(self._stages(), ends, strict=True)
        ]

    def _stages(self) -> list[list[int]]:
        left, shown = self.produced_tokens, []
        for stage in self._worker.stages(self.row):
            shown.append(stage.produced[:left])
            left -= len(shown[-1])
        return shown

    def ids(self, tokens: str | Sequence[int]) -> Sequence[int]:
        if isinstance(tokens, str):
            try:
                return self._tokenizer.encode_more(tokens)
            except ValueError as error:
                raise BodyError(f"its body extends by a text that fails: {error}") from None
        size, ids = self._tokenizer.vocab_size, list(tokens)
        bad = [one for one in ids if not isinstance(one, int) or not 0 <= one < size]
        if bad:
            raise BodyError(
                f"its body extends by {shown(bad[0], 40)}, which is no id from 0 to {size}"
            )
        return ids

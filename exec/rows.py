"""The rows that are resident on one device, as columns: what is known, computed and asked of each.

A row is resident from its first work until it is forgotten. Until then it costs its prompt ids in
the job's store and nothing here. No object and no list per row and pass: a decode pass reads and
writes a few columns.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from batchgen.errors import IllegalTransition
from batchgen.exec.logprobs import TokenLogprobs
from batchgen.exec.row_options import RowOptions
from batchgen.exec.stops import Decode, StopWatch
from batchgen.job.rows import TokenIds
from batchgen.job.sampling import Sampling

Ints = npt.NDArray[np.int64]

RUNNING, STOP, LENGTH, FAILED = range(4)
REASONS = ("", "stop", "length", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowInput:
    """What a row brings: its prompt, its output budget, tokens and texts that end it, how it
    samples (None: greedy), and the tokens that it has produced in an earlier process."""

    prompt_ids: TokenIds
    max_output: int
    stop_ids: frozenset[int]
    sampling: Sampling | None = None
    stop: tuple[str, ...] = ()
    produced_ids: Sequence[int] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A follow-up (of the first stage: none), what was produced after it, and why that ended ("" if
    it has not: "stop", "length", or "body" when its body went on before). `logprobs`: one per
    produced token, if the row asked."""

    given: list[int]
    produced: list[int]
    reason: str
    logprobs: list[TokenLogprobs] | None = None


class Rows:
    """Columns [slots] of the resident rows; `slot` finds a row's place.

    `prompt` and `tail` count the tokens of the prompt and those after it, `given` those of the tail
    that are follow-ups; `computed` and `on_host` the leading tokens whose KV is valid in each tier;
    `budget` is the most tokens that the row may produce; those of its last stage start in the tail
    at `began`. `ended` is one of REASONS by number.
    `flying` tokens are computed by passes whose outcome is not known here yet; they are not in the
    tail. `generation` changes whenever what such a pass brings would not count any more.
    `reads` and `writes` are the last copies that read, or write, its pages.
    """

    COLUMNS = (
        "prompt",
        "tail",
        "given",
        "began",
        "computed",
        "on_host",
        "budget",
        "last",
        "ended",
        "stops",
        "flying",
        "generation",
    )
    TICKETS = ("reads", "writes")

    def __init__(
        self,
        vocab_size: int,
        source: Callable[[int], RowInput] | None = None,
        decode: Decode | None = None,
    ) -> None:
        self._vocab_size = vocab_size
        self._source = source
        self._decode = decode
        self.options = RowOptions()
        self._slot_of: npt.NDArray[np.int32] = np.full(0, -1, dtype=np.int32)
        self._free: list[int] = []
        self._ends = 0  # slots that were ever used
        for name in (*self.COLUMNS, *self.TICKETS):
            setattr(self, name, np.zeros(0, dtype=np.int64))
        self.tails: npt.NDArray[np.int32] = np.zeros((0, 0), dtype=np.int32)
        self.inputs: list[RowInput | None] = []
        # Rows of a job have few different sets of stop ids: a column holds the number of the set.
        self._stop_sets: dict[frozenset[int], int] = {}
        self._stop_ids: list[Ints] = []
        # (first, count) of tail tokens that were given, and why the stage before them ended.
        self._follow_ups: dict[int, list[tuple[int, int, int]]] = {}

    prompt: Ints
    tail: Ints
    given: Ints
    began: Ints
    computed: Ints
    on_host: Ints
    budget: Ints
    last: Ints
    ended: Ints
    stops: Ints
    flying: Ints
    generation: Ints
    reads: Ints
    writes: Ints

    # -- which rows -------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self._ends - len(self._free)

    def resident(self, row: int) -> bool:
        return 0 <= row < len(self._slot_of) and bool(self._slot_of[row] >= 0)

    def slot(self, row: int) -> int:
        """The row's slot; a row of the source gets one now. Raises IllegalTransition for others."""
        if self.resident(row):
            return int(self._slot_of[row])
        self.check_fed(row)
        assert self._source is not None
        given = self._source(row)
        return self.add(row, given, given.produced_ids)

    def check_fed(self, row: int) -> None:
        """Raise IllegalTransition for a row that is not resident and comes from no source."""
        if self._source is None:
            raise IllegalTransition(f"row {row} is unknown to this worker")

    def slots(self, rows: Sequence[int]) -> Ints:
        """The slots of resident rows [R], in their order."""
        numbers = np.asarray(rows, dtype=np.int64)
        if len(numbers) and int(numbers.min()) >= 0 and int(numbers.max()) < len(self._slot_of):
            found = self._slot_of[numbers].astype(np.int64)
            if int(found.min()) >= 0:
                return found
        return np.array([self.slot(row) for row in rows], dtype=np.int64)

    def add(self, row: int, given: RowInput, produced_ids: Sequence[int] = ()) -> int:
        """Make a row resident; it has no KV yet. `produced_ids` are tokens of an earlier run."""
        if self.resident(row):
            raise IllegalTransition(f"row {row} was added twice")
        prompt_tokens = len(given.prompt_ids)
        if not prompt_tokens or len(produced_ids) >= given.max_output:
            raise IllegalTransition(f"row {row} has no prompt or nothing left to produce")
        known = np.array([*given.prompt_ids[-1:], *produced_ids], dtype=np.int64)
        checked = np.asarray(given.prompt_ids, dtype=np.int64)
        for ids in (checked, known):
            if int(ids.min()) < 0 or int(ids.max()) >= self._vocab_size:
                raise IllegalTransition(f"row {row} has tokens outside the vocabulary")
        sampling = given.sampling
        if len(produced_ids) and sampling is not None and sampling.logprobs is not None:
            raise IllegalTransition(f"row {row} has tokens without log probabilities")
        if given.stop and self._decode is None:
            raise IllegalTransition(f"row {row} stops at a text and there is no tokenizer")
        slot = heapq.heappop(self._free) if self._free else self._ends
        self._ends = max(self._ends, slot + 1)
        self._grow(slot + 1, len(produced_ids))
        if row >= len(self._slot_of):
            larger = np.full(max(row + 1, 2 * len(self._slot_of)), -1, dtype=np.int32)
            larger[: len(self._slot_of)] = self._slot_of
            self._slot_of = larger
        self._slot_of[row] = slot
        self.inputs[slot] = given
        self.stops[slot] = self._stop_set(given.stop_ids)
        watch = None
        if given.stop and self._decode is not None:
            least = 0 if sampling is None else sampling.min_tokens
            watch = StopWatch(given.stop, self._decode, least)
        self.options.set(slot, sampling, watch)
        self.prompt[slot], self.budget[slot] = prompt_tokens, given.max_output
        self.tail[slot] = len(produced_ids)
        self.tails[slot, : len(produced_ids)] = produced_ids
        self.last[slot] = known[-1]
        for name in ("given", "began", "computed", "on_host", "ended", "flying", *self.TICKETS):
            getattr(self, name)[slot] = 0
        self.generation[slot] += 1
        return slot

    def _stop_set(self, ids: frozenset[int]) -> int:
        if ids not in self._stop_sets:
            self._stop_sets[ids] = len(self._stop_ids)
            # A checkpoint may name tokens that its model cannot produce: they end nothing.
            real = [one for one in sorted(ids) if one < self._vocab_size]
            self._stop_ids.append(np.array(real, dtype=np.int64))
        return self._stop_sets[ids]

    def drop(self, row: int) -> None:
        """The row is no longer resident."""
        slot = self.slot(row)
        self.generation[slot] += 1
        self._slot_of[row] = -1
        self.inputs[slot] = None
        self._follow_ups.pop(slot, None)
        self.options.state.pop(slot, None)
        heapq.heappush(self._free, slot)

    def _grow(self, slots: int, width: int) -> None:
        have = self.tails.shape
        if slots > have[0]:
            more = max(slots, 2 * have[0], 64)
            for name in (*self.COLUMNS, *self.TICKETS):
                column = getattr(self, name)
                larger = np.zeros(more, dtype=column.dtype)
                larger[: have[0]] = column
                setattr(self, name, larger)
            self.options.grow(more)
            self.inputs += [None] * (more - have[0])
        if slots > have[0] or width > have[1]:
            wider = have[1] if width <= have[1] else max(width, 2 * have[1], 64)
            # Not zeros: memory is taken from the system when tokens are written.
            tails = np.empty((len(self.prompt), wider), dtype=np.int32)
            tails[: have[0], : have[1]] = self.tails
            self.tails = tails

    # -- tokens -----------------------------------------------------------------------------------

    def known(self, slots: Ints) -> Ints:
        """Tokens of each row: prompt, follow-ups and produced."""
        return self.prompt[slots] + self.tail[slots]

    def produced(self, slots: Ints) -> Ints:
        return self.tail[slots] - self.given[slots]

    def stage_produced(self, slot: int) -> int:
        """Tokens that the row's last stage has produced."""
        return int(self.tail[slot] - self.began[slot])

    def stop_ids(self, slot: int) -> Ints:
        """Tokens that end the row."""
        return self._stop_ids[int(self.stops[slot])]

    def tail_tokens(self, slot: int, begin: int, end: int) -> list[tuple[int, bool]]:
        """Tail tokens [begin, end) of a row, and whether each was given."""
        spans = [(first, first + count) for first, count, _ in self._follow_ups.get(slot, ())]
        return [
            (token, any(first <= place < last for first, last in spans))
            for place, token in enumerate(self.tails[slot, begin:end].tolist(), start=begin)
        ]

    def ids(self, slot: int, begin: int, end: int) -> Ints:
        """Known tokens [begin, end) of a row."""
        prompt = int(self.prompt[slot])
        given = self.inputs[slot]
        assert given is not None
        parts = [
            np.asarray(given.prompt_ids[begin : min(end, prompt)], dtype=np.int64),
            self.tails[slot, max(begin - prompt, 0) : max(end - prompt, 0)].astype(np.int64),
        ]
        return np.concatenate(parts)

    def make_room(self, slots: Ints) -> None:
        """Room for one more token of each of these rows [R]."""
        if len(slots):
            self._grow(0, int(self.tail[slots].max()) + 1)

    def append(self, slots: Ints, tokens: Ints) -> Ints:
        """One more produced token for each of these rows [R], which have not ended; returns why
        each ended by it (RUNNING if not)."""
        self.make_room(slots)
        self.tails[slots, self.tail[slots]] = tokens
        self.tail[slots] += 1
        self.last[slots] = tokens
        ended = np.where(self.produced(slots) >= self.budget[slots], LENGTH, RUNNING)
        sets = self.stops[slots]
        for number in np.unique(sets).tolist():
            ended[(sets == number) & np.isin(tokens, self._stop_ids[number])] = STOP
        self.ended[slots] = ended
        return ended

    def text_stops(self, slot: int) -> bool:
        """Whether the newest token of a watched row completes one of its stop texts; then the row
        has ended."""
        watch = self.options.state[slot].watch
        assert watch is not None
        began = int(self.began[slot])
        if not watch.hit(began, self.tails[slot, began : self.tail[slot]]):
            return False
        self.ended[slot] = STOP
        return True

    def extend(self, row: int, ids: Sequence[int] | None, tokens: int, budget: int) -> None:
        """Append a follow-up of `tokens` ids (None: the row's first ids again); the row may then
        produce up to `budget` tokens in all."""
        slot = self.slot(row)
        one = np.array([slot])
        given = self.inputs[slot]
        assert given is not None
        if ids is None:
            ids = [int(given.prompt_ids[i % len(given.prompt_ids)]) for i in range(tokens)]
        if len(ids) != tokens or not self.produced(one)[0] or self.ended[slot] == FAILED:
            raise IllegalTransition(f"row {row} cannot take a follow-up of {tokens} tokens")
        first = int(self.tail[slot])
        follow_up = (first, tokens, int(self.ended[slot]))
        self._follow_ups.setdefault(slot, []).append(follow_up)
        self.given[slot] += tokens
        self._grow(slot + 1, first + tokens)
        self.tails[slot, first : first + tokens] = ids
        self.tail[slot] += tokens
        self.began[slot] = self.tail[slot]
        self.last[slot] = self.tails[slot, first + tokens - 1]
        self.budget[slot], self.ended[slot] = budget, RUNNING

    def stages(self, row: int) -> list[Stage]:
        """The row's tokens after its prompt, stage by stage; one that did not begin has none."""
        if not self.resident(row):
            return [Stage(given=[], produced=[], reason="")]
        slot = self.slot(row)
        tail: list[int] = self.tails[slot, : self.tail[slot]].tolist()
        state = self.options.state.get(slot)
        told = None if state is None or state.logprobs is None else state.logprobs.tokens
        found: list[Stage] = []
        given: list[int] = []
        begin = 0
        produced = 0
        last = (len(tail), 0, int(self.ended[slot]))  # as if nothing were given behind the end
        for first, count, reason in (*self._follow_ups.get(slot, ()), last):
            why = REASONS[reason] or ("body" if count else "")
            size = first - begin
            ours = None if told is None else told[produced : produced + size]
            found.append(Stage(given=given, produced=tail[begin:first], reason=why, logprobs=ours))
            begin, produced = first + count, produced + size
            given = tail[first:begin]
        return found

    def newer(self, saved: Ints) -> Iterator[tuple[int, npt.NDArray[np.int32]]]:
        """(row, its produced tokens from `saved[row]` on) of resident rows that have any, except
        the token that ended a row: who begins again from here comes to the same end.

        Rows with follow-ups or log probabilities are left out: they are more than their tokens.
        saved [rows of the source].
        """
        for row in np.flatnonzero(self._slot_of[: len(saved)] >= 0).tolist():
            slot = int(self._slot_of[row])
            if self.given[slot] or self.options.logprobs[slot] >= 0:
                continue
            upto = int(self.tail[slot]) - (self.ended[slot] != RUNNING)
            if upto > saved[row]:
                yield row, self.tails[slot, int(saved[row]) : upto].copy()

    def num_produced(self, row: int) -> int:
        """Tokens produced so far, stop tokens included; of a row that did not begin: none."""
        if not self.resident(row):
            return 0
        slot = self.slot(row)
        return int(self.tail[slot] - self.given[slot])

"""One device of the executor: rows, their KV pages in two tiers, and passes over them.

Obeys and decides nothing: which rows run, when pages are copied or freed and how many there may be
is the runtime's business. An order that cannot be carried out is an IllegalTransition, because the
runtime promised that it cannot happen.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from batchgen.errors import IllegalTransition, UserError
from batchgen.exec.arena import KvArena, copy_pages
from batchgen.exec.batch import PassRows
from batchgen.exec.config import ModelConfig
from batchgen.exec.sampler import choose
from batchgen.exec.transformer import DTYPES, load_model
from batchgen.job.sampling import Sampling

DEVICES = ("cpu", "cuda")


def check_device(device: str) -> None:
    """Raise UserError unless `device` is one that this torch can use."""
    if device not in DEVICES:
        raise UserError(f"unknown device {device!r}", remedy=f"choose one of {', '.join(DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("this torch finds no cuda device", remedy="use --device cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class PassResult:
    """What one pass did. `finished` holds (row, "stop" | "length"), `failed` (row, code)."""

    finished: tuple[tuple[int, str], ...]
    failed: tuple[tuple[int, str], ...]
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A follow-up (of the first stage: none), what was produced after it, and why that ended ("" if
    it has not: "stop", "length", or "body" when its body went on before)."""

    given: list[int]
    produced: list[int]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Tokens [start, start + length) of the row in a slot; its KV before `start` is there."""

    slot: int
    start: int
    length: int


@dataclass(slots=True, kw_only=True)
class _Row:
    """A row on this device. `known` is prompt and produced tokens; `computed` and `on_host` count
    the leading tokens whose KV is valid in each tier."""

    slot: int
    known: list[int]
    num_prompt: int
    max_output: int
    stop_ids: frozenset[int]
    sampling: Sampling | None
    computed: int = 0
    on_host: int = 0
    ended: str = ""
    follow_ups: list[tuple[int, int, str]] = field(default_factory=list)
    """(first, count) of known tokens that were given, and why the stage before them ended."""
    num_given: int = 0

    @property
    def num_produced(self) -> int:
        return len(self.known) - self.num_prompt - self.num_given


class Worker:
    """A model with its KV arenas. Rows are named by the runtime's row numbers.

    `hbm_pages` and `host_pages` are sizes of the two tiers in pages of `page_tokens` tokens;
    `threads` sets the torch threads of the process. `exact`: a row's tokens do not depend on what
    else happens (float32 on the cpu; DESIGN 8). `device` is "cpu" or "cuda"; the host tier of a
    cuda worker is pinned.
    """

    def __init__(
        self,
        model_dir: Path,
        *,
        page_tokens: int,
        hbm_pages: int,
        host_pages: int,
        dtype: str = "float32",
        threads: int | None = None,
        exact: bool = False,
        device: str = "cpu",
    ) -> None:
        check_device(device)
        if threads is not None:
            torch.set_num_threads(threads)
        self.model = load_model(Path(model_dir), dtype=dtype, exact=exact, device=device)
        self.config: ModelConfig = self.model.config
        self.page_tokens = page_tokens
        self.device = device
        self._dtype = DTYPES[dtype]
        self._rows: dict[int, _Row] = {}
        self._free_slots: list[int] = []
        self._prefix: dict[int, int] = {}  # page key of the runtime -> physical page
        self._promised: set[int] = set()  # keys of pages that the next pass takes and fills
        self._before_pass: list[Callable[[], None]] = []
        self.resize(hbm_pages=hbm_pages, host_pages=host_pages)

    @property
    def kernels(self) -> str:
        """What computes attention, for reports: "compiled" or "torch"."""
        return self.model.kernels

    def resize(self, *, hbm_pages: int, host_pages: int) -> None:
        """Give the worker arenas of other sizes; only while it has no rows and no prefixes."""
        if self._rows or self._prefix:
            raise IllegalTransition("arenas cannot change while rows or prefixes use them")
        self._hbm = self._arena("hbm", hbm_pages, self._dtype)
        self._host = self._arena("host", host_pages, self._dtype)

    def _arena(self, name: str, pages: int, dtype: torch.dtype) -> KvArena:
        config = self.config
        try:
            return KvArena(
                name,
                pages,
                config.kv_layout,
                page_tokens=self.page_tokens,
                dtype=dtype,
                device=self.device if name == "hbm" else "cpu",
                pinned=name == "host" and self.device != "cpu" and pages > 0,
            )
        except RuntimeError as error:
            size = config.kv_page_elements(self.page_tokens) * dtype.itemsize * pages
            raise UserError(
                f"cannot allocate {size} bytes for {pages} {name} KV pages ({error!s:.80})",
                remedy=f"lower {name}_pages",
            ) from None

    # Rows

    def add_row(
        self,
        row: int,
        prompt_ids: Sequence[int],
        produced_ids: Sequence[int] = (),
        *,
        max_output: int,
        stop_ids: frozenset[int],
        sampling: Sampling | None = None,
    ) -> None:
        """Make a row known; it has no KV yet. `produced_ids` are tokens of an earlier run."""
        if row in self._rows:
            raise IllegalTransition(f"row {row} was added twice")
        known = [*prompt_ids, *produced_ids]
        if not prompt_ids or len(produced_ids) >= max_output:
            raise IllegalTransition(f"row {row} has no prompt or nothing left to produce")
        if min(known) < 0 or max(known) >= self.config.vocab_size:
            raise IllegalTransition(f"row {row} has tokens outside the vocabulary")
        slot = heapq.heappop(self._free_slots) if self._free_slots else len(self._rows)
        self._rows[row] = _Row(
            slot=slot,
            known=known,
            num_prompt=len(prompt_ids),
            max_output=max_output,
            stop_ids=stop_ids,
            sampling=sampling,
        )

    def knows(self, row: int) -> bool:
        """Whether the row was added and not forgotten."""
        return row in self._rows

    def extend(self, row: int, ids: Sequence[int] | None, tokens: int, budget: int) -> None:
        """Append a follow-up of `tokens` ids (None: the row's first ids again) to a row that is in
        no pass; it may then produce up to `budget` tokens in all."""
        state = self._row(row)
        if ids is None:
            ids = [state.known[index % state.num_prompt] for index in range(tokens)]
        if len(ids) != tokens or not state.num_produced or state.ended == "failed":
            raise IllegalTransition(f"row {row} cannot take a follow-up of {tokens} tokens")
        state.follow_ups.append((len(state.known), tokens, state.ended or "body"))
        state.num_given += tokens
        state.known.extend(ids)
        state.max_output, state.ended = budget, ""

    def trim(self, row: int) -> None:
        """Free the pages of a row that rests, beyond its KV: its last pass as a ghost took one."""
        state = self._row(row)
        self._hbm.release(state.slot, state.computed)

    def tokens(self, row: int) -> list[int]:
        """Tokens produced so far, stop tokens included and follow-ups left out."""
        return [token for stage in self.stages(row) for token in stage.produced]

    def stages(self, row: int) -> list[Stage]:
        """The row's tokens after its prompt, stage by stage."""
        state = self._row(row)
        found: list[Stage] = []
        given: list[int] = []
        begin = state.num_prompt
        for first, count, reason in state.follow_ups:
            found.append(Stage(given=given, produced=state.known[begin:first], reason=reason))
            begin = first + count
            given = state.known[first:begin]
        found.append(Stage(given=given, produced=state.known[begin:], reason=state.ended))
        return found

    def computed_tokens(self, row: int) -> int:
        """Leading tokens of the row whose KV is valid in hbm."""
        return self._row(row).computed

    def forget_row(self, row: int) -> None:
        """Free what the row still holds in both tiers and forget it."""
        state = self._row(row)
        if state.ended == "failed":
            self._hbm.erase(state.slot)
        self._hbm.release(state.slot)
        self._host.release(state.slot)
        heapq.heappush(self._free_slots, state.slot)
        del self._rows[row]

    def _row(self, row: int) -> _Row:
        try:
            return self._rows[row]
        except KeyError:
            raise IllegalTransition(f"row {row} is unknown to this worker") from None

    # Memory

    def pages_used(self, pool: str) -> int:
        """Distinct physical pages in use in "hbm" or "host"."""
        return self._pool(pool).pool.used

    def _pool(self, pool: str) -> KvArena:
        if pool not in ("hbm", "host"):
            raise IllegalTransition(f"this worker has no pool {pool!r}")
        return self._hbm if pool == "hbm" else self._host

    def checkpoint(self, rows: Sequence[int], upto_tokens: Sequence[int]) -> int:
        """Copy KV of the first `upto_tokens[i]` tokens of each row down to host; returns bytes.

        Pages that host has already are not copied again, except a page that has grown.
        """
        moved = 0
        for row, upto in zip(rows, upto_tokens, strict=True):
            state = self._row(row)
            if upto > state.computed:
                raise IllegalTransition(
                    f"row {row}: checkpoint of {upto}, computed {state.computed}"
                )
            if upto <= state.on_host:
                continue  # copying a page that has grown less would spoil what host has
            self._host.reserve(state.slot, upto)
            first, last = state.on_host // self.page_tokens, -(-upto // self.page_tokens)
            moved += copy_pages(self._hbm, self._host, state.slot, first, last)
            state.on_host = upto
        return moved

    def restore(self, rows: Sequence[int], tokens: Sequence[int]) -> int:
        """Copy KV of the first `tokens[i]` tokens of each row up to hbm; returns bytes.

        What hbm has already (adopted pages, for instance) is kept.
        """
        moved = 0
        for row, upto in zip(rows, tokens, strict=True):
            state = self._row(row)
            if upto > state.on_host:
                raise IllegalTransition(f"row {row}: restore of {upto}, host has {state.on_host}")
            if upto <= state.computed:
                continue
            self._hbm.reserve(state.slot, upto)
            first, last = state.computed // self.page_tokens, -(-upto // self.page_tokens)
            moved += copy_pages(self._host, self._hbm, state.slot, first, last)
            state.computed = upto
        return moved

    def release(self, row: int, pool: str) -> None:
        """Free the row's pages in one pool; pages that others share stay."""
        state = self._row(row)
        if state.ended == "failed" and pool == "hbm":
            self._hbm.erase(state.slot)
        self._pool(pool).release(state.slot)
        if pool == "hbm":
            state.computed = 0
        else:
            state.on_host = 0

    # Shared prefixes: the runtime owns the index; here are only its physical pages.

    def adopt(self, row: int, keys: Sequence[int]) -> None:
        """Let an empty row begin with the published pages `keys`, in order."""
        state = self._row(row)
        if self._hbm.tables.of(state.slot):
            raise IllegalTransition(f"row {row} adopts a prefix but has pages already")
        if len(keys) * self.page_tokens >= len(state.known):
            raise IllegalTransition(f"row {row} adopts its last token, which must be computed")
        missing = [key for key in keys if key not in self._prefix and key not in self._promised]
        if missing:
            raise IllegalTransition(f"row {row} adopts unpublished page {missing[0]}")
        if all(key in self._prefix for key in keys):
            self._share(row, keys)
        else:
            self._before_pass.append(lambda: self._share(row, keys))

    def _share(self, row: int, keys: Sequence[int]) -> None:
        state = self._row(row)
        pages = [self._prefix[key] for key in keys]
        self._hbm.pool.retain(pages)
        self._hbm.tables.append(state.slot, pages)
        state.computed = len(keys) * self.page_tokens

    def publish(self, row: int, first: int, keys: Sequence[int]) -> None:
        """Offer the row's pages `first` .. under these keys.

        Pages that the next pass fills are taken when it begins (what gives them back may be asked
        for only after this), and are whole before anybody reads them: a pass writes all its KV
        before it attends.
        """
        state = self._row(row)
        if (first + len(keys)) * self.page_tokens > len(state.known):
            raise IllegalTransition(f"row {row} publishes pages that it will not fill")
        for key in keys:
            if key in self._prefix or key in self._promised:
                raise IllegalTransition(f"row {row} publishes page {key}, which is known")
        here = min(max(len(self._hbm.tables.of(state.slot)) - first, 0), len(keys))
        if here:
            self._offer(row, first, keys[:here])
        if here < len(keys):
            self._promised.update(keys[here:])
            self._before_pass.append(lambda: self._offer(row, first + here, keys[here:]))

    def _offer(self, row: int, first: int, keys: Sequence[int]) -> None:
        slot = self._row(row).slot
        self._hbm.reserve(slot, (first + len(keys)) * self.page_tokens)
        pages = self._hbm.tables.of(slot)[first : first + len(keys)]
        for key, page in zip(keys, pages, strict=True):
            self._hbm.pool.retain([page])
            self._prefix[key] = page

    def forget(self, keys: Sequence[int]) -> None:
        """Withdraw published pages; rows that adopted them keep them."""
        for key in keys:
            if key not in self._prefix:
                raise IllegalTransition(f"page {key} was forgotten but never published")
            self._hbm.pool.drop([self._prefix.pop(key)])

    # Passes

    def run_pass(
        self, decodes: Sequence[int], chunks: Sequence[tuple[int, int, int, bool]]
    ) -> PassResult:
        """One forward pass.

        `decodes`: rows that compute the KV of their last token and sample the next. `chunks`: (row,
        start, length, last): KV of known tokens [start, start + length); `last` also samples. A row
        that has ended may still be decoded once (a ghost): its token is dropped.
        """
        begin = time.perf_counter()
        for share in self._before_pass:
            share()
        self._before_pass.clear()
        self._promised.clear()
        decoding = [self._decode_segment(row) for row in decodes]
        chunking = [self._chunk_segment(row, start, n, last) for row, start, n, last in chunks]
        rows = [*decodes, *(row for row, _, _, _ in chunks)]
        if len(set(rows)) != len(rows) or not rows:
            raise IllegalTransition("a pass needs rows, each of them once")
        segments = [*decoding, *chunking]
        known = [
            self._rows[row].known[s.start : s.start + s.length]
            for row, s in zip(rows, segments, strict=True)
        ]
        token_ids = np.array([token for part in known for token in part], dtype=np.int64)
        lengths = np.array([s.length for s in segments], dtype=np.int64)
        samples = [True] * len(decodes) + [last for _, _, _, last in chunks]
        columns = PassRows(
            slots=np.array([s.slot for s in segments], dtype=np.int64),
            starts=np.array([s.start for s in segments], dtype=np.int64),
            lengths=lengths,
            num_decodes=len(decodes),
            token_ids=token_ids,
            wanted=(np.cumsum(lengths) - 1)[np.array(samples, dtype=bool)],
        )
        logits = self.model.forward(self._hbm, columns)
        for row, segment in zip(rows, segments, strict=True):
            if not self._rows[row].ended:  # a ghost's pass counts for nothing
                self._rows[row].computed = segment.start + segment.length
        sampled = [row for row, samples_now in zip(rows, samples, strict=True) if samples_now]
        finished, failed = self._append(sampled, logits)
        return PassResult(
            finished=tuple(finished), failed=tuple(failed), duration_s=time.perf_counter() - begin
        )

    def _decode_segment(self, row: int) -> Segment:
        state = self._row(row)
        if state.ended == "failed":  # a ghost without a token of its own: the one before again
            return self._segment(state, state.computed - 1, 1)
        if state.computed != len(state.known) - 1 or not state.num_produced:
            raise IllegalTransition(
                f"row {row} decodes with {state.computed} of {len(state.known)} tokens computed"
            )
        return self._segment(state, state.computed, 1)

    def _chunk_segment(self, row: int, start: int, length: int, last: bool) -> Segment:
        state = self._row(row)
        end = start + length
        if start != state.computed or length < 1 or end > len(state.known):
            raise IllegalTransition(
                f"row {row}: chunk [{start}, {end}) with {state.computed} of "
                f"{len(state.known)} tokens computed"
            )
        if last != (end == len(state.known)) or state.ended:
            raise IllegalTransition(f"row {row}: chunk [{start}, {end}) has last={last}")
        return self._segment(state, start, length)

    def _segment(self, state: _Row, start: int, length: int) -> Segment:
        self._hbm.reserve(state.slot, start + length)
        return Segment(slot=state.slot, start=start, length=length)

    def _append(
        self, rows: Sequence[int], logits: torch.Tensor
    ) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
        """Give each row its next token and say which rows ended by it."""
        states = [self._rows[row] for row in rows]
        tokens = choose(logits, [s.sampling for s in states], [s.num_produced for s in states])
        finished, failed = [], []
        for row, state, token in zip(rows, states, tokens, strict=True):
            if state.ended:
                continue  # a ghost
            if token >= self.config.vocab_size:
                state.ended = "failed"
                failed.append((row, "non_finite_logits"))
                continue
            state.known.append(token)
            if token in state.stop_ids:
                state.ended = "stop"
            elif state.num_produced >= state.max_output:
                state.ended = "length"
            if state.ended:
                finished.append((row, state.ended))
        return finished, failed

"""One device of the executor: rows, their KV pages in two tiers, and passes over them.

Obeys and decides nothing: which rows run, when pages are copied or freed and how many there may be
is the runtime's business. An order that cannot be carried out is an IllegalTransition, because the
runtime promised that it cannot happen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from batchgen.errors import IllegalTransition, UserError
from batchgen.exec.arena import KvArena
from batchgen.exec.batch import IntArray, PassResult, PassRows
from batchgen.exec.config import ModelConfig
from batchgen.exec.copier import Copier
from batchgen.exec.devices import check_device, device_error
from batchgen.exec.pass_sampler import next_tokens
from batchgen.exec.prefix import PrefixPages
from batchgen.exec.rows import FAILED, RUNNING, Ints, RowInput, Rows, Stage
from batchgen.exec.segments import halves, segments, token_ids
from batchgen.exec.stops import Decode
from batchgen.exec.transformer import DTYPES, Transformer, load_model
from batchgen.job.rows import TokenIds
from batchgen.job.sampling import Sampling
from batchgen.plan import Plan
from batchgen.schedule import Period, forward_period
from batchgen.step import Chunk


class Worker:
    """A model, or that of a folder, with its KV arenas. Rows have the runtime's row numbers.

    `hbm_pages` and `host_pages` are sizes of the two tiers in pages of `page_tokens` tokens;
    `threads` sets the torch threads of the process. `exact`: a row's tokens do not depend on what
    else happens (float32 on the cpu; DESIGN 8). `device` is "cpu" or "cuda"; the host tier of a
    cuda worker is pinned. Rows are added one by one, or come from `feed` when they are first named.
    """

    def __init__(
        self,
        model: Path | Transformer,
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
        if not isinstance(model, Transformer):
            model = load_model(Path(model), dtype=dtype, exact=exact, device=device)
        self.model = model
        self.config: ModelConfig = self.model.config
        self.page_tokens = page_tokens
        self.device = device
        self._dtype = DTYPES[dtype]
        self._b_attn = self._b_moe = 0
        self.rows = Rows(self.config.vocab_size)
        self.copier = self.make_copier()
        # Copies under way: tier that gets them, and what it had of each row before.
        self._before_copy: dict[int, tuple[str, list[tuple[int, int]]]] = {}
        self._make_arenas(hbm_pages, host_pages)

    @property
    def kernels(self) -> str:
        """What computes attention, for reports: "compiled" or "torch"."""
        return self.model.kernels

    @property
    def page_bytes(self) -> int:
        """Bytes of one KV page over all layers."""
        return self.config.kv_page_elements(self.page_tokens) * int(self._dtype.itemsize)

    def resize(self, *, hbm_pages: int, host_pages: int) -> None:
        """Give the worker arenas of other sizes; only while it has no rows and no prefixes."""
        if len(self.rows) or self.prefix:
            raise IllegalTransition("arenas cannot change while rows or prefixes use them")
        del self.prefix, self._hbm, self._host  # first: there may be no room for both
        self._make_arenas(hbm_pages, host_pages)

    def runner(self, depth: int) -> Any:
        """What launches and collects its passes."""
        from batchgen.exec.runner import Runner

        return Runner(self, depth)

    def warm_up(self, *, token_budget: int, seats: int) -> int:
        """Make ready for passes of so many tokens and rows; returns the bytes of the device that
        the largest takes, 0 where that is not known."""
        del token_budget, seats
        return 0

    def make_copier(self) -> Any:
        """What copies pages between the tiers."""
        return Copier()

    def _make_arenas(self, hbm_pages: int, host_pages: int) -> None:
        self._hbm = self._arena("hbm", hbm_pages, self._dtype)
        self._host = self._arena("host", host_pages, self._dtype)
        self.prefix = PrefixPages(self._hbm, self.rows)

    def _arena(self, name: str, pages: int, dtype: torch.dtype) -> KvArena:
        return self.new_arena(name, pages, dtype)

    def new_arena(self, name: str, pages: int, dtype: torch.dtype, **options: Any) -> KvArena:
        """The arena of a tier. Raises UserError without memory for it."""
        config = self.config
        try:
            return KvArena(
                name,
                pages,
                config.kv_layout,
                page_tokens=self.page_tokens,
                dtype=dtype,
                device=self.device if name == "hbm" else "cpu",
                **options,
            )
        except RuntimeError as error:
            size = self.page_bytes * pages
            raise UserError(
                f"cannot allocate {size} bytes for {pages} {name} KV pages ({error!s:.80})",
                remedy=f"lower {name}_pages",
            ) from None

    # Rows

    def feed(self, source: Callable[[int], RowInput], decode: Decode | None = None) -> None:
        """Rows that are named and not resident come from here from now on. `decode` makes text of
        produced tokens, for rows that end at a text."""
        if len(self.rows):
            raise IllegalTransition("rows came before their source")
        self.rows = Rows(self.config.vocab_size, source, decode)
        self.prefix = PrefixPages(self._hbm, self.rows)

    def add_row(
        self,
        row: int,
        prompt_ids: TokenIds,
        produced_ids: Sequence[int] = (),
        *,
        max_output: int,
        stop_ids: frozenset[int],
        sampling: Sampling | None = None,
    ) -> None:
        """Make a row known; it has no KV yet. `produced_ids` are tokens of an earlier run."""
        given = RowInput(
            prompt_ids=prompt_ids, max_output=max_output, stop_ids=stop_ids, sampling=sampling
        )
        self.rows.add(row, given, produced_ids)

    def extend(self, row: int, ids: Sequence[int] | None, tokens: int, budget: int) -> None:
        """Append a follow-up to a row that is in no pass (see `Rows.extend`)."""
        self.rows.extend(row, ids, tokens, budget)

    def trim(self, row: int) -> None:
        """Free the pages of a row that rests, beyond its KV: its last pass as a ghost took one."""
        slot = self.rows.slot(row)
        self._settle(slot)
        self._hbm.release(slot, int(self.rows.computed[slot]))

    def tokens(self, row: int) -> list[int]:
        """Tokens produced so far, stop tokens included and follow-ups left out."""
        return [token for stage in self.rows.stages(row) for token in stage.produced]

    def stages(self, row: int) -> list[Stage]:
        """The row's tokens after its prompt, stage by stage."""
        return self.rows.stages(row)

    def computed_tokens(self, row: int) -> int:
        """Leading tokens of the row whose KV is valid in hbm."""
        return int(self.rows.computed[self.rows.slot(row)])

    def contexts(self, rows: Sequence[int]) -> list[int]:
        """KV tokens that each of these rows reads when it decodes next."""
        found: list[int] = (self.rows.computed[self.rows.slots(rows)] + 1).tolist()
        return found

    def forget_row(self, row: int) -> None:
        """Free what the row still holds in both tiers and forget it."""
        if not self.rows.resident(row):
            self.rows.check_fed(row)
            return  # it ended before it began
        slot = self.rows.slot(row)
        self._settle(slot)
        if self.rows.ended[slot] == FAILED:
            self._hbm.erase(slot)
        self._hbm.release(slot)
        self._host.release(slot)
        self.rows.drop(row)

    # Memory

    def pages_used(self, pool: str) -> int:
        """Distinct physical pages in use in "hbm" or "host"."""
        return self._pool(pool).pool.used

    def pages_in(self, pool: str) -> int:
        """Pages of "hbm" or "host", used or not."""
        return self._pool(pool).pool.num_pages

    def _pool(self, pool: str) -> KvArena:
        if pool not in ("hbm", "host"):
            raise IllegalTransition(f"this worker has no pool {pool!r}")
        return self._hbm if pool == "hbm" else self._host

    def checkpoint(self, rows: Sequence[int], upto_tokens: Sequence[int]) -> int:
        """Ask for copies of the KV of the first `upto_tokens[i]` tokens of each row to the host;
        returns the copier's ticket.

        Pages that host has already are not copied again, except a page that has grown.
        """
        columns = self.rows
        slots = columns.slots(rows)
        parts, before = [], []
        for row, slot, upto in zip(rows, slots.tolist(), upto_tokens, strict=True):
            if upto > columns.computed[slot]:
                raise IllegalTransition(
                    f"row {row}: checkpoint of {upto}, computed {columns.computed[slot]}"
                )
            if upto <= columns.on_host[slot]:
                continue  # copying a page that has grown less would spoil what host has
            parts.append(self._span(self._hbm, self._host, slot, columns.on_host[slot], upto))
            before.append((row, int(columns.on_host[slot])))
            columns.on_host[slot] = upto
        ticket = self.copier.copy(self._hbm, self._host, parts)
        columns.reads[slots] = ticket
        return self._remember(ticket, "host", before)

    def restore(self, rows: Sequence[int], tokens: Sequence[int]) -> int:
        """Ask for copies of the KV of the first `tokens[i]` tokens of each row to hbm; returns the
        copier's ticket.

        What hbm has already (adopted pages, for instance) is kept.
        """
        columns = self.rows
        slots = columns.slots(rows)
        parts, before = [], []
        for row, slot, upto in zip(rows, slots.tolist(), tokens, strict=True):
            if upto > columns.on_host[slot]:
                raise IllegalTransition(
                    f"row {row}: restore of {upto}, host has {columns.on_host[slot]}"
                )
            if upto <= columns.computed[slot]:
                continue
            parts.append(self._span(self._host, self._hbm, slot, columns.computed[slot], upto))
            before.append((row, int(columns.computed[slot])))
            columns.computed[slot] = upto
        ticket = self.copier.copy(self._host, self._hbm, parts)
        columns.writes[slots] = ticket
        return self._remember(ticket, "hbm", before)

    def _remember(self, ticket: int, pool: str, before: list[tuple[int, int]]) -> int:
        for old in list(self._before_copy):
            if not self.copier.over(old):
                break
            if not self.copier.error(old):
                del self._before_copy[old]
        self._before_copy[ticket] = (pool, before)
        return ticket

    def copied_rows(self, ticket: int) -> list[int]:
        """The rows of which a copy that was just asked for moves anything."""
        _, before = self._before_copy[ticket]
        return [row for row, _ in before]

    def undo(self, ticket: int) -> None:
        """A copy failed: nothing of it has arrived."""
        pool, before = self._before_copy.pop(ticket)
        arena, column = (
            self._pool(pool),
            getattr(self.rows, "computed" if pool == "hbm" else "on_host"),
        )
        for row, tokens in before:
            if self.rows.resident(row):
                slot = self.rows.slot(row)
                column[slot] = min(int(column[slot]), tokens)
                arena.release(slot, tokens)

    def _span(
        self, source: KvArena, target: KvArena, slot: int, have: int, upto: int
    ) -> tuple[IntArray, IntArray]:
        """Pages of tokens [have, upto) of a slot in both tiers; the target gets what it lacks."""
        target.reserve(slot, upto)
        first, last = int(have) // self.page_tokens, -(-upto // self.page_tokens)
        return (
            source.tables.pages[slot, first:last].copy(),
            target.tables.pages[slot, first:last].copy(),
        )

    def _settle(self, slot: int) -> None:
        """Before pages of the slot are freed: no copy reads or writes them any more."""
        self.copier.wait(int(max(self.rows.reads[slot], self.rows.writes[slot])))

    def release(self, row: int, pool: str) -> None:
        """Free the row's pages in one pool; pages that others share stay."""
        arena = self._pool(pool)
        if not self.rows.resident(row):
            self.rows.check_fed(row)
            return  # it ended, or was given back, before it began
        slot = self.rows.slot(row)
        self._settle(slot)
        if self.rows.ended[slot] == FAILED and pool == "hbm":
            self._hbm.erase(slot)
        arena.release(slot)
        if pool == "hbm":
            self.rows.computed[slot] = 0
        else:
            self.rows.on_host[slot] = 0

    # Shared prefixes: the runtime owns the index; here are only its physical pages.

    def adopt(self, row: int, keys: Sequence[int]) -> None:
        """Let an empty row begin with the published pages `keys`, in order."""
        self.prefix.adopt(row, keys)

    def publish(self, row: int, first: int, keys: Sequence[int]) -> None:
        """Offer the row's pages `first` .. under these keys."""
        self.prefix.publish(row, first, keys)

    def forget(self, keys: Sequence[int]) -> None:
        """Withdraw published pages; rows that adopted them keep them."""
        self.prefix.forget(keys)

    # Passes

    def run_pass(self, decodes: Sequence[int], chunks: Sequence[Chunk]) -> PassResult:
        """One forward pass.

        `decodes`: rows that compute the KV of their last token and sample the next. `chunks`: (row,
        start, length, last): KV of known tokens [start, start + length); `last` also samples. A row
        that has ended may still be decoded once (a ghost): its token is dropped. A pass that the
        device cannot compute is taken apart until the rows are known that it cannot compute: those
        fail.
        """
        begin = time.perf_counter()
        self.prefix.begin_pass()
        rows = [*decodes, *(row for row, _, _, _ in chunks)]
        if len(set(rows)) != len(rows) or not rows:
            raise IllegalTransition("a pass needs rows, each of them once")
        finished: list[tuple[int, str]] = []
        failed: list[tuple[int, str, str]] = []
        parts = [(tuple(decodes), tuple(chunks))]
        while parts:
            some, pieces = parts.pop()
            try:
                ended, bad = self._forward(some, pieces)
            except (RuntimeError, MemoryError) as error:  # of torch, or of the device beneath it
                if len(some) + len(pieces) > 1:
                    parts += reversed(halves(some, pieces))
                    continue
                row = some[0] if some else pieces[0][0]
                ended, bad = [], [(row, *device_error(error))]
                self._fail(row)
            finished += ended
            failed += bad
        return PassResult(
            finished=tuple(finished), failed=tuple(failed), duration_s=time.perf_counter() - begin
        )

    def _fail(self, row: int) -> None:
        slot = self.rows.slot(row)
        if self.rows.ended[slot] == RUNNING:
            self.rows.ended[slot] = FAILED
            self.prefix.spoil(slot)

    def _forward(
        self, decodes: Sequence[int], chunks: Sequence[Chunk]
    ) -> tuple[list[tuple[int, str]], list[tuple[int, str, str]]]:
        columns = self.rows
        slots, starts, lengths = segments(columns, self.prefix, decodes, chunks)
        self.copier.wait(int(columns.writes[slots].max()))
        self._reserve(slots, starts + lengths)
        samples = np.array([True] * len(decodes) + [last for _, _, _, last in chunks])
        rows = PassRows(
            slots=slots,
            starts=starts,
            lengths=lengths,
            num_decodes=len(decodes),
            token_ids=token_ids(columns, slots, starts, lengths, len(decodes)),
            wanted=(np.cumsum(lengths) - 1)[samples],
        )
        logits = self.forward_now(rows)
        sampled = [*decodes, *(row for row, _, _, last in chunks if last)]
        if not sampled and self.device == "cuda":
            # Nothing else waits for the pass: its errors and its time are its own, and what is
            # copied to the host is there.
            torch.cuda.current_stream().synchronize()
        alive = columns.ended[slots] == RUNNING  # a ghost's pass counts for nothing
        outcome = self._append(sampled, logits)  # may fail too: rows are as they were until then
        columns.computed[slots[alive]] = (starts + lengths)[alive]
        self.prefix.filled(slots[alive], starts[alive], (starts + lengths)[alive])
        return outcome

    def forward_now(self, rows: PassRows) -> torch.Tensor:
        """Float32 logits [R, vocab] of the wanted tokens of a pass."""
        return self.model.forward(self._hbm, rows, self._period(rows.lengths))

    def schedule_by(self, plan: Plan) -> None:
        """Modules run in the sub-batches of the plan from now on."""
        self._b_attn, self._b_moe = plan.b_attn, plan.b_moe

    def _period(self, lengths: Ints) -> Period | None:
        if not self._b_attn and not self._b_moe:
            return None
        return forward_period(lengths.tolist(), b_attn=self._b_attn, b_moe=self._b_moe)

    def _append(
        self, rows: Sequence[int], logits: torch.Tensor
    ) -> tuple[list[tuple[int, str]], list[tuple[int, str, str]]]:
        """Give each row its next token and say which rows ended by it, and which failed."""
        return next_tokens(self.rows, rows, logits)

    def _reserve(self, slots: Ints, ends: Ints) -> None:
        """Pages for the tokens before `ends` of each slot."""
        counts = self._hbm.tables.counts
        have = np.where(slots < len(counts), counts[np.minimum(slots, len(counts) - 1)], 0)
        for number in np.flatnonzero(ends > have * self.page_tokens).tolist():
            self._hbm.reserve(int(slots[number]), int(ends[number]))

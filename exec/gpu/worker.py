"""The worker of a device with queues: passes are launched and collected, tokens stay on the device.

A token that a pass has sampled feeds the next pass on the device; the host learns it a pass later.
Until then the row's columns count it as `flying`. Bias, penalties and log probabilities are the
device's work too. What the host must know to launch a pass (prompts with such tokens) makes it wait
for the passes before, and modules in sub-batches run while it waits.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from batchgen.errors import IllegalTransition
from batchgen.exec.arena import KvArena
from batchgen.exec.attention.paged import PassShape, pack, shape_of, unpack
from batchgen.exec.attention.triton import TritonBackend
from batchgen.exec.batch import PassResult, PassRows
from batchgen.exec.gpu.changing import asked_of
from batchgen.exec.gpu.copier import QueuedCopier
from batchgen.exec.gpu.flight import Flight
from batchgen.exec.gpu.graphs import DecodeGraphs, decode_shape
from batchgen.exec.gpu.handing import handed
from batchgen.exec.gpu.last import gather, in_flight, keep
from batchgen.exec.gpu.picking import pick
from batchgen.exec.gpu.pinned import pinned_zeros
from batchgen.exec.gpu.streams import Queues
from batchgen.exec.gpu.telling import wish_of
from batchgen.exec.gpu.warming import fill, warming_shapes
from batchgen.exec.kernels.use import HAS_TRITON
from batchgen.exec.logprobs import Logprobs, TokenLogprobs
from batchgen.exec.pass_sampler import accept
from batchgen.exec.rows import FAILED, RUNNING, Ints
from batchgen.exec.sampler import Draws
from batchgen.exec.segments import segments, token_ids
from batchgen.exec.transformer import Transformer
from batchgen.exec.worker import Worker
from batchgen.step import Chunk

BUFFERS = 3  # arrays of inputs on the host: one is filled, two passes may still read theirs


class QueuedWorker(Worker):
    """A `Worker` with `launch_pass` and `collect_pass`. `device` "cpu" has queues that work late,
    for tests. `graphs`: decode passes are CUDA graphs."""

    def __init__(
        self,
        model: Path | Transformer,
        *,
        device: str = "cuda",
        graphs: bool = True,
        **options: Any,
    ) -> None:
        self._queues = Queues(torch.device(device))
        self._last = torch.zeros(1, dtype=torch.int32, device=device)
        self._flights: deque[Flight] = deque()
        self._inputs: list[torch.Tensor] = [torch.zeros(0, dtype=torch.int32)] * BUFFERS
        self._turn = 0
        self._with_graphs = graphs and device == "cuda"
        super().__init__(model, device=device, **options)
        self._paged = isinstance(self.model.backend, TritonBackend)
        self.model.reserve_positions(self.config.max_context)  # graphs hold the table's address

    def runner(self, depth: int) -> Any:
        from batchgen.exec.gpu.runner import QueuedRunner

        return QueuedRunner(self, depth)

    def make_copier(self) -> Any:
        return QueuedCopier(self._queues)

    def _make_arenas(self, hbm_pages: int, host_pages: int) -> None:
        self._queues.idle()
        super()._make_arenas(hbm_pages, host_pages)
        stream = getattr(self._queues.compute, "stream", None)
        # Graphs hold addresses of the arena.
        self._graphs = DecodeGraphs(self._logits_of_packed, stream) if self._with_graphs else None

    def _arena(self, name: str, pages: int, dtype: torch.dtype) -> KvArena:
        return self.new_arena(
            name,
            pages,
            dtype,
            spare=name == "hbm",
            put=self._queues.compute.put,
            zeros=pinned_zeros if name == "host" and self.device == "cuda" else None,
        )

    def warm_up(self, *, token_budget: int, seats: int) -> int:
        """Compile what passes of a plan with these limits will launch; returns the most bytes of
        the device that one of them took. The arena needs no pages for it."""
        if not self._paged:
            return 0
        cuda = self.device == "cuda"
        before = 0
        if cuda:
            self._queues.idle()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        limits = (token_budget, seats, self.page_tokens, self.config.max_context)
        for shape in warming_shapes(*limits):
            packed = fill(shape, self._hbm.spare)
            drawing = np.arange(shape.num_wanted)

            def work(
                packed: torch.Tensor = packed,
                shape: PassShape = shape,
                drawing: Ints = drawing,
            ) -> None:
                with torch.inference_mode():
                    logits = self._logits_of_packed(packed.to(self.device), shape)
                    for some in (drawing[:0], drawing):
                        tokens = pick(logits, some, _some_draws(len(some)))
                    nowhere = np.full(len(tokens), -1, dtype=np.int32)
                    keep(self._last, handed(nowhere, tokens.device), tokens, len(logits[0]))

            self._queues.compute.put(work)
            self._queues.compute.mark().wait()
        if not cuda:
            return 0
        taken = int(torch.cuda.max_memory_allocated() - before)
        torch.cuda.empty_cache()
        return taken

    # -- launching --------------------------------------------------------------------------------

    def launch_pass(self, decodes: Sequence[int], chunks: Sequence[Chunk]) -> Flight:
        """Queue a pass (see `run_pass`) behind those that were launched and not collected."""
        begin = time.perf_counter()
        self.prefix.begin_pass()
        rows = [*decodes, *(row for row, _, _, _ in chunks)]
        if len(set(rows)) != len(rows) or not rows:
            raise IllegalTransition("a pass needs rows, each of them once")
        slots = self.rows.slots(rows)
        alone, flying = self._asks_host(slots), self.rows.flying[slots]
        # Chunks are of tokens that the host knows, and penalties know of one that it does not.
        if alone or bool(flying[len(decodes) :].any()) or bool((flying > 1).any()):
            self._learn_all()
        if alone:
            flight = Flight(result=self.run_pass(decodes, chunks))
        else:
            try:
                flight = self._launch(decodes, chunks)
            except (RuntimeError, MemoryError):
                # Whoever cannot be computed is found as on any worker: pass by pass, in parts.
                self._learn_all()
                flight = Flight(result=self.run_pass(decodes, chunks))
        flight.began_s = begin
        self._flights.append(flight)
        return flight

    def _asks_host(self, slots: Ints) -> bool:
        """Whether the host has to see to the pass itself."""
        adjusted = not HAS_TRITON and bool(self.rows.options.adjusted[slots].any())
        return adjusted or self._b_attn > 0 or self._b_moe > 0

    def _launch(self, decodes: Sequence[int], chunks: Sequence[Chunk]) -> Flight:
        columns, n = self.rows, len(decodes)
        slots, starts, lengths = segments(columns, self.prefix, decodes, chunks)
        self.copier.require(int(columns.writes[slots].max()))
        self._reserve(slots, starts + lengths)
        samples = np.array([True] * n + [last for _, _, _, last in chunks])
        ids = token_ids(columns, slots, starts, lengths, n)
        unknown = (columns.flying[slots[:n]] > 0) & (columns.ended[slots[:n]] != FAILED)
        ids[:n][unknown] = in_flight(slots[:n][unknown])
        rows = PassRows(
            slots=slots,
            starts=starts,
            lengths=lengths,
            num_decodes=n,
            token_ids=ids,
            wanted=(np.cumsum(lengths) - 1)[samples],
        )
        sampled = [*decodes, *(row for row, _, _, last in chunks if last)]
        taking, alive = slots[samples], columns.ended[slots] == RUNNING
        flight = self._queue_pass(rows, sampled, taking, (starts + lengths)[samples])
        columns.computed[slots[alive]] = (starts + lengths)[alive]
        self.prefix.filled(slots[alive], starts[alive], (starts + lengths)[alive])
        columns.flying[slots[alive & samples]] += 1
        return flight

    def _queue_pass(self, rows: PassRows, sampled: list[int], taking: Ints, ends: Ints) -> Flight:
        """The pass on the compute queue, its tokens on the read queue."""
        columns, compute, vocab_size = self.rows, self._queues.compute, self.config.vocab_size
        drawing, draws = self._draws(taking)
        asked = asked_of(columns, taking) if HAS_TRITON else None
        wish = wish_of(columns, taking, vocab_size)
        self._room_for_last(int(rows.slots.max()) + 1)
        last, where = self._last, taking.astype(np.int32)
        made: list[torch.Tensor] = []
        logits_of = self._inputs_of(rows)

        def work() -> None:
            with torch.inference_mode():
                logits = logits_of()[: len(taking)]
                own = None if wish is None else wish.own(logits)
                if asked is not None:
                    asked.apply(logits, last)
                tokens = pick(logits, drawing, draws)
                keep(last, handed(where, tokens.device), tokens, vocab_size)
                made.append(tokens)
                if wish is not None and own is not None:
                    made.append(wish.look(own, tokens))

        read, pinned = self._queues.read, self.device == "cuda"
        tokens = torch.zeros(len(taking), dtype=torch.int32, pin_memory=pinned)
        logprobs = None
        compute.put(work if len(taking) else logits_of)
        read.after(compute.mark())
        if len(taking):
            read.put(lambda: tokens.copy_(made[0], non_blocking=True))
        if wish is not None:
            shape = (len(wish.numbers), wish.width)
            logprobs = torch.zeros(shape, dtype=torch.float64, pin_memory=pinned)
            read.put(lambda: logprobs.copy_(made[1], non_blocking=True))
        return Flight(
            rows=sampled,
            slots=taking,
            generations=np.where(columns.ended[taking] == RUNNING, columns.generation[taking], -1),
            ends=ends,
            tokens=tokens,
            wish=wish,
            logprobs=logprobs,
            mark=read.mark(),
            kept=(made,),
        )

    def _draws(self, slots: Ints) -> tuple[Ints, Draws]:
        """Which of these rows draw, and how; a token in flight counts as drawn."""
        columns, options = self.rows, self.rows.options
        running = columns.ended[slots] == RUNNING
        drawing = np.flatnonzero(running & options.drawing[slots])
        some = slots[drawing]
        return drawing, options.draws(some, columns.produced(some) + columns.flying[some])

    def _room_for_last(self, slots: int) -> None:
        have = self._last
        if slots > len(have):
            self._queues.idle()  # rare: sizes double; and graphs hold its address
            self._last = torch.zeros(
                max(slots, 2 * len(have), 1024), dtype=torch.int32, device=have.device
            )
            self._last[: len(have)] = have
            if self._graphs is not None:
                self._graphs = DecodeGraphs(
                    self._logits_of_packed, getattr(self._queues.compute, "stream", None)
                )

    # -- the forward pass on the device -----------------------------------------------------------

    def _inputs_of(self, rows: PassRows) -> Any:
        """What launches the pass and returns its logits; all that it needs of the host is taken
        now."""
        if not self._paged:
            return self._plain_inputs(rows)
        shape = shape_of(self._hbm, rows)
        graphs = self._graphs if not shape.num_chunks else None
        if graphs is not None:
            shape = decode_shape(shape.num_decodes, shape.table_width, self.page_tokens)
        buffer = self._buffer(shape.elements)
        used = pack(self._hbm, rows, rows.token_ids, shape, buffer.numpy())
        packed = buffer[:used]
        if graphs is not None:
            return lambda: graphs.run(packed, shape)
        device = torch.device(self.device)
        return lambda: self._logits_of_packed(packed.to(device, non_blocking=True), shape)

    def _buffer(self, elements: int) -> torch.Tensor:
        """Host memory for the inputs of a pass, which no pass in flight reads."""
        self._turn = (self._turn + 1) % BUFFERS
        have = self._inputs[self._turn]
        if len(have) < elements:
            size = max(elements, 2 * len(have), 1 << 16)
            pinned = self.device == "cuda"
            have = torch.zeros(size, dtype=torch.int32, pin_memory=pinned)
            self._inputs[self._turn] = have
        return have

    def _logits_of_packed(self, packed: torch.Tensor, shape: PassShape) -> torch.Tensor:
        paged = unpack(packed, shape)
        with torch.inference_mode():
            prepared = self.model.prepare_paged(self._hbm, paged)
            ids = gather(self._last, paged.token_ids)
            return self.model.logits(self.model.compute(self._hbm, ids, prepared))

    def _plain_inputs(self, rows: PassRows) -> Any:
        """The same by a backend that prepares a pass on the host."""
        prepared = self._queues.compute.now(lambda: self.model.prepare(self._hbm, rows))
        ids = torch.from_numpy(rows.token_ids.astype(np.int32))

        def run() -> torch.Tensor:
            with torch.inference_mode():
                known = gather(self._last, ids.to(self.device))
                return self.model.logits(self.model.compute(self._hbm, known, prepared))

        return run

    def forward_now(self, rows: PassRows) -> torch.Tensor:
        """A pass of which the host wants the logits; it waits for them."""
        found: list[torch.Tensor] = []
        compute, period = self._queues.compute, self._period(rows.lengths)
        compute.put(lambda: found.append(self.model.forward(self._hbm, rows, period)))
        compute.mark().wait()
        return found[0]

    # -- collecting -------------------------------------------------------------------------------

    def collect_pass(self, flight: Flight) -> PassResult:
        """What came of the oldest launched pass; the host waits for it."""
        if not self._flights or self._flights[0] is not flight:
            raise IllegalTransition("a pass was collected that is not the oldest")
        self._learn(flight)
        self._flights.popleft()
        assert flight.result is not None
        return flight.result

    def _learn_all(self) -> None:
        for flight in self._flights:
            self._learn(flight)

    def _learn(self, flight: Flight) -> None:
        """The outcome of a pass goes into the rows' columns."""
        if flight.result is not None:
            return
        columns = self.rows
        assert flight.slots is not None
        assert flight.ends is not None
        assert flight.tokens is not None
        flight.mark.wait()
        flight.kept = ()
        slots, tokens = flight.slots, flight.tokens.numpy().astype(np.int64)
        ours = columns.generation[slots] == flight.generations
        columns.flying[slots[ours]] -= 1
        bad = ours & (tokens >= self.config.vocab_size)
        told = self._told(flight, ours & ~bad)
        with torch.inference_mode():
            finished, failed = accept(columns, flight.rows, slots, tokens, ours & ~bad, bad)
        for noted, one in told:
            noted.tokens.append(one)
        over = slots[ours & (columns.ended[slots] != RUNNING)]
        # What the next pass, which may be in flight already, does for these counts for nothing.
        columns.computed[over] = flight.ends[ours & (columns.ended[slots] != RUNNING)]
        columns.flying[over] = 0
        columns.generation[over] += 1
        flight.result = PassResult(
            finished=tuple(finished),
            failed=tuple(failed),
            duration_s=time.perf_counter() - flight.began_s,
        )

    def _told(
        self, flight: Flight, good: npt.NDArray[np.bool_]
    ) -> list[tuple[Logprobs, TokenLogprobs]]:
        """What the log probabilities of a pass add to, and what, for its `good` [R] rows."""
        if flight.wish is None or flight.logprobs is None or flight.slots is None:
            return []
        found, state = [], self.rows.options.state
        lines = flight.wish.told(flight.logprobs)
        for number, line in zip(flight.wish.numbers.tolist(), lines, strict=True):
            noted = state[int(flight.slots[number])].logprobs if good[number] else None
            if noted is not None:
                found.append((noted, line))
        return found

    def finish(self) -> None:
        """Nothing is in flight any more."""
        self._learn_all()
        self._flights.clear()
        self.copier.close()

    def _settle(self, slot: int) -> None:
        self.copier.settle(int(max(self.rows.reads[slot], self.rows.writes[slot])))


def _some_draws(count: int) -> Draws:
    """As rows with every option draw."""
    half = np.full(count, 0.5)
    return Draws(
        temperature=half,
        top_p=half,
        min_p=half / 10,
        top_k=np.full(count, 40),
        seeds=np.zeros(count, dtype=np.uint64),
        counters=np.zeros(count, dtype=np.int64),
    )

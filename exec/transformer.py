"""A decoder-only transformer over a ragged paged batch. Knows no rows, no sampling, no policy.

One class for all families: they differ in the layers that `exec.families` makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from batchgen.errors import UserError
from batchgen.exec.arena import KvArena
from batchgen.exec.arithmetic import Arithmetic, ExactArithmetic
from batchgen.exec.attention import choose_backend
from batchgen.exec.attention.chunks import ChunkGroup, chunk_groups
from batchgen.exec.attention.paged import PagedPass
from batchgen.exec.batch import Batch, IntArray, PassRows, Prepared, Wanted
from batchgen.exec.config import LatentConfig, ModelConfig, load_config
from batchgen.exec.exact import check_products
from batchgen.exec.layer_stack import stack_layers
from batchgen.exec.layers import rms_norm
from batchgen.exec.packed import PackedMatrix
from batchgen.exec.rotary import RotaryTable
from batchgen.exec.weights import Checkpoint, Source, read_model
from batchgen.schedule import ATTENTION, Period

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check_mode(dtype: str, *, exact: bool, device: str) -> None:
    """Raises UserError for modes that do not exist."""
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}", remedy=f"choose one of {', '.join(DTYPES)}")
    if exact and (dtype != "float32" or device != "cpu"):
        raise UserError(
            f"exact mode runs in float32 on the cpu, not in {dtype} on {device}",
            remedy="leave out --exact, or --dtype and --device",
        )


def load_model(
    directory: Path, *, dtype: str = "float32", exact: bool = False, device: str = "cpu"
) -> Transformer:
    """The model of a checkpoint folder, in memory on `device` ("cpu" or "cuda").

    `exact`: a token's logits are bitwise the same in every batch (float32 on the cpu only). Raises
    UserError for a checkpoint that is broken or not supported, and for modes that do not exist.
    """
    check_mode(dtype, exact=exact, device=device)
    config = load_config(Path(directory))
    checkpoint = Checkpoint(Path(directory), config, device)
    return Transformer(config, checkpoint, DTYPES[dtype], exact=exact, device=device)


class Transformer:
    """A model in memory; `forward` runs one pass and returns logits of the chosen tokens."""

    def __init__(
        self,
        config: ModelConfig,
        checkpoint: Source,
        dtype: torch.dtype,
        *,
        exact: bool = False,
        device: str = "cpu",
    ) -> None:
        self.config = config
        self._arithmetic = (ExactArithmetic if exact else Arithmetic)(dtype, device)
        weights = read_model(config, checkpoint, dtype, self._arithmetic)
        self.embedding, self.final_norm = weights.embedding, weights.final_norm
        self.head, self.layers = weights.head, weights.layers
        self._rotary = RotaryTable(config.rope, torch.device(device))
        self.backend = choose_backend(config, dtype, exact=exact, device=device)
        self.stack = stack_layers(self.layers, self.backend)
        if exact:
            check_products(self._matrices())

    @property
    def kernels(self) -> str:
        """What computes attention, for reports: "compiled" or "torch"."""
        return self.backend.name

    def _matrices(self) -> Iterator[torch.Tensor]:
        yield self.head
        for layer in self.layers:
            yield from layer.matrices()

    def forward(self, arena: KvArena, rows: PassRows, period: Period | None = None) -> torch.Tensor:
        """Run T tokens, write their KV into `arena`, return float32 logits [R, vocab].

        The head is applied to the R wanted tokens alone, and so is the last layer but for its KV.
        `period`: the modules of every layer run in its order, in its parts (None: each once, on
        everything).
        """
        prepared = self.prepare(arena, rows, period)
        return self.logits(self.compute(arena, arena.tensor(rows.token_ids), prepared)).float()

    @torch.inference_mode()
    def prepare(self, arena: KvArena, rows: PassRows, period: Period | None = None) -> Prepared:
        """What `compute` needs of a pass; arrays of the host become tensors of the device here."""
        if period is not None and not period.whole:
            return Prepared(
                batches=tuple(
                    self._batch(arena, rows.part(*node.rows)) if node.module == ATTENTION else None
                    for node in period.nodes
                ),
                wanted=Wanted(tokens=arena.tensor(rows.wanted), attention=None),
                period=period,
            )
        wanted = None
        if len(rows.wanted) < len(rows.token_ids):
            some = self.backend.prepare(arena, rows.of_wanted()) if len(rows.wanted) else None
            wanted = Wanted(tokens=arena.tensor(rows.wanted), attention=some)
        return Prepared(batches=(self._batch(arena, rows),), wanted=wanted)

    def reserve_positions(self, positions: int) -> None:
        """No pass will make the table of angles grow before it reaches so many positions."""
        self._rotary.reserve(positions - 1)

    def prepare_paged(self, arena: KvArena, paged: PagedPass) -> Prepared:
        """The same of a pass that is on the device already, by launches alone."""
        shape, places = paged.shape, paged.positions
        columns = paged.token_rows * shape.table_width + places // arena.page_tokens
        cos, sin = self._rotary.rows(places)
        batch = Batch(
            pages=paged.tables.flatten().index_select(0, columns).long(),
            offsets=(places % arena.page_tokens).long(),
            cos=cos,
            sin=sin,
            angles=self._rotary.tables,
            backend=self.backend,
            attention=paged,
        )
        wanted = None
        if shape.num_wanted < shape.num_tokens:
            some = paged.of_wanted() if shape.num_wanted else None
            wanted = Wanted(tokens=paged.wanted, attention=some)
        return Prepared(batches=(batch,), wanted=wanted)

    @torch.inference_mode()
    def compute(self, arena: KvArena, ids_T: torch.Tensor, prepared: Prepared) -> torch.Tensor:
        """All layers over the tokens `ids_T`; hidden states [R, H] of the wanted ones."""
        x_TH = self.embedding.index_select(0, ids_T)
        if prepared.period is None:
            return self._by_layers(x_TH, arena, prepared)
        x_TH = self._by_modules(x_TH, arena, prepared)
        assert prepared.wanted is not None
        return x_TH.index_select(0, prepared.wanted.tokens)

    @torch.inference_mode()
    def logits(self, x_RH: torch.Tensor) -> torch.Tensor:
        """Logits [R, vocab] of hidden states behind the last layer, in the dtype of the head's
        product."""
        eps = self.config.rms_eps
        if self.stack is not None and isinstance(self.head, PackedMatrix):
            return self.stack.logits(x_RH, self.final_norm, self.head, eps)
        return self._arithmetic.linear(rms_norm(x_RH, self.final_norm, eps), self.head)

    def _by_layers(self, x_TH: torch.Tensor, arena: KvArena, prepared: Prepared) -> torch.Tensor:
        """All layers one after another; what the wanted tokens [R, H] leave behind."""
        eps = self.config.rms_eps
        batch, last = prepared.batches[0], len(self.layers) - 1
        assert batch is not None
        count = len(self.layers) if prepared.wanted is None else last
        if self.stack is not None and count:
            x_TH = self.stack.run(x_TH, arena, batch, count)
        else:
            for number, layer in enumerate(self.layers[:count]):
                x_TH = layer(x_TH, eps, arena, number, batch)
        if prepared.wanted is None:
            return x_TH
        return self.layers[last].last(x_TH, eps, arena, last, batch, prepared.wanted)

    def _by_modules(self, x_TH: torch.Tensor, arena: KvArena, prepared: Prepared) -> torch.Tensor:
        """All layers, module by module: what attention leaves is parked in `x_TH`, in place."""
        eps = self.config.rms_eps
        assert prepared.period is not None
        for number, layer in enumerate(self.layers):
            for node, batch in zip(prepared.period.nodes, prepared.batches, strict=True):
                part = x_TH[slice(*node.tokens)]
                if batch is not None:
                    part.copy_(layer.attend(part, eps, arena, number, batch))
                else:
                    part.copy_(layer.feed(part, eps))
        return x_TH

    def _batch(self, arena: KvArena, rows: PassRows) -> Batch:
        slots, positions = rows.flat()
        columns, offsets = np.divmod(positions, arena.page_tokens)
        cos, sin = self._rotary.at(arena.tensor(positions), int(positions.max()))
        attended, absorbed, expanded = self._split(arena, rows)
        return Batch(
            pages=arena.tensor(arena.tables.pages[slots, columns]),
            offsets=arena.tensor(offsets),
            cos=cos,
            sin=sin,
            angles=self._rotary.tables,
            backend=self.backend,
            attention=None if attended is None else self.backend.prepare(arena, attended),
            absorbed=None if absorbed is None else arena.tensor(absorbed),
            expanded=expanded,
        )

    def _split(
        self, arena: KvArena, rows: PassRows
    ) -> tuple[PassRows | None, IntArray | None, tuple[ChunkGroup, ...]]:
        """The rows that the backend attends for, their tokens (None: all or none), and the chunks
        of latent attention that are cheaper to expand."""
        one = self.config.attention
        if not isinstance(one, LatentConfig) or self._arithmetic.exact:
            return rows, None, ()
        long = rows.lengths >= tokens_worth_expanding(one)
        if not long.any():
            return rows, None, ()
        expanded = chunk_groups(
            arena, rows.slots[long], rows.starts[long], rows.lengths[long], rows.firsts[long]
        )
        if long.all():
            return None, None, expanded
        tokens = np.flatnonzero(np.repeat(~long, rows.lengths))
        others = PassRows(
            slots=rows.slots[~long],
            starts=rows.starts[~long],
            lengths=rows.lengths[~long],
            num_decodes=rows.num_decodes,
            token_ids=rows.token_ids[tokens],
            wanted=rows.wanted[:0],
        )
        return others, tokens, expanded


def tokens_worth_expanding(one: LatentConfig) -> int:
    """Tokens of a chunk from which on it is cheaper to compute keys and values of all heads than
    to attend to latents; at least 2, because a decoding row is one."""
    absorbed = 2 * one.kv_rank + one.rope_dim  # products per query, key and head
    expanded = one.nope_dim + one.rope_dim + one.v_dim
    once = one.kv_rank * (one.nope_dim + one.v_dim)  # per key and head
    return max(2, -(-once // (absorbed - expanded))) if absorbed > expanded else 1 << 62

"""Tensors of a model by name: what a checkpoint must hold, whether it does, and reading them.

The code that makes a family's layers runs twice: on a reader that only takes notes, which gives the
names and shapes that the config asks for, and then on one that reads the files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from batchgen.errors import DataError
from batchgen.exec.arithmetic import Arithmetic
from batchgen.exec.config import ModelConfig
from batchgen.exec.dequantise import from_fp8_blocks
from batchgen.exec.safetensors_files import (
    FLOATS,
    TensorEntry,
    bad_file,
    read_header,
    read_tensor,
    shard_files,
)

# What old exporters wrote beside the weights; it carries no information of its own.
IGNORED_SUFFIXES = ("rotary_emb.inv_freq", "self_attn.masked_bias")
FLOAT_DTYPES = tuple(FLOATS.values())
BELONGS = "check that config.json belongs to this checkpoint"


class Source(Protocol):
    """Where a `Reader` gets tensors from."""

    device: torch.device

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds the tensor."""
        ...

    def get(self, name: str, shape: Sequence[int], kinds: Sequence[torch.dtype]) -> torch.Tensor:
        """The tensor as stored, which must have that shape and one of these dtypes."""
        ...


class Reader:
    """Tensors in one dtype, and the `arithmetic` of the model; `under` names a part of it."""

    def __init__(
        self,
        source: Source,
        dtype: torch.dtype,
        arithmetic: Arithmetic,
        fp8_block: tuple[int, int] | None = None,
        prefix: str = "",
    ) -> None:
        self.arithmetic = arithmetic
        self._source, self._dtype, self._prefix = source, dtype, prefix
        self._fp8_block = fp8_block

    def __call__(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The tensor of that name and shape, in `dtype` or that of the model; weights in FP8 are
        multiplied by their scales."""
        full, source = self._prefix + name, self._source
        scales = full + "_scale_inv"
        if self._fp8_block is not None and len(shape) == 2 and source.has(scales):
            grid = [-(-size // block) for size, block in zip(shape, self._fp8_block, strict=True)]
            stored = from_fp8_blocks(
                source.get(full, shape, (torch.float8_e4m3fn,)),
                source.get(scales, grid, FLOAT_DTYPES),
                self._fp8_block,
            )
        else:
            stored = source.get(full, shape, FLOAT_DTYPES)
        return stored.to(dtype or self._dtype).to(source.device)

    def stored(self, name: str, *shape: int, kind: torch.dtype) -> torch.Tensor:
        """The tensor as it lies in the file, for a family that understands it."""
        return self._source.get(self._prefix + name, shape, (kind,))

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds the tensor; never where only notes are taken."""
        return self._source.has(self._prefix + name)

    def empty(self, *shape: int) -> torch.Tensor:
        """A tensor to be filled."""
        return torch.empty(shape, dtype=self._dtype, device=self._source.device)

    def joined(self, rows: Mapping[str, int], *inner: int) -> torch.Tensor:
        """Tensors [rows, *inner] by name, one below the other, without a second copy of them."""
        whole = self.empty(sum(rows.values()), *inner)
        for (name, count), part in zip(rows.items(), whole.split(list(rows.values())), strict=True):
            part.copy_(self(name, count, *inner))
        return whole

    def under(self, prefix: str) -> Reader:
        """A reader whose names begin with `prefix`."""
        return Reader(
            self._source, self._dtype, self.arithmetic, self._fp8_block, self._prefix + prefix
        )


class Notes:
    """A source without data: `expected` has shape and allowed dtypes of all that was asked for."""

    device = torch.device("meta")

    def __init__(self, names: Sequence[str] = ()) -> None:
        self._names = frozenset(names)
        self.expected: dict[str, tuple[tuple[int, ...], tuple[torch.dtype, ...]]] = {}

    def has(self, name: str) -> bool:
        return name in self._names

    def get(self, name: str, shape: Sequence[int], kinds: Sequence[torch.dtype]) -> torch.Tensor:
        self.expected[name] = (tuple(shape), tuple(kinds))
        return torch.empty(tuple(shape), dtype=kinds[0], device=self.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """All weights of a model; `layers` are those of its family."""

    embedding: torch.Tensor
    final_norm: torch.Tensor
    head: torch.Tensor
    layers: list[Any]


def read_model(
    config: ModelConfig, source: Source, dtype: torch.dtype, arithmetic: Arithmetic
) -> Weights:
    """Every tensor of a model; those of the layers last, layer by layer."""
    from batchgen.exec.families import BY_NAME  # families build on this module

    read = Reader(source, dtype, arithmetic, config.fp8_block)
    shape = config.vocab_size, config.hidden_size
    # The head first: while it is packed it is there twice, and nothing else is yet.
    head = None if config.tie_word_embeddings else arithmetic.pack(read("lm_head.weight", *shape))
    embedding = read("model.embed_tokens.weight", *shape)
    return Weights(
        embedding=embedding,
        final_norm=read("model.norm.weight", config.hidden_size),
        head=embedding if head is None else head,
        layers=[
            BY_NAME[config.family].layer(read, config, number)
            for number in range(config.num_layers)
        ],
    )


OUTER = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")


def _notes(config: ModelConfig, names: Sequence[str] = ()) -> Notes:
    notes = Notes(names)
    read_model(config, notes, torch.float32, Arithmetic(torch.float32, "meta"))
    return notes


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint in its published layout, unquantised, with its shape; not in the
    order in which they are read: random checkpoints are drawn in this one."""
    shapes = {name: shape for name, (shape, _) in _notes(config).expected.items()}
    first = {name: shapes.pop(name) for name in OUTER if name in shapes}
    return first | shapes


class Checkpoint:
    """The checked table of contents of a safetensors folder; `tensor(name)` reads one tensor.

    Construction compares names, shapes and dtypes with the config, so that a wrong checkpoint costs
    one line and no memory.
    """

    def __init__(self, directory: Path, config: ModelConfig, device: str = "cpu") -> None:
        self.directory = Path(directory)
        self.device = torch.device(device)
        self.entries: dict[str, TensorEntry] = {}
        for shard in shard_files(self.directory):
            for name, entry in read_header(shard).items():
                if name in self.entries:
                    raise bad_file(
                        shard, f"tensor {name!r:.80} is also in {self.entries[name].path.name}"
                    )
                self.entries[name] = entry
        self._check(config)

    def _check(self, config: ModelConfig) -> None:
        expected = _notes(config, tuple(self.entries)).expected
        where = str(self.directory)
        missing = [name for name in expected if name not in self.entries]
        if missing:
            raise DataError(
                f"{len(missing)} tensors are missing, first {missing[0]}",
                path=where,
                remedy="the checkpoint is incomplete or does not match its config.json",
            )
        known = set(expected) | ({"lm_head.weight"} if config.tie_word_embeddings else set())
        extra = [
            name
            for name in self.entries
            if name not in known
            and not name.endswith(IGNORED_SUFFIXES)
            and not (config.ignored and name.startswith(config.ignored))
        ]
        if extra:
            raise DataError(
                f"{len(extra)} tensors are unknown to {config.family}, first {extra[0]!r:.80}",
                path=where,
                remedy=BELONGS,
            )
        for name, (shape, kinds) in expected.items():
            entry = self.entries[name]
            if entry.shape != shape:
                raise DataError(
                    f"tensor {name} has shape {list(entry.shape)}, "
                    f"config.json asks for {list(shape)}",
                    path=where,
                    remedy=BELONGS,
                )
            if entry.dtype not in kinds:
                raise DataError(
                    f"tensor {name} has dtype {_short(entry.dtype)}, "
                    f"expected {' or '.join(map(_short, kinds))}",
                    path=where,
                    remedy=BELONGS + ", its quantization_config too",
                )

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(entry.num_bytes for entry in self.entries.values())

    def has(self, name: str) -> bool:
        return name in self.entries

    def get(self, name: str, shape: Sequence[int], kinds: Sequence[torch.dtype]) -> torch.Tensor:
        """See `Source`; shape and dtype were checked at construction."""
        return read_tensor(self.entries[name])

    def tensor(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Read one tensor and convert it to `dtype`."""
        return read_tensor(self.entries[name]).to(dtype)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""Safetensors folders: headers checked before a byte of data is used, then tensors read by name.

Never unpickles, never runs code from the checkpoint, never opens a file outside its folder.
The format: 8 bytes little-endian header length, a JSON header (dtype, shape, data_offsets), data.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from batchgen.errors import DataError, UserError
from batchgen.exec.config import ModelConfig, read_json_object
from batchgen.paths import has_file

MAX_HEADER_BYTES = 100_000_000
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# What old exporters wrote beside the weights; it carries no information of its own.
IGNORED_SUFFIXES = ("rotary_emb.inv_freq", "self_attn.masked_bias")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """One tensor of one file: `start` is the absolute byte offset in `path`."""

    name: str
    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    num_bytes: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of one safetensors file, after checks that make every later read safe.

    Raises DataError for a header that is cut, too long, not JSON, of unknown dtype, or whose byte
    ranges overlap, leave holes, leave the file or disagree with the shape.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise _bad(path, "is not a safetensors file (header length does not fit the file)")
        raw = file.read(length)
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise _bad(path, f"has an unreadable header ({error!s:.80})") from None
    if not isinstance(header, dict):
        raise _bad(path, "has a header that is not an object")
    header.pop("__metadata__", None)
    entries = [_entry(path, name, value, 8 + length) for name, value in header.items()]
    end = 8 + length
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.num_bytes)):
        if entry.start != end:
            raise _bad(path, f"tensor {entry.name!r:.80} overlaps another or leaves a hole")
        end += entry.num_bytes
    if end != size:
        raise _bad(path, f"holds {size} bytes but its header describes {end}")
    return {entry.name: entry for entry in entries}


def _bad(path: Path, message: str) -> DataError:
    return DataError(message, path=str(path), remedy="download or export the checkpoint again")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name appears twice")
    return values


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 48


def _entry(path: Path, name: str, value: Any, base: int) -> TensorEntry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _bad(path, f"tensor {name!r:.80} must have dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _bad(
            path, f"tensor {name!r:.80} has dtype {dtype!r:.20}; supported: {', '.join(DTYPES)}"
        )
    if not isinstance(shape, list) or len(shape) > 8 or not all(map(_is_size, shape)):
        raise _bad(path, f"tensor {name!r:.80} has an impossible shape {shape!r:.60}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise _bad(path, f"tensor {name!r:.80} has impossible data_offsets {offsets!r:.60}")
    num_bytes = DTYPES[dtype].itemsize
    for extent in shape:
        num_bytes *= extent  # Python integers do not overflow
    if offsets[1] - offsets[0] != num_bytes:
        raise _bad(
            path, f"tensor {name!r:.80} has {offsets[1] - offsets[0]} bytes, needs {num_bytes}"
        )
    return TensorEntry(
        name=name,
        path=path,
        dtype=DTYPES[dtype],
        shape=tuple(shape),
        start=base + offsets[0],
        num_bytes=num_bytes,
    )


def _shards(directory: Path) -> list[Path]:
    """The weight files of a checkpoint: one file, or what the index lists, inside the folder."""
    index = directory / "model.safetensors.index.json"
    if not has_file(index):
        single = directory / "model.safetensors"
        if has_file(single):
            return [single]
        remedy = "only safetensors checkpoints are read; convert .bin or .pt files first"
        raise UserError(f"{directory} has no model.safetensors and no index", remedy=remedy)
    weight_map = read_json_object(index, "shard index").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DataError("must map tensor names to files", path=str(index), field="weight_map")
    shards = []
    for name in sorted({str(value) for value in weight_map.values()}):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise DataError(
                f"{name!r:.80} is not the name of a safetensors file of this folder",
                path=str(index),
                field="weight_map",
            )
        if not has_file(directory / name):
            raise DataError(
                f"lists {name}, which is missing", path=str(index), remedy="download it again"
            )
        shards.append(directory / name)
    return shards


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint in its published (one tensor per expert) layout."""
    hidden, head_dim = config.hidden_size, config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        shapes[prefix + "input_layernorm.weight"] = (hidden,)
        shapes[prefix + "post_attention_layernorm.weight"] = (hidden,)
        sizes = {"q": config.q_size, "k": config.kv_size, "v": config.kv_size}
        for name, rows in sizes.items():
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = (rows, hidden)
        shapes[prefix + "self_attn.o_proj.weight"] = (hidden, config.q_size)
        if config.attention_bias:
            for name, rows in (sizes | {"o": hidden}).items():
                shapes[f"{prefix}self_attn.{name}_proj.bias"] = (rows,)
        if config.qk_norm:
            shapes[prefix + "self_attn.q_norm.weight"] = (head_dim,)
            shapes[prefix + "self_attn.k_norm.weight"] = (head_dim,)
        shapes |= _mlp_shapes(config, layer, prefix + "mlp.")
    return shapes


def _mlp_shapes(config: ModelConfig, layer: int, prefix: str) -> dict[str, tuple[int, ...]]:
    hidden, moe = config.hidden_size, config.moe
    if moe is not None and layer in moe.sparse_layers:
        shapes: dict[str, tuple[int, ...]] = {prefix + "gate.weight": (moe.num_experts, hidden)}
        for expert in range(moe.num_experts):
            for name in ("gate", "up"):
                shapes[f"{prefix}experts.{expert}.{name}_proj.weight"] = (
                    moe.intermediate_size,
                    hidden,
                )
            shapes[f"{prefix}experts.{expert}.down_proj.weight"] = (hidden, moe.intermediate_size)
        return shapes
    inner = config.intermediate_size
    shapes = {f"{prefix}{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
    shapes[prefix + "down_proj.weight"] = (hidden, inner)
    if config.mlp_bias:
        shapes |= {f"{prefix}{name}_proj.bias": (inner,) for name in ("gate", "up")}
        shapes[prefix + "down_proj.bias"] = (hidden,)
    return shapes


def _fused_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The stacked expert tensors that transformers 5 keeps in memory and may save."""
    shapes: dict[str, tuple[int, ...]] = {}
    if config.moe is not None:
        experts, inner = config.moe.num_experts, config.moe.intermediate_size
        for layer in config.moe.sparse_layers:
            prefix = f"model.layers.{layer}.mlp.experts."
            shapes[prefix + "gate_up_proj"] = (experts, 2 * inner, config.hidden_size)
            shapes[prefix + "down_proj"] = (experts, config.hidden_size, inner)
    return shapes


class Checkpoint:
    """The checked table of contents of a safetensors folder; `tensor(name)` reads one tensor.

    Construction compares names and shapes with the config, so that a wrong checkpoint costs one
    line and no memory. Reads copy into private memory: later changes of the file cannot reach us.
    """

    def __init__(self, directory: Path, config: ModelConfig) -> None:
        self.directory = Path(directory)
        self.entries: dict[str, TensorEntry] = {}
        for shard in _shards(self.directory):
            for name, entry in read_header(shard).items():
                if name in self.entries:
                    raise _bad(
                        shard, f"tensor {name!r:.80} is also in {self.entries[name].path.name}"
                    )
                self.entries[name] = entry
        self.fused = any(name.endswith(".mlp.experts.gate_up_proj") for name in self.entries)
        self._check(config)

    def _check(self, config: ModelConfig) -> None:
        expected = expected_shapes(config)
        if self.fused:
            expected = {
                name: shape for name, shape in expected.items() if ".mlp.experts." not in name
            }
            expected |= _fused_shapes(config)
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
            if name not in known and not name.endswith(IGNORED_SUFFIXES)
        ]
        if extra:
            raise DataError(
                f"{len(extra)} tensors are unknown to {config.family}, first {extra[0]!r:.80}",
                path=where,
                remedy="check that config.json belongs to this checkpoint",
            )
        for name, shape in expected.items():
            if self.entries[name].shape != shape:
                raise DataError(
                    f"tensor {name} has shape {list(self.entries[name].shape)}, "
                    f"config.json asks for {list(shape)}",
                    path=where,
                    remedy="check that config.json belongs to this checkpoint",
                )

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(entry.num_bytes for entry in self.entries.values())

    def tensor(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Read one tensor and convert it to `dtype`; shape as checked at construction."""
        entry = self.entries[name]
        raw = torch.empty(entry.num_bytes, dtype=torch.uint8)
        with entry.path.open("rb") as file:
            file.seek(entry.start)
            if file.readinto(memoryview(raw.numpy())) != entry.num_bytes:
                raise _bad(entry.path, f"ended while reading {name}")
        return raw.view(entry.dtype).view(entry.shape).to(dtype)

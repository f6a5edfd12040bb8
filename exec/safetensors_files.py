"""Safetensors files: headers checked before a byte of data is used, then tensors read by place.

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
from batchgen.fields import read_json_object
from batchgen.paths import has_file

MAX_HEADER_BYTES = 100_000_000
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPES = FLOATS | {"F8_E4M3": torch.float8_e4m3fn, "U8": torch.uint8}


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
            raise bad_file(path, "is not a safetensors file (header length does not fit the file)")
        raw = file.read(length)
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise bad_file(path, f"has an unreadable header ({error!s:.80})") from None
    if not isinstance(header, dict):
        raise bad_file(path, "has a header that is not an object")
    header.pop("__metadata__", None)
    entries = [_entry(path, name, value, 8 + length) for name, value in header.items()]
    end = 8 + length
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.num_bytes)):
        if entry.start != end:
            raise bad_file(path, f"tensor {entry.name!r:.80} overlaps another or leaves a hole")
        end += entry.num_bytes
    if end != size:
        raise bad_file(path, f"holds {size} bytes but its header describes {end}")
    return {entry.name: entry for entry in entries}


def bad_file(path: Path, message: str) -> DataError:
    """The exception for a file that cannot be used."""
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
        raise bad_file(path, f"tensor {name!r:.80} must have dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise bad_file(
            path, f"tensor {name!r:.80} has dtype {dtype!r:.20}; supported: {', '.join(DTYPES)}"
        )
    if not isinstance(shape, list) or len(shape) > 8 or not all(map(_is_size, shape)):
        raise bad_file(path, f"tensor {name!r:.80} has an impossible shape {shape!r:.60}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise bad_file(path, f"tensor {name!r:.80} has impossible data_offsets {offsets!r:.60}")
    num_bytes = DTYPES[dtype].itemsize
    for extent in shape:
        num_bytes *= extent  # Python integers do not overflow
    if offsets[1] - offsets[0] != num_bytes:
        raise bad_file(
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


def shard_files(directory: Path) -> list[Path]:
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


def read_tensor(entry: TensorEntry) -> torch.Tensor:
    """One tensor as stored, in private memory: later changes of the file cannot reach us."""
    raw = torch.empty(entry.num_bytes, dtype=torch.uint8)
    with entry.path.open("rb") as file:
        file.seek(entry.start)
        if file.readinto(memoryview(raw.numpy())) != entry.num_bytes:
            raise bad_file(entry.path, f"ended while reading {entry.name}")
    return raw.view(entry.dtype).view(entry.shape)

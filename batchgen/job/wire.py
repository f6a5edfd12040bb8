"""What goes between a job and the processes that make its chunks, as msgpack: values alone, and
nothing that could run. Sends nothing itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import IO, Any

import msgspec
import numpy as np

from batchgen.job.columns import Columns
from batchgen.job.encoding import Chunk, Encoded, Maker
from batchgen.job.jsonl import BadLine
from batchgen.job.row import JobRow, RowLimits
from batchgen.job.sampling import Sampling, SamplingDefaults
from batchgen.job.shape import Shape

HEADER_BYTES = 8
ARRAYS = {
    "index": np.int64,
    "line": np.int64,
    "id_ends": np.int64,
    "max_output": np.int64,
    "seeds": np.uint64,
    "common": np.int32,
    "tokens": np.int32,
    "num_tokens": np.int64,
}


@dataclass(slots=True, kw_only=True)
class Common:
    """What rows have in common of a `JobRow`."""

    kind: str
    model: str | None
    sampling: Sampling
    ignore_eos: bool
    stop: tuple[str, ...]
    stop_token_ids: frozenset[int]
    num_samples: int


@dataclass(slots=True, kw_only=True)
class Setup:
    """A `Maker` but for its encoder: that is `recipe`, module:class and what it is made from."""

    recipe: tuple[str, list[str]]
    form: str
    shape: Shape | None
    max_context: int
    default_max_output: int | None
    run_seed: int
    strict: bool
    models: frozenset[str] | None
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)


def setup_of(maker: Maker) -> bytes | None:
    """None for an encoder that cannot be made elsewhere."""
    recipe = getattr(maker.encoder, "recipe", None)
    if recipe is None:
        return None
    limits = maker.limits
    setup = Setup(
        recipe=recipe(),
        form=maker.form,
        shape=maker.shape,
        max_context=limits.max_context,
        default_max_output=limits.default_max_output,
        run_seed=limits.run_seed,
        strict=limits.strict,
        models=limits.models,
        sampling=limits.sampling,
    )
    return msgspec.msgpack.encode(setup)


def maker_of(setup: Setup, encoder: Any) -> Maker:
    limits = RowLimits(
        max_context=setup.max_context,
        default_max_output=setup.default_max_output,
        run_seed=setup.run_seed,
        strict=setup.strict,
        models=setup.models,
        sampling=setup.sampling,
    )
    return Maker(encoder=encoder, limits=limits, form=setup.form, shape=setup.shape)


def pack_chunk(chunk: Chunk) -> bytes:
    """Raises OverflowError, RecursionError, TypeError or ValueError for a value that has no place
    in msgpack."""
    items = [
        [item.code, item.message] if isinstance(item, BadLine) else item for item in chunk.items
    ]
    return msgspec.msgpack.encode([chunk.first, chunk.lines, items, chunk.states])


def unpack_chunk(data: bytes) -> Chunk:
    first, lines, items, states = msgspec.msgpack.decode(data)
    return Chunk(
        first=first,
        lines=lines,
        items=[
            BadLine(code=item[0], message=item[1]) if isinstance(item, list) else item
            for item in items
        ],
        states=states,
    )


def pack_encoded(found: Encoded) -> bytes:
    good = found.good
    commons = [
        Common(**{name: getattr(one, name) for name in Common.__dataclass_fields__})
        for one in good.commons
    ]
    return msgspec.msgpack.encode(
        [
            found.digests,
            found.nameless,
            list(found.unknown.items()),
            found.bad,
            found.places,
            {name: getattr(good, name).tobytes() for name in ARRAYS},
            good.ids,
            commons,
        ]
    )


def unpack_encoded(data: bytes) -> Encoded:
    digests, nameless, unknown, bad, places, arrays, ids, commons = msgspec.msgpack.decode(data)
    columns: dict[str, Any] = {
        name: np.frombuffer(arrays[name], dtype=dtype) for name, dtype in ARRAYS.items()
    }
    return Encoded(
        digests=digests,
        nameless=nameless,
        unknown={tuple(names): of for names, of in unknown},
        bad=[(place, custom_id, *rest) for place, custom_id, *rest in bad],
        places=places,
        good=Columns(ids=ids, commons=[_common_row(one) for one in commons], **columns),
    )


def _common_row(value: dict[str, Any]) -> JobRow:
    common = msgspec.convert(value, Common)
    fields = {name: getattr(common, name) for name in Common.__dataclass_fields__}
    return JobRow(index=0, line=0, custom_id="", prompt_ids=(), max_output=0, **fields)


def write_message(file: IO[bytes], data: bytes) -> None:
    """Raises OSError if nobody reads."""
    file.write(len(data).to_bytes(HEADER_BYTES, "little"))
    file.write(data)
    file.flush()


def read_message(file: IO[bytes]) -> bytes | None:
    """The next one; None at the end."""
    header = file.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES:
        return None
    size = int.from_bytes(header, "little")
    data = file.read(size)
    return data if len(data) == size else None

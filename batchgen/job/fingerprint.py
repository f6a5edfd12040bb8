"""What the answers of a job depend on, by name, so that a job is never gone on with as another one.

The policy, sizes of memory and paths are not among it: they change when things happen, not what is
answered. Weights are known by size, header and samples of their bytes: reading all of a large model
would take minutes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from batchgen.errors import UserError

PIECE_BYTES = 1 << 20
SAMPLES = 32
SAMPLE_BYTES = 1 << 14
SMALL_BYTES = 64 << 20

Fingerprint = dict[str, str]


def file_digest(path: Path) -> tuple[str, int]:
    """SHA-256 and size of a file. Raises UserError if it cannot be read."""
    found, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                found.update(piece)
                size += len(piece)
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror or type(error).__name__}", remedy="check it"
        ) from None
    return found.hexdigest(), size


def input_print(digest: str, num_bytes: int) -> str:
    """How a job knows its input."""
    return f"{digest} ({num_bytes} bytes)"


def sampled_digest(path: Path) -> str:
    """A digest of size and evenly spread pieces, the first and the last among them; of a small file
    of all its bytes. Raises UserError if it cannot be read."""
    try:
        size = path.stat().st_size
        if size <= SMALL_BYTES:
            return file_digest(path)[0]
        found = hashlib.sha256(str(size).encode())
        with path.open("rb") as file:
            found.update(file.read(PIECE_BYTES))  # the header of a safetensors file, mostly
            for number in range(SAMPLES):
                file.seek((size - SAMPLE_BYTES) * number // (SAMPLES - 1))
                found.update(file.read(SAMPLE_BYTES))
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror or type(error).__name__}", remedy="check it"
        ) from None
    return found.hexdigest()


def model_digest(folder: Path) -> str:
    """Of a checkpoint: names and bytes of its JSON, templates, tokenizers, samples of weights."""
    found = hashlib.sha256()
    names = ("*.json", "*.jinja", "*.model", "*.txt", "*.safetensors")
    for path in sorted({path for name in names for path in folder.glob(name) if path.is_file()}):
        found.update(f"{path.name}\0{sampled_digest(path)}\n".encode("utf-8", "backslashreplace"))
    return found.hexdigest()


def check_same(begun: Mapping[str, str], now: Mapping[str, str], folder: Path) -> None:
    """Raises UserError that names the first field in which a job differs from what was begun."""
    for name in sorted({*begun, *now}):
        old, new = begun.get(name, "nothing"), now.get(name, "nothing")
        if old != new:
            raise UserError(
                f"the job in {folder} was begun with another {name.replace('_', ' ')}: "
                f"{old:.80}, and this is {new:.80}",
                remedy="give what it was begun with, or begin anew with --force",
                code="fingerprint",
            )

"""Writes a device trace as JSONL, the same bytes for the same trace. Reads nothing."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import msgspec

from batchgen.errors import UserError
from batchgen.paths import beside, put
from batchgen.trace.devices.events import NORMAL, DeviceTrace, Trouble
from batchgen.trace.write import refuse_existing, seconds_text


def save(trace: DeviceTrace, path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Write the trace to `path`; gzip if the name ends in .gz. The file appears complete or not at
    all. UserError when it exists already (unless `force`), or cannot be written."""
    target = Path(path)
    refuse_existing(target, force=force)
    data = text_of(trace).encode("utf-8")
    try:
        with beside(target) as part:
            if target.name.endswith(".gz"):  # no name and no time: equal traces, equal files
                with (
                    part.open("wb") as file,
                    gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed,
                ):
                    packed.write(data)
            else:
                part.write_bytes(data)
            put(part, target)
    except OSError as error:
        raise UserError(
            f"{target}: cannot be written ({error.strerror})", remedy="give a writable place"
        ) from None


def text_of(trace: DeviceTrace) -> str:
    """The whole file."""
    header: dict[str, object] = {"batchgen_devices": 1, "name": trace.name}
    if trace.gpus:
        header["gpus"] = trace.gpus
    if trace.gpus_per_node:
        header["gpus_per_node"] = trace.gpus_per_node
    if trace.span_ps:
        header["span_s"] = msgspec.Raw(seconds_text(trace.span_ps).encode())
    header["meta"] = trace.meta
    first = msgspec.json.encode(header).decode("utf-8")
    return "".join(f"{line}\n" for line in (first, *map(line_of, trace.troubles)))


def line_of(one: Trouble) -> str:
    """One trouble as JSON."""
    text = f'{{"at_s":{seconds_text(one.at_ps)},"kind":"{one.kind}"'
    if one.gpu >= 0:
        text += f',"gpu":{one.gpu}'
    if one.node >= 0:
        text += f',"node":{one.node}'
    if one.kind in ("slow", "host", "skew"):
        text += f',"factor":{one.factor / NORMAL:g}'
    if one.for_ps:
        text += f',"for_s":{seconds_text(one.for_ps)}'
    if one.deadline_ps:
        text += f',"deadline_s":{seconds_text(one.deadline_ps)}'
    return text + "}"

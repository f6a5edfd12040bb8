"""The device trace of one run of a sweep as a file that the simulator reads. What a trouble does is
not known here."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from batchgen.paths import write_whole
from batchgen.sweep.spec import Run


def device_file(run: Run, folder: Path) -> str | None:
    """The path of the run's device trace, written into `folder` where the sweep itself has the
    lines."""
    devices = run.devices
    if devices.path is not None:
        return devices.path.replace("{seed}", str(run.seed))
    if not devices.lines:
        return None
    path = folder / f"{_plain(devices.name)}-{run.gpus}-gpus-seed-{run.seed}.jsonl"
    text = device_lines(run).encode()
    if not path.is_file() or path.read_bytes() != text:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    return str(path)


def device_lines(run: Run) -> str:
    """The lines of the sweep with GPUs for words. They are drawn by the seed alone, so that the
    kinds of trouble of a sweep hit the same ones, and no two words name one GPU while there are
    enough."""
    lines = run.devices.lines
    words = dict.fromkeys(line["gpu"] for line in lines if isinstance(line.get("gpu"), str))
    order = np.random.default_rng(run.seed).permutation(run.gpus).tolist()
    drawn = {word: order[i % run.gpus] for i, word in enumerate(words)}
    told = [
        {**line, "gpu": drawn.get(line["gpu"], line["gpu"])} if "gpu" in line else line
        for line in lines
    ]
    return "".join(json.dumps(line) + "\n" for line in told)


def _plain(name: str) -> str:
    """A name as part of that of a file; two names stay two."""
    plain = "".join(one if one.isalnum() or one in "-_." else "_" for one in name)
    if plain == name:
        return plain
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"

"""A model that stays in memory between jobs. It runs nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from batchgen.exec.transformer import Transformer, load_model
from batchgen.exec.worker import Worker

Key = tuple[Any, ...]


class KeptModel:
    """The model of the last job, for one job at a time: the next one of the same checkpoint loads
    nothing. A worker with arenas of its own is made for each."""

    def __init__(self) -> None:
        self._key: Key | None = None
        self._model: Transformer | None = None

    def holds(self, folder: Path, dtype: str, exact: bool, device: str) -> bool:
        """Whether the model is in memory, as it lies on the disk."""
        return self._model is not None and self._key == _key(folder, dtype, exact, device)

    def model(self, folder: Path, dtype: str, exact: bool, device: str) -> Transformer:
        """Loads it if it is not. Raises UserError as `load_model`."""
        key = _key(folder, dtype, exact, device)
        if self._model is None or key != self._key:
            self._model = None  # first: there may be no room for both
            self._model = load_model(folder, dtype=dtype, exact=exact, device=device)
            self._key = key
        return self._model

    def worker(self, make: Callable[..., Worker], folder: Path, **options: Any) -> Worker:
        """A worker of `make` with the model; options as those of `Worker`."""
        model = self.model(folder, options["dtype"], options["exact"], options["device"])
        return make(model, **options)


def _key(folder: Path, dtype: str, exact: bool, device: str) -> Key:
    """The files of a checkpoint by size and time; what they hold is the fingerprint's business."""
    files = sorted(
        (path.name, found.st_size, found.st_mtime_ns)
        for path in folder.iterdir()
        if path.suffix in (".json", ".safetensors") and (found := path.stat())
    )
    return str(folder.resolve()), dtype, exact, device, tuple(files)

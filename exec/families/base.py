"""What a family is: a name, how its config.json reads, how its layers are made of tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batchgen.exec.config import ModelConfig
from batchgen.fields import Fields

if TYPE_CHECKING:
    from batchgen.exec.layers import Layer
    from batchgen.exec.weights import Reader


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One way to lay out a decoder-only transformer.

    `architecture` and `model_type` are those of config.json. `read` understands its fields. `layer`
    makes the layer of that number from tensors that it reads by name and shape; run on a reader
    that only takes notes, it is also the list of a checkpoint's tensors. `sample(size)` gives the
    fields of a small random checkpoint that are the family's own; those in `absent` it has not.
    """

    name: str
    architecture: str
    model_type: str
    read: Callable[[Fields], ModelConfig]
    layer: Callable[[Reader, ModelConfig, int], Layer]
    sample: Callable[[str], dict[str, Any]] = lambda size: {}
    absent: tuple[str, ...] = ()

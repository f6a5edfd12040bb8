"""Random bfloat16 checkpoints of any config that the executor reads. Measures nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_random(config: Mapping[str, Any], directory: Path) -> int:
    """Write config.json and model.safetensors, norms 1, the rest normal; returns the number of
    parameters."""
    import torch
    from safetensors.torch import save_file

    from batchgen.exec.config import load_config
    from batchgen.exec.weights import expected_shapes

    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: (
            torch.ones(shape)
            if "norm" in name
            else torch.randn(shape, generator=generator) * shape[-1] ** -0.5
        ).bfloat16()
        for name, shape in expected_shapes(load_config(directory)).items()
    }
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    return sum(weight.numel() for weight in weights.values())

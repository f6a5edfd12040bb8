"""The configs of published models that the catalog quotes: read, and of the right size."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from batchgen.exec.config import LatentConfig, load_config
from batchgen.exec.families import FAMILIES
from batchgen.exec.init import random_config
from batchgen.exec.weights import expected_shapes
from batchgen.model import load_model

CATALOG: dict[str, Any] = yaml.safe_load((files("batchgen") / "catalog/models.yaml").read_text())
CLASSES = {family.model_type: family.architecture for family in FAMILIES}
SUPPORTED = [name for name, entry in CATALOG.items() if entry["config"]["model_type"] in CLASSES]


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_published_model_has_all_its_parameters(name: str, tmp_path: Path) -> None:
    quoted = CATALOG[name]["config"]
    quoted = quoted | {"architectures": [CLASSES[quoted["model_type"]]]}
    (tmp_path / "config.json").write_text(json.dumps(quoted))
    config, spec = load_config(tmp_path), load_model(name)
    count = sum(math.prod(shape) for shape in expected_shapes(config).values())
    assert count == spec.total_parameters
    values = spec.kv_values_per_layer
    assert config.kv_page_elements(1) == values * config.num_layers
    assert isinstance(config.attention, LatentConfig) == (spec.attention == "mla")


def test_every_kind_of_published_model_was_seen() -> None:
    types = {CATALOG[name]["config"]["model_type"] for name in SUPPORTED}
    assert {"llama", "qwen3_moe", "mixtral", "deepseek_v3", "gpt_oss"} <= types


def test_taking_notes_loads_no_further_modules_of_torch(tmp_path: Path) -> None:
    """Some operations on tensors without data import a second's worth of modules."""
    for family in FAMILIES:
        folder = tmp_path / family.name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(random_config(family.name, "tiny", False)))
    script = """
import sys
from pathlib import Path
from batchgen.exec.config import load_config
from batchgen.exec.weights import expected_shapes
folders = sorted(Path(sys.argv[1]).iterdir())
configs = [load_config(folder) for folder in folders]
before = set(sys.modules)
for config in configs:
    expected_shapes(config)
print(len(folders), len(set(sys.modules) - before))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(len(FAMILIES)), "0"]

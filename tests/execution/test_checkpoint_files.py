"""Hostile and broken checkpoints: one clear line each, before any weight is used."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from batchgen.errors import UserError
from batchgen.exec.config import load_config
from batchgen.exec.init import init_model
from batchgen.exec.safetensors_files import read_header
from batchgen.exec.weights import Checkpoint

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(raw) if length is None else length
    path.write_bytes(struct.pack("<Q", size) + raw + data)
    return path


HOSTILE: dict[str, tuple[Any, int, int | None]] = {
    "header longer than the file": ({}, 0, 1 << 40),
    "header length overflow": ({}, 0, (1 << 64) - 1),
    "not json": (b"{", 0, None),
    "not utf8": (b'{"\xff": 1}', 0, None),
    "nested": (b'{"a": ' + b"[" * 100_000, 0, None),
    "not an object": ([1], 0, None),
    "same name twice": (b'{"a": ' + json.dumps(F32).encode() + b', "a": {}}', 8, None),
    "entry not an object": ({"a": 1}, 0, None),
    "entry without shape": ({"a": {"dtype": "F32", "data_offsets": [0, 0]}}, 0, None),
    "pickle dtype": ({"a": F32 | {"dtype": "OBJECT"}}, 8, None),
    "dtype list": ({"a": F32 | {"dtype": ["F32"]}}, 8, None),
    "negative shape": ({"a": F32 | {"shape": [-2]}}, 8, None),
    "bool shape": ({"a": F32 | {"shape": [True]}}, 4, None),
    "shape overflow": ({"a": F32 | {"shape": [1 << 40, 1 << 40, 1 << 40]}}, 8, None),
    "size differs from shape": ({"a": F32 | {"shape": [3]}}, 8, None),
    "offsets backwards": ({"a": F32 | {"data_offsets": [8, 0]}}, 8, None),
    "overlap": ({"a": F32, "b": F32}, 8, None),
    "hole": ({"a": F32, "b": F32 | {"data_offsets": [12, 20]}}, 20, None),
    "data cut": ({"a": F32}, 7, None),
    "data behind": ({"a": F32}, 9, None),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_are_refused(case: str, tmp_path: Path) -> None:
    header, data, length = HOSTILE[case]
    path = write(tmp_path / "model.safetensors", header, bytes(data), length)
    with pytest.raises(UserError) as caught:
        read_header(path)
    assert "model.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    with pytest.raises(UserError, match="not a safetensors file"):
        read_header(path)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return init_model(tmp_path / "m", "llama", "tiny", seed=1)


def edit(model: Path, **changes: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_was_written_is_what_is_read(model: Path) -> None:
    checkpoint = Checkpoint(model, load_config(model))
    for name, expected in load_file(model / "model.safetensors").items():
        assert torch.equal(checkpoint.tensor(name, torch.float32), expected)


def test_shards_are_found_by_their_index(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, model / file)
    index = model / "model.safetensors.index.json"
    weight_map = {name: file for file, part in halves.items() for name in part}
    index.write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = Checkpoint(model, load_config(model))
    assert torch.equal(checkpoint.tensor(names[1], torch.float32), tensors[names[1]])
    for evil in ("../a.safetensors", "/etc/passwd", "a.bin", "none.safetensors"):
        index.write_text(json.dumps({"weight_map": weight_map | {"x": evil}}))
        with pytest.raises(UserError, match=r"index\.json"):
            Checkpoint(model, load_config(model))


def test_missing_extra_and_misshapen_tensors_are_named(model: Path) -> None:
    config = load_config(model)
    tensors = load_file(model / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    cases = {
        "missing": {k: v for k, v in tensors.items() if k != name},
        "unknown": tensors | {"model.layers.7.mlp.up_proj.weight": tensors[name].clone()},
        "has shape": tensors | {name: tensors[name].T.contiguous()},
    }
    for message, changed in cases.items():
        save_file(changed, model / "model.safetensors")
        with pytest.raises(UserError, match=message) as caught:
            Checkpoint(model, config)
        assert "mlp.up_proj" in str(caught.value)


def test_bad_configs_name_the_field(model: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"architectures": ["GPT2LMHeadModel"]}, "supported: .*LlamaForCausalLM"),
        ({"architectures": None}, "architectures"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 15}, "head_dim"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"rope_type": "dynamic"}}, "rope_type"),
        ({"rope_scaling": []}, "rope_scaling"),
        ({"rope_scaling": {"rope_type": "yarn"}, "rope_theta": 1}, "rope_theta"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "factor"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"quantization_config": {"quant_method": "awq"}}, "'awq' is not supported; use a float32"),
    ]
    original = (model / "config.json").read_text()
    for changes, message in cases:
        edit(model, **changes)
        with pytest.raises(UserError, match=message):
            load_config(model)
        (model / "config.json").write_text(original)
    (model / "config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="not valid JSON"):
        load_config(model)
    with pytest.raises(UserError, match="does not exist"):
        load_config(model / "none")
    with pytest.raises(UserError, match=r"has no config\.json"):
        load_config(model.parent)

"""Quantised checkpoints: dequantised on load to what the formats mean, or refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import Passes, write_model
from safetensors.torch import load_file, save_file

from batchgen.errors import UserError
from batchgen.exec.config import load_config
from batchgen.exec.dequantise import FP4_VALUES, from_fp8_blocks, from_mxfp4
from batchgen.exec.weights import Checkpoint

FP8 = {"quant_method": "fp8", "weight_block_size": [16, 24], "fmt": "e4m3"}


def edit(model: Path, **changes: object) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 17), st.integers(1, 17))
def test_fp8_blocks_are_scaled_element_by_element(
    rows: int, columns: int, high: int, wide: int
) -> None:
    generator = torch.Generator().manual_seed(rows * 41 + columns)
    weight = torch.randn(rows, columns, generator=generator).to(torch.float8_e4m3fn)
    scales = torch.rand(-(-rows // high), -(-columns // wide), generator=generator)
    got = from_fp8_blocks(weight, scales, (high, wide))
    assert got.shape == (rows, columns)
    plain = weight.float()
    for row in range(rows):
        for column in range(columns):
            expected = plain[row, column] * scales[row // high, column // wide]
            assert got[row, column] == expected


def test_mxfp4_is_what_its_bits_say() -> None:
    """Against the definition: sign, two bits of exponent with bias 1, one of mantissa."""
    for bits, value in enumerate(FP4_VALUES):
        sign, exponent, mantissa = bits >> 3, bits >> 1 & 3, bits & 1
        size = mantissa / 2 if not exponent else (1 + mantissa / 2) * 2 ** (exponent - 1)
        assert value == (-size if sign else size)
    packed = torch.randint(0, 256, (3, 5, 2, 16), generator=torch.Generator().manual_seed(0))
    scales = torch.tensor([100, 127]).expand(3, 5, 2)
    got = from_mxfp4(packed.to(torch.uint8), scales.to(torch.uint8))
    assert got.shape == (3, 5, 64)
    for column in range(64):
        byte = packed[2, 4, column // 32, column % 32 // 2]
        bits = byte >> 4 if column % 2 else byte & 15
        power = 2.0 ** (int(scales[2, 4, column // 32]) - 127)
        assert got[2, 4, column] == FP4_VALUES[bits] * power


@pytest.fixture
def fp8_model(tmp_path: Path) -> tuple[Path, Path]:
    """A DeepSeek checkpoint in FP8, and the same weights in float32."""
    plain = write_model(tmp_path / "plain", "deepseek-v3", num_nextn_predict_layers=1)
    quantised = write_model(tmp_path / "fp8", "deepseek-v3", num_nextn_predict_layers=1)
    edit(quantised, quantization_config=FP8)
    stored, meant = {}, {}
    for name, tensor in load_file(plain / "model.safetensors").items():
        stored[name] = meant[name] = tensor
        if re.search(r"layers.*(_proj|with_mqa)\.weight$", name):
            grid = [-(-size // n) for size, n in zip(tensor.shape, (16, 24), strict=True)]
            scales = torch.rand(grid, generator=torch.Generator().manual_seed(1)) + 0.5
            stored[name] = tensor.to(torch.float8_e4m3fn)
            stored[name + "_scale_inv"] = scales
            meant[name] = from_fp8_blocks(stored[name], scales, (16, 24))
    # Layers that predict further tokens are there and are not read.
    stored["model.layers.2.eh_proj.weight"] = torch.zeros(3)
    save_file(stored, quantised / "model.safetensors")
    save_file(meant, plain / "model.safetensors")
    return quantised, plain


def logits(model: Path) -> torch.Tensor:
    return Passes(model).run([[1, 2, 3, 4, 5]], [], [(0, 0, 5)])[0]


def test_fp8_checkpoints_run_as_what_they_mean(fp8_model: tuple[Path, Path]) -> None:
    quantised, plain = fp8_model
    assert torch.equal(logits(quantised), logits(plain))


def test_broken_fp8_checkpoints_name_the_tensor(fp8_model: tuple[Path, Path]) -> None:
    model, _ = fp8_model
    tensors = load_file(model / "model.safetensors")
    name = "model.layers.0.self_attn.o_proj.weight"
    scales = name + "_scale_inv"
    cases = {
        "has dtype float8_e4m3fn": {k: v for k, v in tensors.items() if k != scales},
        "has dtype float32": tensors | {name: tensors[name].float()},
        "has shape": tensors | {scales: torch.ones(1, 1)},
    }
    for message, changed in cases.items():
        save_file(changed, model / "model.safetensors")
        with pytest.raises(UserError, match=message) as caught:
            Checkpoint(model, load_config(model))
        assert name in str(caught.value)
    save_file(tensors, model / "model.safetensors")
    edit(model, quantization_config=None)
    with pytest.raises(UserError, match="_scale_inv"):
        Checkpoint(model, load_config(model))


def test_mxfp4_checkpoints_run_as_what_they_mean(tmp_path: Path) -> None:
    plain = write_model(tmp_path / "plain", "gpt-oss")
    quantised = write_model(tmp_path / "mxfp4", "gpt-oss")
    edit(quantised, quantization_config={"quant_method": "mxfp4"})
    stored, meant = {}, {}
    generator = torch.Generator().manual_seed(2)
    for name, tensor in load_file(plain / "model.safetensors").items():
        if not name.endswith("_proj") or "experts" not in name:
            stored[name] = meant[name] = tensor
            continue
        experts, inputs, outputs = tensor.shape
        shape = (experts, outputs, inputs // 32)
        packed = torch.randint(0, 256, (*shape, 16), generator=generator).to(torch.uint8)
        scales = torch.randint(121, 125, shape, generator=generator).to(torch.uint8)
        stored |= {name + "_blocks": packed, name + "_scales": scales}
        meant[name] = from_mxfp4(packed, scales).transpose(1, 2).contiguous()
    save_file(stored, quantised / "model.safetensors")
    save_file(meant, plain / "model.safetensors")
    assert torch.equal(logits(quantised), logits(plain))
    name = "model.layers.1.mlp.experts.down_proj_scales"
    save_file({k: v for k, v in stored.items() if k != name}, quantised / "model.safetensors")
    with pytest.raises(UserError, match=f"first {name}"):
        logits(quantised)
    save_file(stored | {name: stored[name].float()}, quantised / "model.safetensors")
    with pytest.raises(UserError, match=f"{name} has dtype float32, expected uint8"):
        logits(quantised)
    edit(quantised, hidden_size=48)
    with pytest.raises(UserError, match=r"hidden_size.*multiple of 32"):
        load_config(quantised)

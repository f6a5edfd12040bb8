"""Write a trained model in the layout of published checkpoints, and read one back. Trains nothing.

Weights are stored in bfloat16 (half the bytes; the executor widens them to float32).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from batchgen.exec.config import load_config
from batchgen.exec.init import EOS_TOKEN_ID, STOP_TOKEN_ID, write_byte_tokenizer
from batchgen.exec.weights import Checkpoint
from training.model import CONFIG, SumsModel


def export(model: SumsModel, folder: Path) -> None:
    """Config, generation defaults, weights and tokenizer; the result is read back to check it."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", CONFIG)
    generation = {"eos_token_id": [EOS_TOKEN_ID, STOP_TOKEN_ID], "do_sample": False}
    _write_json(folder / "generation_config.json", generation)
    save_file(published(model), folder / "model.safetensors", {"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # the library makes it private
    write_byte_tokenizer(folder)
    settings_path = folder / "tokenizer_config.json"
    settings = json.loads(settings_path.read_text(encoding="utf-8"))
    settings["model_max_length"] = CONFIG["max_position_embeddings"]
    _write_json(settings_path, settings)
    Checkpoint(folder, load_config(folder))


def published(model: SumsModel) -> dict[str, torch.Tensor]:
    """Weights by their published names, one tensor per expert, in bfloat16."""
    weights: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach().to(torch.bfloat16)
        prefix, _, stacked = name.rpartition(".experts.")
        if not prefix:
            weights[name] = value.contiguous()
            continue
        for expert, matrix in enumerate(value):
            where = f"{prefix}.experts.{expert}."
            if stacked == "down_proj":
                weights[where + "down_proj.weight"] = matrix.clone()
            else:
                gate, up = matrix.chunk(2)
                weights[where + "gate_proj.weight"] = gate.clone()
                weights[where + "up_proj.weight"] = up.clone()
    return weights


def restore(folder: Path) -> SumsModel:
    """The model of a folder that `export` wrote, in float32 with its rounded weights."""
    weights = load_file(folder / "model.safetensors")
    model = SumsModel(0)
    state = {}
    for name in model.state_dict():
        prefix, _, stacked = name.rpartition(".experts.")
        if not prefix:
            state[name] = weights[name]
            continue
        each = range(CONFIG["num_experts"])
        parts = ("gate", "up") if stacked == "gate_up_proj" else ("down",)
        state[name] = torch.stack(
            [
                torch.cat([weights[f"{prefix}.experts.{e}.{part}_proj.weight"] for part in parts])
                for e in each
            ]
        )
    model.load_state_dict(state)
    return model


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

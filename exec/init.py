"""Write a random checkpoint in Hugging Face layout, with a byte-level tokenizer. Trains nothing.

For tests and demonstrations: the text means nothing, but prompts of any language encode, answers
depend on the whole prompt, and many of them end by themselves at very different lengths.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from batchgen.errors import UserError
from batchgen.exec.config import ModelConfig, load_config
from batchgen.exec.families import BY_NAME
from batchgen.exec.token_bytes import byte_characters
from batchgen.exec.weights import expected_shapes
from batchgen.oneline import one_line
from batchgen.paths import beside

SPECIAL_TOKENS = ("<|pad|>", "<|begin|>", "<|end|>", "<|start|>", "<|stop|>")
FIRST_SPECIAL = 256  # ids 0 to 255 are the bytes themselves
VOCAB_SIZE = 264  # a multiple of 8; three ids are spare
EOS_TOKEN_ID = FIRST_SPECIAL + SPECIAL_TOKENS.index("<|end|>")
STOP_TOKEN_ID = FIRST_SPECIAL + SPECIAL_TOKENS.index("<|stop|>")

CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|stop|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)

ARCHITECTURES = tuple(BY_NAME)
SIZES: dict[str, dict[str, int]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    },
    "small": {
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 32,
    },
    # Half a billion parameters where they are dense: passes that a GPU can be measured by. 2 GB.
    "medium": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 32768,
    },
}
MAX_CONTEXT = 4096

# Chosen by `tests/execution/test_init_model.py`: sharp attention makes the next token depend on the
# whole past (blunt attention runs into short loops), and a louder stop row of the head wins at a
# few percent of the positions.
ATTENTION_GAIN = 3.0
STOP_GAIN = 1.15


def init_model(
    directory: Path,
    arch: str = "llama",
    size: str = "tiny",
    seed: int = 0,
    *,
    tie_word_embeddings: bool = False,
) -> Path:
    """Write config, weights, generation defaults and tokenizer; returns `directory`.

    The same arguments write the same bytes. Raises UserError for an unknown `arch` or `size`, and
    rather than write over a folder that holds files already.
    """
    if arch not in ARCHITECTURES:
        raise UserError(
            f"unknown arch {arch!r}", remedy=f"choose one of {', '.join(ARCHITECTURES)}"
        )
    if size not in SIZES:
        raise UserError(f"unknown size {size!r}", remedy=f"choose one of {', '.join(SIZES)}")
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} exists and is not an empty folder", remedy="choose another")
    # A folder that is there may be the one we stand in: it stays, and its files come into it.
    is_there = directory.exists()
    directory.parent.mkdir(parents=True, exist_ok=True)
    with beside(directory / "model" if is_there else directory) as made:
        made.mkdir()
        try:
            _write(made, random_config(arch, size, tie_word_embeddings), seed)
        except OSError:
            raise
        except Exception as error:  # safetensors and tokenizers raise classes of their own
            raise UserError(
                f"cannot write {directory}: {one_line(error, 200)}",
                remedy="make room, or give another folder",
            ) from None
        if not is_there:
            made.rename(directory)
        else:
            for file in made.iterdir():
                file.rename(directory / file.name)
    return directory


def _write(folder: Path, config: dict[str, Any], seed: int) -> None:
    _write_json(folder / "config.json", config)
    generation = {"eos_token_id": [EOS_TOKEN_ID, STOP_TOKEN_ID], "do_sample": False}
    _write_json(folder / "generation_config.json", generation)
    weights = random_weights(load_config(folder), seed)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    write_byte_tokenizer(folder)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def random_config(arch: str, size: str, tie_word_embeddings: bool) -> dict[str, Any]:
    """The config.json of a random checkpoint."""
    family = BY_NAME[arch]
    config = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": VOCAB_SIZE,
        **SIZES[size],
        "hidden_act": "silu",
        "max_position_embeddings": SIZES[size].get("max_position_embeddings", MAX_CONTEXT),
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "tie_word_embeddings": tie_word_embeddings,
        "bos_token_id": None,
        "eos_token_id": EOS_TOKEN_ID,
        "pad_token_id": FIRST_SPECIAL,
        "torch_dtype": "float32",
    }
    config |= family.sample(size)
    return {name: value for name, value in config.items() if name not in family.absent}


def random_weights(config: ModelConfig, seed: int) -> dict[str, torch.Tensor]:
    """Normal weights of variance 1 / fan-in, norms of one, small biases, louder head rows for stop
    tokens."""
    generator = np.random.default_rng(seed)
    weights = {}
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    shapes = expected_shapes(config)
    sharp = next(part for part in SHARP if any(part in name for name in shapes))
    for name, shape in shapes.items():
        if "norm" in name:
            weights[name] = torch.full(shape, ATTENTION_GAIN if sharp in name else 1.0)
            continue
        values = generator.standard_normal(shape, dtype=np.float32)
        if "embed_tokens" not in name:
            values *= np.float32(_gain(name, shape))
        if sharp in name:
            values *= np.float32(ATTENTION_GAIN)
        if name == head:
            values[[i for i in config.eos_token_ids if i < len(values)]] *= np.float32(STOP_GAIN)
        weights[name] = torch.from_numpy(values)
    return weights


# What makes attention sharp, the first of these that a family has: the norm of the queries where
# there is one, else their projection.
SHARP = ("q_norm", "q_b_proj.weight", "q_proj.weight")


def _gain(name: str, shape: tuple[int, ...]) -> float:
    if len(shape) == 1 or "bias" in name:
        return 0.1
    # Experts in one tensor are stored [experts, inputs, outputs].
    return float(shape[-2 if len(shape) == 3 else -1]) ** -0.5


def write_byte_tokenizer(directory: Path) -> None:
    """tokenizer.json and tokenizer_config.json in which token b < 256 is the byte b.

    The library writes bytes as printable characters; `byte_characters` is that table.
    """
    vocabulary = {character: byte for byte, character in enumerate(byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL_TOKENS])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_CONTEXT,
        "pad_token": "<|pad|>",
        "eos_token": "<|end|>",
        "chat_template": CHAT_TEMPLATE,
    }
    _write_json(directory / "tokenizer_config.json", settings)

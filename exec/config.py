"""The shape of a model, read from a Hugging Face config.json. Loads no torch and no weights.

Families: Llama, Qwen3 (dense) and Qwen3-MoE. Both spellings of the rope settings are understood:
`rope_theta` and `rope_scaling` at top level (transformers 4) and `rope_parameters` (5).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchgen.errors import DataError, UserError
from batchgen.paths import has_file

MAX_CONFIG_BYTES = 16 << 20

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3-moe",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1 frequency scaling: long wavelengths are stretched by `factor`, short ones kept."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary embedding: base, an optional linear stretch of positions, or Llama 3 scaling."""

    theta: float
    linear_factor: float = 1.0
    llama3: Llama3Scaling | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeConfig:
    """Routed experts of one model; `sparse_layers` are the layers that have them."""

    num_experts: int
    experts_per_token: int
    intermediate_size: int
    norm_topk_prob: bool
    sparse_layers: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Everything the executor needs to know about a model before it reads a weight.

    Sizes are in elements, `max_context` in tokens. `family` is one of llama, qwen3, qwen3-moe.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_context: int
    rms_eps: float
    rope: RopeConfig
    tie_word_embeddings: bool
    qk_norm: bool
    attention_bias: bool
    mlp_bias: bool
    moe: MoeConfig | None
    eos_token_ids: tuple[int, ...]

    @property
    def q_size(self) -> int:
        """Columns of the query projection."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Columns of the key (or value) projection."""
        return self.num_kv_heads * self.head_dim

    def kv_page_elements(self, page_tokens: int) -> int:
        """Elements of one KV page over all layers, keys and values together."""
        return self.num_layers * 2 * self.kv_size * page_tokens


class _Fields:
    """A JSON object read field by field, so that each mistake names file and field."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path, self.values = path, values

    def error(self, field: str, message: str, remedy: str = "") -> DataError:
        remedy = remedy or "compare the file with the published checkpoint"
        return DataError(message, path=str(self.path), field=field, remedy=remedy)

    def integer(self, field: str, default: int | None = None, *, low: int = 1) -> int:
        value = self.values.get(field)
        if value is None:
            if default is None:
                raise self.error(field, "is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 1 << 31:
            raise self.error(field, f"must be an integer of at least {low}, got {value!r:.60}")
        return value

    def number(self, field: str, default: float | None = None) -> float:
        value = self.values.get(field)
        if value is None:
            if default is None:
                raise self.error(field, "is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
            raise self.error(field, f"must be a positive number, got {value!r:.60}")
        return float(value)

    def flag(self, field: str, default: bool) -> bool:
        value = self.values.get(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(field, f"must be true or false, got {value!r:.60}")
        return value

    def section(self, field: str) -> dict[str, Any]:
        value = self.values.get(field)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.error(field, f"must be an object, got {value!r:.60}")
        return value


def read_json_object(path: Path, what: str) -> dict[str, Any]:
    """One JSON object from a small file of a checkpoint; a UserError names what is wrong."""
    if not has_file(path):
        remedy = "give the folder of a Hugging Face checkpoint, or run `batchgen model init`"
        raise UserError(f"{path.parent} has no {path.name} ({what})", remedy=remedy)
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise UserError(
            f"{path} is larger than {MAX_CONFIG_BYTES} bytes", remedy="not a checkpoint"
        )
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"is not valid JSON ({error})", path=str(path)) from None
    if not isinstance(value, dict):
        raise DataError("must hold a JSON object", path=str(path))
    return value


def load_config(directory: Path) -> ModelConfig:
    """Read `directory/config.json` (and the eos ids of generation_config.json).

    Raises UserError for a missing file, an unsupported architecture or a bad field.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"model folder {directory} does not exist", remedy="check --model")
    path = directory / "config.json"
    fields = _Fields(path, read_json_object(path, "the model's shape"))
    family = _family(fields)
    hidden_size = fields.integer("hidden_size")
    num_heads = fields.integer("num_attention_heads")
    num_kv_heads = fields.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise fields.error("num_key_value_heads", f"{num_kv_heads} does not divide {num_heads}")
    head_dim = fields.integer("head_dim", 128 if family != "llama" else hidden_size // num_heads)
    if head_dim % 2:
        raise fields.error("head_dim", f"must be even for rotary embedding, got {head_dim}")
    if (activation := fields.values.get("hidden_act", "silu")) != "silu":
        raise fields.error("hidden_act", f"only silu is supported, got {activation!r:.60}")
    if fields.values.get("quantization_config"):
        raise fields.error(
            "quantization_config",
            "is not supported",
            "use a float32, float16 or bfloat16 checkpoint",
        )
    if fields.flag("use_sliding_window", False):
        raise fields.error("use_sliding_window", "sliding-window attention is not supported")
    num_layers = fields.integer("num_hidden_layers")
    return ModelConfig(
        family=family,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_context=fields.integer("max_position_embeddings"),
        rms_eps=fields.number("rms_norm_eps", 1e-6),
        rope=_rope(fields),
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        qk_norm=family != "llama",
        attention_bias=fields.flag("attention_bias", False),
        mlp_bias=fields.flag("mlp_bias", False) if family == "llama" else False,
        moe=_moe(fields, num_layers) if family == "qwen3-moe" else None,
        eos_token_ids=_eos_token_ids(directory, fields),
    )


def _family(fields: _Fields) -> str:
    names = fields.values.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise fields.error("architectures", "must be a list with the name of the model class")
    if names[0] not in ARCHITECTURES:
        supported = ", ".join(sorted(ARCHITECTURES))
        remedy = f"supported: {supported}"
        raise fields.error("architectures", f"{names[0]!r:.80} is not supported", remedy)
    return ARCHITECTURES[names[0]]


def _rope(fields: _Fields) -> RopeConfig:
    merged = fields.section("rope_scaling") | fields.section("rope_parameters")
    theta = _Fields(fields.path, merged).number("rope_theta", fields.number("rope_theta", 10000.0))
    scaling = _Fields(fields.path, merged)
    kind = merged.get("rope_type", merged.get("type", "default"))
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind == "linear":
        return RopeConfig(theta=theta, linear_factor=scaling.number("factor"))
    if kind == "llama3":
        llama3 = Llama3Scaling(
            factor=scaling.number("factor"),
            low_freq_factor=scaling.number("low_freq_factor"),
            high_freq_factor=scaling.number("high_freq_factor"),
            original_max_position=scaling.integer("original_max_position_embeddings"),
        )
        if llama3.high_freq_factor <= llama3.low_freq_factor:
            raise fields.error("high_freq_factor", "must be above low_freq_factor")
        return RopeConfig(theta=theta, llama3=llama3)
    remedy = "supported: default, linear, llama3"
    raise fields.error("rope_type", f"{kind!r:.60} is not supported", remedy)


def _moe(fields: _Fields, num_layers: int) -> MoeConfig:
    # transformers 5 may call the expert count num_local_experts.
    num_experts = fields.integer("num_experts", fields.values.get("num_local_experts"))
    experts_per_token = fields.integer("num_experts_per_tok")
    if experts_per_token > num_experts:
        raise fields.error(
            "num_experts_per_tok", f"{experts_per_token} is above {num_experts} experts"
        )
    step = fields.integer("decoder_sparse_step", 1)
    dense = fields.values.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise fields.error("mlp_only_layers", "must be a list of layer numbers")
    return MoeConfig(
        num_experts=num_experts,
        experts_per_token=experts_per_token,
        intermediate_size=fields.integer("moe_intermediate_size"),
        norm_topk_prob=fields.flag("norm_topk_prob", False),
        sparse_layers=frozenset(
            layer for layer in range(num_layers) if layer not in dense and (layer + 1) % step == 0
        ),
    )


def _eos_token_ids(directory: Path, fields: _Fields) -> tuple[int, ...]:
    # generation_config.json is authoritative: chat models list several stop ids only there.
    value = fields.values.get("eos_token_id")
    path = directory / "generation_config.json"
    if has_file(path):
        generation = read_json_object(path, "generation defaults")
        if generation.get("eos_token_id") is not None:
            value, fields = generation["eos_token_id"], _Fields(path, generation)
    if value is None:
        return ()
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise fields.error(
            "eos_token_id", f"must be a token id or a list of them, got {value!r:.60}"
        )
    return tuple(ids)

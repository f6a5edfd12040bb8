"""The shape of a model, read from a Hugging Face config.json. Loads no weights.

What is common to all families is here; what a family's fields mean is in `exec.families`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from batchgen.errors import UserError
from batchgen.fields import MAX_VOCAB, Fields, read_json_object
from batchgen.paths import has_file

__all__ = ["ModelConfig", "load_config", "read_json_object"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLayout:
    """What a token leaves in a KV arena: per layer `parts` (2: keys and values, 1: a latent) of
    `heads` vectors of `head_dim` elements."""

    layers: int
    parts: int
    heads: int
    head_dim: int

    def page_elements(self, page_tokens: int) -> int:
        """Elements of one page over all layers."""
        return self.layers * self.parts * self.heads * self.head_dim * page_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1 frequency scaling: long wavelengths are stretched by `factor`, short ones kept."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnScaling:
    """YaRN: dimensions that turn more than `beta_fast` times within the original context keep their
    frequency, those below `beta_slow` are stretched by `factor`, with a ramp between; `truncate`
    rounds its ends to whole dimensions. Cosines and sines are multiplied by `attention_factor`.
    """

    factor: float
    beta_fast: float
    beta_slow: float
    original_max_position: int
    truncate: bool
    attention_factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary embedding of `dim` elements: base, and at most one way to stretch it."""

    dim: int
    theta: float
    linear_factor: float = 1.0
    llama3: Llama3Scaling | None = None
    yarn: YarnScaling | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionConfig:
    """Grouped-query attention of one layer; softmax of `scale` times the products.

    `window`: a token sees itself and the window - 1 tokens before it; 0: all. `sinks`: every head
    has a learned score that takes part in the softmax and has no value.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int = 0
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    sinks: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentConfig:
    """Multi-head latent attention of one layer: keys and values of all heads come from one latent
    of `kv_rank` elements and one rotary key of `rope_dim`. `q_rank` 0: queries come straight from
    the hidden state. `interleaved`: the checkpoint rotates pairs (2i, 2i + 1).
    """

    num_heads: int
    q_rank: int
    kv_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int
    scale: float
    interleaved: bool
    bias: bool = False
    window: int = 0  # always: no family has both


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpConfig:
    """A dense gated MLP of `width` neurons."""

    width: int
    bias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingConfig:
    """How a router's logits become experts and their weights.

    `score`: softmax, sigmoid, or chosen-softmax (over the chosen logits alone). `groups`: experts
    are in so many equal groups, of which the best `groups_kept` count; a group is as good as its
    `group_top` best experts together. `correction`: a learned bias takes part in the choice but not
    in the weights. Weights are normalised to a sum of one if `normalise`, then times `scaling`.
    """

    score: str = "softmax"
    normalise: bool = True
    scaling: float = 1.0
    groups: int = 1
    groups_kept: int = 1
    group_top: int = 1
    correction: bool = False
    bias: bool = False
    float32: bool = False

    @property
    def plain(self) -> bool:
        """Softmax over all experts, the best of them, and nothing else."""
        return self == RoutingConfig(normalise=self.normalise)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClampedSwiglu:
    """gpt-oss: (up + 1) * gate * sigmoid(alpha * gate), gate at most `limit`, up within it."""

    alpha: float
    limit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeConfig:
    """Routed experts of one layer, each a gated MLP of `width`, and a dense one of `shared_width`
    (0: none) that every token goes through. `clamp` None: SiLU."""

    num_experts: int
    experts_per_token: int
    width: int
    routing: RoutingConfig
    shared_width: int = 0
    bias: bool = False
    clamp: ClampedSwiglu | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerConfig:
    """One layer: its attention and its MLP."""

    attention: AttentionConfig | LatentConfig
    mlp: MlpConfig | MoeConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Everything the executor needs to know about a model before it reads a weight.

    Sizes are in elements, `max_context` in tokens. `family` is a name of `exec.families`. All
    layers have attention of one kind and one shape of KV. `fp8_block`: rows and columns of a weight
    that share a scale, where weights are stored in FP8. `ignored`: prefixes of tensors that are not
    part of the model (layers that only predict further tokens).
    """

    family: str
    vocab_size: int
    hidden_size: int
    layers: tuple[LayerConfig, ...]
    max_context: int
    rms_eps: float
    rope: RopeConfig
    tie_word_embeddings: bool
    eos_token_ids: tuple[int, ...] = ()
    fp8_block: tuple[int, int] | None = None
    ignored: tuple[str, ...] = ()

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def attention(self) -> AttentionConfig | LatentConfig:
        """That of the first layer: number and size of heads are the same in all."""
        return self.layers[0].attention

    @property
    def moe(self) -> MoeConfig | None:
        """The routed experts of the first layer that has some."""
        return next((x.mlp for x in self.layers if isinstance(x.mlp, MoeConfig)), None)

    @property
    def kv_layout(self) -> KvLayout:
        """What a token leaves in a KV arena."""
        one = self.attention
        if isinstance(one, LatentConfig):
            dim = one.kv_rank + one.rope_dim
            return KvLayout(layers=self.num_layers, parts=1, heads=1, head_dim=dim)
        return KvLayout(
            layers=self.num_layers, parts=2, heads=one.num_kv_heads, head_dim=one.head_dim
        )

    def kv_page_elements(self, page_tokens: int) -> int:
        """Elements of one KV page over all layers."""
        return self.kv_layout.page_elements(page_tokens)


def load_config(directory: Path) -> ModelConfig:
    """Read `directory/config.json` (and the eos ids of generation_config.json).

    Raises UserError for a missing file, an unsupported architecture or a bad field.
    """
    from batchgen.exec.families import find_family  # families build on this module

    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"model folder {directory} does not exist", remedy="check --model")
    path = directory / "config.json"
    fields = Fields(path, read_json_object(path, "the model's shape"))
    config = find_family(fields).read(fields)
    return replace(config, eos_token_ids=_eos_token_ids(directory, fields))


def _eos_token_ids(directory: Path, fields: Fields) -> tuple[int, ...]:
    # generation_config.json is authoritative: chat models list several stop ids only there.
    value = fields.values.get("eos_token_id")
    path = directory / "generation_config.json"
    if has_file(path):
        generation = read_json_object(path, "generation defaults")
        if generation.get("eos_token_id") is not None:
            value, fields = generation["eos_token_id"], Fields(path, generation)
    if value is None:
        return ()
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < MAX_VOCAB for i in ids):
        raise fields.error(
            "eos_token_id", f"must be a token id or a list of them, got {value!r:.60}"
        )
    return tuple(ids)

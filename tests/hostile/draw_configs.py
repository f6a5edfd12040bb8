"""Models with damage: configs, tokenizers, templates, generation defaults, indexes, weights."""

from __future__ import annotations

import json
import struct
from random import Random
from typing import Any

from drawing import damaged, damaged_bytes, dumps
from trying import Case, Place

KNOWN = (
    *("rope_scaling", "rope_parameters", "rope_theta", "quantization_config", "mlp_only_layers"),
    *("layer_types", "sliding_window", "use_sliding_window", "max_window_layers", "architectures"),
    *(
        "num_hidden_layers",
        "num_experts",
        "num_local_experts",
        "n_routed_experts",
        "moe_layer_freq",
    ),
    *("max_position_embeddings", "vocab_size", "hidden_size", "head_dim", "num_attention_heads"),
    *("num_key_value_heads", "intermediate_size", "moe_intermediate_size", "num_experts_per_tok"),
    *("eos_token_id", "tie_word_embeddings", "hidden_act", "rms_norm_eps", "attention_bias"),
    *("decoder_sparse_step", "first_k_dense_replace", "n_group", "topk_group", "norm_topk_prob"),
    *("routed_scaling_factor", "scoring_func", "topk_method", "q_lora_rank", "kv_lora_rank"),
    *("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "n_shared_experts", "swiglu_limit"),
    *("torch_dtype", "dtype", "model_type", "text_config", "partial_rotary_factor", "mlp_bias"),
)
SPECIALS = ("bos_token", "eos_token", "pad_token", "chat_template", "added_tokens_decoder")
SPECIALS += ("tokenizer_class", "model_max_length")
GENERATION = ("eos_token_id", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")
GENERATION += ("do_sample", "max_new_tokens", "bos_token_id")
ARCHITECTURES = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3-moe")
ARCHITECTURES += ("deepseek-v2", "deepseek-v3", "gpt-oss")
MESSAGES = "{% for m in messages %}{{ m.content }}{% endfor %}"
TEMPLATES = (
    *(
        "",
        " ",
        "{{",
        "{%",
        "{% if %}",
        "{% for x in y %}",
        "}}",
        "{#",
        "{{ 1/0 }}",
        "{{ none.x.y }}",
    ),
    "{{ messages[0].content * 10**9 }}",
    "{{ 'x' * 10**12 }}",
    "{{ [0] * 10**10 }}",
    "{{ 10**10**10 }}",
    "{{ '%999999999d' % 5 }}",
    "{{ '{:>9999999999}'.format(5) }}",
    "{{ range(10**9) | list }}",
    "{{ range(99999) | list | length }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(999) %}x{% endfor %}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}{{ f('x') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch pwned') }}",
    "{{ self.__init__.__globals__ }}",
    "{{ namespace.__init__ }}",
    "{% import 'os' as os %}",
    "{% include '/etc/passwd' %}",
    "{% extends 'x' %}",
    "{{ raise_exception('no') }}",
    "{{ raise_exception('x' * 100000) }}",
    "{{ raise_exception(5) }}",
    "{{ raise_exception() }}",
    "{{ raise_exception(messages) }}",
    "{{ strftime_now('%Y') }}",
    "{{ strftime_now('%' * 5000) }}",
    "{{ strftime_now(5) }}",
    "{{ strftime_now('\\ud800') }}",
    "{{ messages | tojson(indent=10**9) }}",
    "{{ messages | tojson(indent='x' * 10**7) }}",
    "{{ '\\ud800' }}",
    "{{ '\\u0000' }}",
    "{{ '\\x1b[31m' }}",
    "{{ 'a' | indent(10**9) }}",
    "{{ 'a' | center(10**10) }}",
    "{{ ('a' * 30) | wordwrap(1) }}",
    "{{ lipsum(n=10**6) }}",
    "{{ dict(a=1) | pprint }}",
    "{{ messages | map('upper') | join }}",
    "{{ messages | random }}",
    "{{ messages.append(1) }}",
    "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}"
    "{% endfor %}{{ ns.x }}",
    "{% generation %}x",
    "{% endgeneration %}",
    "{% generation %}{% generation %}{{ messages }}{% endgeneration %}{% endgeneration %}",
    "{% break %}",
    "{% continue %}",
    "{% trans %}x{% endtrans %}",
    "{% do x %}",
    "{{ " + "(" * 500 + "1" + ")" * 500 + " }}",
    "{{ " + "not " * 5000 + "1 }}",
    "{{ " + "-" * 3000 + "1 }}",
    "{{ " + "1+" * 20_000 + "1 }}",
    "{{ 'x'" + " ~ 'x'" * 5000 + " }}",
    "{% if 1 %}" * 200 + "{% endif %}" * 200,
    "{% if 1 %}" * 30 + "x" + "{% endif %}" * 30,
    "{{ " + "[" * 300 + "]" * 300 + " }}",
    "{{ 9" + "9" * 6000 + " }}",
    "{{ 'x' | " + "upper | " * 2000 + "lower }}",
    "{{ x" * 3000,
    "{% raw %}{{ messages }}",
    "{{ messages[0]['content'].encode('utf-16') }}",
    "\ufeff" + MESSAGES,
    MESSAGES + "\u2028\u0085\x1c",
)
CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}


def template(rng: Random) -> str:
    """A template: one of the list, pieces of several, or a good one with damage."""
    which = rng.random()
    if which < 0.6:
        return rng.choice(TEMPLATES)
    if which < 0.8:
        return "".join(rng.sample((*TEMPLATES, MESSAGES), 2))
    good = rng.choice((*TEMPLATES, MESSAGES)).encode("utf-8", "surrogatepass")
    return damaged_bytes(good, rng).decode("utf-8", "surrogateescape")


def damage(rng: Random, place: Place) -> str:
    """Does it to one file of the model; its name."""
    model = place.folder / "m"

    def write(name: str, text: str | bytes) -> str:
        data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        (model / name).write_bytes(data)
        return name

    which = rng.random()
    if which < 0.35:
        config: dict[str, Any] = json.loads((model / "config.json").read_text())
        if rng.random() < 0.6:
            from batchgen.exec.init import random_config

            config = random_config(rng.choice(ARCHITECTURES), "tiny", False)
        return write("config.json", dumps(damaged(config, rng, KNOWN)))
    if which < 0.5:
        tokenizer = json.loads((model / "tokenizer.json").read_text())
        if rng.random() < 0.3:  # small, so that its structure is what is damaged
            tokenizer["model"]["vocab"] = dict(list(tokenizer["model"]["vocab"].items())[:6])
        return write("tokenizer.json", dumps(damaged(tokenizer, rng)))
    if which < 0.6:
        path = model / "tokenizer_config.json"
        settings = json.loads(path.read_text()) if path.exists() else {}
        if rng.random() < 0.3:
            (model / "chat_template.jinja").unlink(missing_ok=True)
            settings["chat_template"] = template(rng)
        return write(path.name, dumps(damaged(settings, rng, SPECIALS)))
    if which < 0.68:
        values = {"eos_token_id": [1, 2], "temperature": 0.5, "top_p": 0.9, "do_sample": True}
        return write("generation_config.json", dumps(damaged(values, rng, GENERATION)))
    if which < 0.83:
        return write("chat_template.jinja", template(rng).encode("utf-8", "surrogatepass"))
    if which < 0.9:
        index: Any = {"metadata": {}, "weight_map": {"a.weight": "model.safetensors"}}
        if rng.random() < 0.5:
            name = rng.choice(
                ("x" * 5000, "../m/model.safetensors", "", ".", "a\nb.safetensors", "/etc/passwd")
            )
            index["weight_map"]["b" * rng.choice((1, 5000))] = name
        return write("model.safetensors.index.json", dumps(damaged(index, rng)))
    if which < 0.95:
        data = (model / "model.safetensors").read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        text = dumps(damaged(header, rng)).encode("utf-8", "surrogatepass")
        return write("model.safetensors", struct.pack("<Q", len(text)) + text + data[8 + length :])
    name = rng.choice([path.name for path in sorted(model.iterdir()) if path.is_file()])
    return write(name, damaged_bytes((model / name).read_bytes(), rng))


def draw(rng: Random, place: Place) -> Case:
    """A command that reads a damaged model."""
    name = damage(rng, place)
    if rng.random() < 0.15:
        name = damage(rng, place)
    run = ("exec", "--model", "m", "-i", "in.jsonl", "-o", "o.jsonl", "--threads", "1")
    commands: list[tuple[str, ...]] = [run, (*run[:5], "--dry-run")]
    if name == "config.json":
        commands += [
            ("model", "show", "m"),
            ("model", "show", "m", "--json"),
            ("sim", "--trace", "t.jsonl", "--model", "m", "--gpus", "1", "--layout", "tp1"),
            ("sim", "--trace", "t.jsonl", "--model", "m", "--gpus", "2", "--layout", "rule"),
            ("plan", "--trace", "t.jsonl", "--model", "m", "--gpus", "1", "--workers", "1"),
        ]
    if rng.random() < 0.1:
        commands = [
            ("validate", "agreement", "--model", "m", "-i", "in.jsonl", "--policies", "vllm")
        ]
    if rng.random() < 0.3:
        rows = [CHAT, {"prompt": "a", "max_tokens": 2}]
        (place.folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Case(argv=rng.choice(commands), outputs=("o.jsonl",))

"""The generation options of a row's body: numbers, stops and samples, checked. Reads no file.

Names and ranges are those of OpenAI's API, and where it has none those in use elsewhere (`top_k`,
`min_p`, `repetition_penalty`, `min_tokens`, `stop_token_ids`). A value that cannot be is a RowError
that names field and range.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from batchgen.job.prompts import RowError
from batchgen.job.sampling import MAX_TOP_K, Sampling, SamplingDefaults

OPTIONS = frozenset(
    {"temperature", "top_p", "top_k", "min_p", "seed", "n", "stop", "stop_token_ids", "min_tokens"}
    | {"repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"}
    | {"logprobs", "top_logprobs", "ignore_eos"}
)
PLAIN = (type(None), bool, int, float, str)
MAX_SAMPLES = 128
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 1000
MAX_STOP_TOKEN_IDS = 64
MAX_LOGPROBS = 20
MAX_BIAS = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """The options of a row: how it samples (with no seed of its own yet) and what ends it."""

    sampling: Sampling
    ignore_eos: bool
    stop: tuple[str, ...]
    stop_token_ids: frozenset[int]
    num_samples: int


def generation_of(
    body: dict[str, Any],
    kind: str,
    *,
    defaults: SamplingDefaults,
    vocab_size: int,
    max_output: int,
) -> Generation:
    """All options of a row of `kind` ("chat" or "completion") but its seed. Raises RowError."""
    return Generation(
        sampling=_sampling_of(body, kind, defaults, vocab_size, max_output),
        ignore_eos=flag(body, "ignore_eos"),
        stop=stops_of(body),
        stop_token_ids=stop_token_ids_of(body, vocab_size),
        num_samples=samples_of(body),
    )


def options_key(body: dict[str, Any], kind: str) -> tuple[Any, ...] | None:
    """Bodies with the same key have the same `generation_of`: rows of a job mostly have. None for
    options that are no plain values, or depend on the row's length."""
    if OPTIONS.isdisjoint(body):
        return (kind,)
    key: list[Any] = [kind]
    for name in sorted(OPTIONS & body.keys() - {"seed"}):
        value = body[name]
        if type(value) not in PLAIN or name == "min_tokens":
            return None
        key += name, type(value), value
    return tuple(key)


def seed_of(body: dict[str, Any], custom_id: str, run_seed: int) -> int:
    """Of a row: its own, or one of its id; it never depends on its place. Raises RowError."""
    seed = body.get("seed")
    if seed is None:
        digest = hashlib.blake2b(f"{run_seed}:{custom_id}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little")
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(1 << 63) <= seed < 1 << 64:
        raise RowError("invalid_field", "field 'seed' must be a 64-bit integer")
    return seed


def _sampling_of(
    body: dict[str, Any], kind: str, defaults: SamplingDefaults, vocab_size: int, max_output: int
) -> Sampling:
    top_k = _integer(body, "top_k", defaults.top_k, -1, MAX_TOP_K)
    try:
        return Sampling(
            temperature=_number(body, "temperature", defaults.temperature),
            top_p=_number(body, "top_p", defaults.top_p),
            top_k=max(top_k, 0),  # -1 is another way to say all
            min_p=_number(body, "min_p", defaults.min_p),
            repetition_penalty=_number(body, "repetition_penalty", defaults.repetition_penalty),
            presence_penalty=_number(body, "presence_penalty", 0.0),
            frequency_penalty=_number(body, "frequency_penalty", 0.0),
            min_tokens=_min_tokens(body, max_output),
            logprobs=_logprobs(body, kind),
            logit_bias=_logit_bias(body, vocab_size),
        )
    except ValueError as error:
        name, rest = str(error).split(" ", 1)
        raise RowError("invalid_field", f"field '{name}' {rest}") from None


def samples_of(body: dict[str, Any]) -> int:
    """How many answers the row asks for."""
    return _integer(body, "n", 1, 1, MAX_SAMPLES)


def stops_of(body: dict[str, Any]) -> tuple[str, ...]:
    """The texts that end an answer."""
    value = body.get("stop")
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        message = f"field 'stop' must be a string or a list of up to {MAX_STOPS}"
        raise RowError("invalid_field", message)
    for stop in stops:
        if not isinstance(stop, str) or not 0 < len(stop) <= MAX_STOP_CHARACTERS:
            message = f"field 'stop' must hold strings of 1 to {MAX_STOP_CHARACTERS} characters"
            raise RowError("invalid_field", message)
        if "\ufffd" in stop:  # what half a character is shown as: it would come and go
            raise RowError("invalid_field", "field 'stop' must not hold the character U+FFFD")
    return tuple(dict.fromkeys(stops))


def stop_token_ids_of(body: dict[str, Any], vocab_size: int) -> frozenset[int]:
    """Tokens that end an answer beside the model's own."""
    value = body.get("stop_token_ids")
    ids = [] if value is None else value
    if not isinstance(ids, list) or len(ids) > MAX_STOP_TOKEN_IDS:
        message = f"field 'stop_token_ids' must be a list of up to {MAX_STOP_TOKEN_IDS} token ids"
        raise RowError("invalid_field", message)
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
            message = f"token {token!r:.40} of 'stop_token_ids' is not in [0, {vocab_size})"
            raise RowError("invalid_field", message)
    return frozenset(ids)


def flag(body: dict[str, Any], name: str) -> bool:
    """true or false; false if the field is absent or null."""
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise RowError("invalid_field", f"field '{name}' must be true or false")
    return bool(value)


def _min_tokens(body: dict[str, Any], max_output: int) -> int:
    least = _integer(body, "min_tokens", 0, 0, 1 << 31)
    if least > max_output:
        message = f"field 'min_tokens' is {least}, the row may produce {max_output} tokens"
        raise RowError("invalid_field", message)
    return least


def _logprobs(body: dict[str, Any], kind: str) -> int | None:
    if kind == "chat":
        wanted = flag(body, "logprobs")
        more = _integer(body, "top_logprobs", 0, 0, MAX_LOGPROBS)
        if more and not wanted:
            raise RowError("invalid_field", "field 'top_logprobs' needs 'logprobs': true")
        return more if wanted else None
    if body.get("top_logprobs"):
        message = "field 'top_logprobs' belongs to chats; give a completion 'logprobs': N"
        raise RowError("invalid_field", message)
    if body.get("logprobs") is None or body.get("logprobs") is False:
        return None
    return _integer(body, "logprobs", 0, 0, MAX_LOGPROBS)


def _logit_bias(body: dict[str, Any], vocab_size: int) -> tuple[tuple[int, float], ...]:
    value = body.get("logit_bias")
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise RowError("invalid_field", "field 'logit_bias' must map token ids to numbers")
    found: dict[int, float] = {}
    for name, bias in value.items():
        token = int(name) if name.isascii() and name.isdecimal() and len(name) < 10 else -1
        if not 0 <= token < vocab_size:
            message = f"token {name!r:.40} of 'logit_bias' is not in [0, {vocab_size})"
            raise RowError("invalid_field", message)
        if isinstance(bias, bool) or not isinstance(bias, int | float) or abs(bias) > MAX_BIAS:
            message = f"field 'logit_bias' must have numbers in [-100, 100], got {bias!r:.40}"
            raise RowError("invalid_field", message)
        if token in found:
            raise RowError("invalid_field", f"field 'logit_bias' has token {token} twice")
        found[token] = float(bias)
    return tuple(sorted((token, bias) for token, bias in found.items() if bias))


def _integer(body: dict[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise RowError("invalid_field", f"field '{name}' must be an integer from {low} to {high}")
    return value


def _number(body: dict[str, Any], name: str, default: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError("invalid_field", f"field '{name}' must be a number")
    return float(value) if abs(value) < 1e30 else float("inf")

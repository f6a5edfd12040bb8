"""transformers as a peer: static batches of rows of like length, or its continuous batching."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from protocol import job, serve

BATCH = 32
PAGE_TOKENS, BATCH_TOKENS = 256, 2048


def load() -> Callable[[], Sequence[int]]:
    import torch
    from transformers import AutoModelForCausalLM

    asked = job()
    torch.set_num_threads(asked["threads"])
    model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.bfloat16)
    model.eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    runner = _continuous if asked["mode"] == "continuous" else _static
    return runner(model, asked["requests"])


def _static(model: Any, requests: list[dict[str, Any]]) -> Callable[[], Sequence[int]]:
    """Batches of rows that end at about the same time, padded left; each runs to its longest."""
    import torch

    order = sorted(range(len(requests)), key=lambda i: requests[i]["max_tokens"])

    def run() -> Sequence[int]:
        counts = [0] * len(requests)
        for begin in range(0, len(order), BATCH):
            rows = order[begin : begin + BATCH]
            width = max(len(requests[i]["prompt"]) for i in rows)
            ids = torch.zeros(len(rows), width, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for place, i in enumerate(rows):
                prompt = torch.tensor(requests[i]["prompt"])
                ids[place, width - len(prompt) :] = prompt
                mask[place, width - len(prompt) :] = 1
            most = max(requests[i]["max_tokens"] for i in rows)
            with torch.inference_mode():
                model.generate(ids, attention_mask=mask, max_new_tokens=most, do_sample=False)
            for i in rows:
                counts[i] = requests[i]["max_tokens"]
        return counts

    return run


def _continuous(model: Any, requests: list[dict[str, Any]]) -> Callable[[], Sequence[int]]:
    """Its manager of continuous batching; every request has its own number of tokens. KV for all of
    them at once: left to itself it takes nearly all memory of the machine, and is killed for it."""
    from transformers import ContinuousBatchingConfig

    pages = sum(-(-(len(row["prompt"]) + row["max_tokens"]) // PAGE_TOKENS) for row in requests)
    sizes = ContinuousBatchingConfig(
        page_size=PAGE_TOKENS, num_blocks=pages + 8, max_batch_tokens=BATCH_TOKENS
    )

    def run() -> Sequence[int]:
        counts: dict[str, int] = {}
        manager = model.init_continuous_batching(continuous_batching_config=sizes)
        manager.start()
        try:
            names = [
                manager.add_request(row["prompt"], max_new_tokens=row["max_tokens"])
                for row in requests
            ]
            while len(counts) < len(names):
                result = manager.get_result(timeout=1.0)
                if result is None:
                    if not manager.is_running():
                        raise RuntimeError("its manager has stopped")
                elif result.is_finished():
                    if result.error:
                        raise RuntimeError(result.error)
                    counts[result.request_id] = len(result.generated_tokens)
        finally:
            manager.stop(block=True)
        return [counts[name] for name in names]

    return run


if __name__ == "__main__":
    serve(f"transformers-{job()['mode']}", load)
    sys.stdout.flush()

"""vLLM's CPU build as a peer, in its own environment: one engine, ids in and ids out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from protocol import job, serve


def load() -> Callable[[], Sequence[int]]:
    asked = job()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = asked["cores"]
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # no copies between processes
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    from vllm import LLM, SamplingParams

    requests = asked["requests"]
    longest = max(len(row["prompt"]) + row["max_tokens"] for row in requests)
    engine = LLM(
        model=asked["model"],
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=longest,
        enable_prefix_caching=False,  # every run computes all of its prompts
        seed=0,
    )
    prompts = [{"prompt_token_ids": row["prompt"]} for row in requests]
    sampling = [
        SamplingParams(
            temperature=0, max_tokens=row["max_tokens"], ignore_eos=True, detokenize=False
        )
        for row in requests
    ]

    def run() -> Sequence[int]:
        outputs = engine.generate(prompts, sampling, use_tqdm=False)
        return [len(output.outputs[0].token_ids) for output in outputs]

    return run


if __name__ == "__main__":
    serve("vllm", load)

"""What the answers of a job of this executor depend on, by name."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

import batchgen
from batchgen.exec.compiled import why_not
from batchgen.exec.job import ExecJob
from batchgen.exec.machine_facts import gpu_facts, processor_flags
from batchgen.exec.packed import products_way
from batchgen.exec.transformer import DTYPES
from batchgen.job.fingerprint import Fingerprint, file_digest, input_print, model_digest
from batchgen.job.inputs import form_of


def job_fingerprint(job: ExecJob, folder: Path) -> Fingerprint:
    """Of a job whose model lies in `folder`. Reads all of the input once."""
    found = {
        "input": input_print(*file_digest(job.input)),
        "model": model_digest(folder),
        "dtype": job.dtype,
        "exact": str(job.exact),
        "max_tokens": str(job.max_tokens),
        "temperature": str(job.temperature),
        "seed": str(job.seed),
        "limit": str(job.limit),
        "shard": str(job.shard),
        "body": str(job.body),
        "input_format": form_of(job.input, job.form),
        "prompt": str(job.shape),
        "strict": str(job.strict),
        "served_model_names": ", ".join(job.models),
        "version_of_batchgen": batchgen.__version__,
        "version_of_torch": torch.__version__,
        "threads": str(job.threads or torch.get_num_threads()),
    }
    if job.device == "cuda":
        gpu = gpu_facts()
        found["device"] = f"{gpu['name']}, CUDA {gpu['cuda']}, Triton {gpu['triton']}"
    else:
        found["device"] = f"cpu {platform.machine()} {processor_flags()}"
        why = why_not(DTYPES[job.dtype])
        found["kernels"] = why or "compiled"
        if job.dtype == "bfloat16" and not why:
            found["products"] = products_way()
    return found

"""Finds models and machines in the YAML catalog by name. It computes nothing."""

from __future__ import annotations

import difflib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from batchgen.catalog.hf_config import spec_from_config
from batchgen.errors import UserError
from batchgen.fields import read_json_object
from batchgen.hardware import GpuSpec
from batchgen.model import ModelSpec


@cache
def _read(file: str) -> dict[str, Any]:
    import yaml

    text = resources.files("batchgen.catalog").joinpath(file).read_text(encoding="utf-8")
    data: dict[str, Any] = yaml.safe_load(text)
    return data


def _key(name: str) -> str:
    """Spelling that ignores case and punctuation."""
    return "".join(char for char in name.lower() if char.isalnum())


@cache
def _index(file: str) -> dict[str, str]:
    """Folded name or alias -> catalog name."""
    index: dict[str, str] = {}
    for name, entry in _read(file).items():
        for spelling in (name, *entry.get("aliases", ())):
            index[_key(spelling)] = name
    return index


def _resolve(file: str, name: str, what: str, remedy: str) -> str:
    index = _index(file)
    # "deepseek-ai/DeepSeek-R1" is the same model as "DeepSeek-R1".
    for spelling in (name, name.rsplit("/", 1)[-1]):
        if _key(spelling) in index:
            return index[_key(spelling)]
    near = difflib.get_close_matches(_key(name.rsplit("/", 1)[-1]), index, n=5, cutoff=0.5)
    closest = list(dict.fromkeys(index[key] for key in near))[:3]
    hint = f"did you mean {' or '.join(closest)}? " if closest else ""
    raise UserError(f"unknown {what} '{name}'", remedy=hint + remedy, code=f"unknown_{what}")


def catalog_model_names() -> list[str]:
    """Names of the models, in the order of the file."""
    return list(_read("models.yaml"))


def catalog_gpu_names() -> list[str]:
    """Names of the GPUs, in the order of the file."""
    return list(_read("hardware.yaml"))


def price_of(name: str) -> tuple[float, str]:
    """See `batchgen.hardware.gpu_price`."""
    key = _resolve("hardware.yaml", name, "GPU", "see `batchgen model hardware`")
    found = _read("hardware.yaml")[key]["price_per_hour_usd"]
    return float(found["value"]), str(found["source"])


def find_model(name_or_path: str | Path) -> ModelSpec:
    """See `batchgen.model.load_model`."""
    path = Path(name_or_path)
    if path.is_dir() or path.name == "config.json":
        return _from_folder(path)
    name = _resolve(
        "models.yaml",
        str(name_or_path),
        "model",
        "see `batchgen model list`, or give a folder with a config.json",
    )
    return _from_catalog(name)


@cache
def _from_catalog(name: str) -> ModelSpec:
    entry = _read("models.yaml")[name]
    return spec_from_config(
        entry["config"],
        name=name,
        place=f"catalog/models.yaml ({name})",
        published_parameters=float(entry["published_parameters"]["value"]),
        source=str(entry["source"]),
    )


def _from_folder(path: Path) -> ModelSpec:
    file = path if path.name == "config.json" else path / "config.json"
    config = read_json_object(file, "the model's shape")
    return spec_from_config(config, name=file.resolve().parent.name, place=str(file))


@cache
def find_gpu(name: str) -> GpuSpec:
    """See `batchgen.hardware.load_gpu`."""
    key = _resolve("hardware.yaml", name, "GPU", "see `batchgen model hardware`")
    entry = _read("hardware.yaml")[key]

    def value(field: str) -> float:
        return float(entry[field]["value"])

    return GpuSpec(
        name=key,
        peak_flops={dtype: float(peak["value"]) for dtype, peak in entry["peak_flops"].items()},
        hbm_bytes=int(value("hbm_bytes")),
        hbm_bytes_per_s=value("hbm_bytes_per_s"),
        intra_bytes_per_s=value("intra_bytes_per_s"),
        intra_latency_s=value("intra_latency_s"),
        inter_bytes_per_s=value("inter_bytes_per_s"),
        inter_latency_s=value("inter_latency_s"),
        host_bytes=int(value("host_bytes")),
        host_bytes_per_s=value("host_bytes_per_s"),
        node_host_bytes_per_s=value("node_host_bytes_per_s"),
        disk_bytes=int(value("disk_bytes")),
        disk_read_bytes_per_s=value("disk_read_bytes_per_s"),
        disk_write_bytes_per_s=value("disk_write_bytes_per_s"),
        gpus_per_node=int(value("gpus_per_node")),
        price_per_hour_usd=value("price_per_hour_usd"),
    )

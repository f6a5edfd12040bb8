"""`batchgen model`: list, show, hardware, init. Parses and prints; the catalog holds the numbers.

Data goes to stdout, talk to stderr.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from batchgen.model import ModelSpec

app = typer.Typer(
    help="Show what a model costs and what a machine gives.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
# Those of exec.families, which needs torch.
ARCHITECTURES = (
    *("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3-moe"),
    *("deepseek-v2", "deepseek-v3", "gpt-oss"),
)


@app.command("list")
def list_command(as_json: Json = False) -> None:
    """The models of the catalog."""
    from batchgen.model import load_model, model_names

    models = [load_model(name) for name in model_names()]
    if as_json:
        _print_json([_summary(model) for model in models])
        return
    rows = [
        (
            model.name,
            _billions(model.total_parameters),
            _billions(model.active_parameters),
            f"{model.weight_bytes / 1e9:.1f} GB",
            _dtypes(model),
            f"{model.kv_bytes_per_token:,}",
            f"{model.max_context:,}",
        )
        for model in models
    ]
    header = ("model", "parameters", "active", "weights", "dtype", "KV B/token", "max context")
    _print_table(header, rows)


@app.command("show")
def show_command(
    name: Annotated[str, typer.Argument(metavar="NAME|DIR", help="Catalog name or HF folder.")],
    as_json: Json = False,
) -> None:
    """Parameters, FLOPs and bytes per module of one model."""
    from batchgen.model import load_model

    model = load_model(name)
    parameters, weights = model.parameters_by_module(), model.weight_bytes_by_module()
    flops = model.flops_per_token()
    if as_json:
        _print_json(
            {
                **_summary(model),
                "modules": {
                    module: {
                        "parameters": parameters[module],
                        "weight_bytes": weights[module],
                        "flops_per_token": flops.get(module, 0),
                    }
                    for module in parameters
                },
                "kv_bytes_by_context": {
                    str(tokens): model.kv_bytes(tokens) for tokens in (1024, 8192, 32768)
                },
            }
        )
        return
    typer.echo(f"{model.name} ({model.family}, {model.attention}), {model.source}")
    typer.echo(
        f"{model.num_layers} layers, hidden {model.hidden}, {model.num_heads} heads, "
        f"{model.num_kv_heads} KV heads, context {model.max_context:,}"
    )
    if model.is_moe:
        typer.echo(
            f"{model.num_experts} experts, top {model.top_k}, width {model.expert_ffn}, "
            f"{model.num_shared} shared, {model.first_k_dense} dense layers first"
        )
    typer.echo(f"KV {model.kv_bytes_per_token:,} B per token", nl=not model.window_layers)
    if model.window_layers:
        typer.echo(
            f", and at most {model.kv_window_bytes:,} B per row in {model.window_layers} layers "
            f"with a window of {model.window}"
        )
    rows = [
        (
            module,
            _billions(parameters[module]),
            f"{weights[module] / 1e9:.2f} GB",
            f"{flops.get(module, 0) / 1e9:.2f}",
        )
        for module in parameters
        if parameters[module] or flops.get(module)
    ]
    rows.append(
        (
            "total",
            _billions(model.total_parameters),
            f"{model.weight_bytes / 1e9:.2f} GB",
            f"{sum(flops.values()) / 1e9:.2f}",
        )
    )
    _print_table(("module", "parameters", "weights", "GFLOP/token"), rows)


@app.command("hardware")
def hardware_command(as_json: Json = False) -> None:
    """The GPUs of the catalog: dense peaks, memory, links one way per GPU, price."""
    from dataclasses import asdict

    from batchgen.hardware import gpu_names, load_gpu

    gpus = [load_gpu(name) for name in gpu_names()]
    if as_json:
        _print_json([asdict(gpu) for gpu in gpus])
        return
    rows = [
        (
            gpu.name,
            f"{gpu.peak_flops['bf16'] / 1e12:,.0f}",
            f"{gpu.peak_flops['fp8'] / 1e12:,.0f}" if "fp8" in gpu.peak_flops else "-",
            f"{gpu.hbm_bytes / 1e9:.1f}",
            f"{gpu.hbm_bytes_per_s / 1e9:,.0f}",
            f"{gpu.intra_bytes_per_s / 1e9:.0f}",
            f"{gpu.inter_bytes_per_s / 1e9:.1f}",
            f"{gpu.host_bytes_per_s / 1e9:.0f}",
            f"{gpu.host_bytes / 1e9:,.0f}",
            str(gpu.gpus_per_node),
            f"{gpu.price_per_hour_usd:.2f}",
        )
        for gpu in gpus
    ]
    header = (
        "GPU",
        "bf16 TFLOP/s",
        "fp8",
        "HBM GB",
        "HBM GB/s",
        "intra GB/s",
        "inter GB/s",
        "PCIe GB/s",
        "host GB",
        "GPUs/node",
        "USD/h",
    )
    _print_table(header, rows)


@app.command("init")
def init_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write.")],
    arch: Annotated[str, typer.Option(help=f"One of {', '.join(ARCHITECTURES)}.")] = "qwen3",
    size: Annotated[
        str,
        typer.Option(help="tiny (tests), small (demonstrations) or medium (for a GPU; 2 GB)."),
    ] = "tiny",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the weights.")] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a checkpoint that exists.")
    ] = False,
) -> None:
    """Write a random checkpoint with a byte-level tokenizer, to try `batchgen exec` with.

    Its answers mean nothing; the same options write the same bytes.
    """
    from batchgen.cli.common import say
    from batchgen.cli.torch_threads import calm_threads
    from batchgen.errors import UserError
    from batchgen.paths import beside

    replace = _check_checkpoint_target(directory, force)
    calm_threads()
    from batchgen.exec.init import init_model

    try:
        if replace:
            # Made beside the old one, so that a wrong option replaces nothing.
            directory = directory.absolute()
            with beside(directory) as folder:
                folder.mkdir()
                made = init_model(folder / "model", arch, size, seed)
                made.chmod(stat.S_IMODE(directory.stat().st_mode))
                try:
                    directory.rename(folder / "old")
                    made.rename(directory)
                except BaseException:  # a signal between the two
                    if not directory.exists():
                        (folder / "old").rename(directory)
                    raise
        else:
            init_model(directory, arch, size, seed)
    except OSError as error:
        raise UserError(
            f"cannot write {directory}: {error.strerror}", remedy="give another folder"
        ) from None
    say(f"wrote {directory}: a random {size} {arch} checkpoint, seed {seed}")


def _check_checkpoint_target(directory: Path, force: bool) -> bool:
    """Whether a checkpoint is to be replaced. Refuses a folder that holds anything else."""
    from batchgen.errors import UserError

    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise UserError(f"{directory} is not a folder", remedy="give another")
    if not directory.exists() or not any(directory.iterdir()):
        return False
    if not force:
        raise UserError(
            f"{directory} exists and is not empty",
            remedy="give another folder, or --force to replace the checkpoint in it",
        )
    if not (directory / "config.json").is_file():
        raise UserError(
            f"{directory} is not a checkpoint (no config.json), so --force does not replace it",
            remedy="give another folder",
        )
    return True


def _summary(model: ModelSpec) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        **asdict(model),
        "total_parameters": model.total_parameters,
        "active_parameters": model.active_parameters,
        "weight_bytes": model.weight_bytes,
        "kv_bytes_per_token": model.kv_bytes_per_token,
        "kv_window_bytes": model.kv_window_bytes,
    }


def _billions(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e7 else f"{count / 1e6:.3f} M"


def _dtypes(model: ModelSpec) -> str:
    if model.is_moe and model.expert_dtype != model.weight_dtype:
        return f"{model.weight_dtype}, experts {model.expert_dtype}"
    return model.weight_dtype


def _print_json(data: Any) -> None:
    typer.echo(json.dumps(data, indent=2))


def _print_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Aligned columns in plain text: the first to the left, numbers to the right."""
    table = [header, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for row in table:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        typer.echo("  ".join(cells).rstrip())

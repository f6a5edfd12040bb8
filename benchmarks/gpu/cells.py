"""Throughput of the executor on one GPU against the phase-sum bound: models of random weights.

    python benchmarks/gpu/cells.py --cell qwen3-8b-512-512 --seconds 60 --out cell.json

A closed batch of random prompts runs through the runtime, the driver and the GPU's worker, as
`batchgen exec` runs one, but for tokenising and writing. It is stopped after `--seconds`. The rate
is that of the passes in which at least 80 % of the seats are taken; the bound is of the ceilings in
`--ceilings` (benchmarks/gpu/ceilings.py), measured on the same machine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from loads import CELLS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--cell", choices=sorted(CELLS))
    parser.add_argument("--policy", default="vllm")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--ceilings", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--passes", type=Path, help="npz with load and time of every pass")
    parser.add_argument("--kernels", type=int, default=0, metavar="N")
    parser.add_argument("--before", type=float, default=0.0, help="seconds of the job, uncounted")
    options = parser.parse_args()
    if options.list:
        print("\n".join(CELLS))
        return
    if options.cell is None:
        parser.error("give --cell, or --list")
    from kernels import read_ceilings
    from shares import summary
    from throughput import run

    load = CELLS[options.cell]
    rows = options.rows
    found = run(
        load,
        policy=options.policy,
        seconds=options.seconds,
        device=options.device,
        rows=rows,
        kernels=options.kernels,
        before_s=options.before,
    )
    if options.passes is not None:
        import numpy as np

        np.savez_compressed(options.passes, **found["passes"])
    line = {"cell": options.cell} | summary(found, load, read_ceilings(options.ceilings))
    text = json.dumps(line, indent=1)
    if options.out is not None:
        options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()

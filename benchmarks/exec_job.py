"""Questions through `batchgen exec`, killed on the way and resumed.

    python benchmarks/exec_job.py --model models/sums-moe --kills 2 QUESTIONS.jsonl ...

Says how long it took and what came back, as JSON; exit code 1 if a row is missing or twice, out of
order, or counted wrong. `--undisturbed` runs the same job once more without kills, in exact mode
both, and compares the bytes of the answers but for the second at which a job began. Questions are
the field `question` of JSON lines.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from questions import options, requests, tell

from batchgen.errors import UserError
from batchgen.job.looking import look_at

POLL_S = 0.3


def argv_of(model: Path, folder: Path, options: list[str]) -> list[str]:
    """The command of the job in this folder."""
    argv = [sys.executable, "-P", "-m", "batchgen", "exec", "--model", str(model)]
    argv += ["-i", str(folder.parent / "rows.jsonl"), "-o", str(folder / "out.jsonl")]
    argv += ["--manifest", str(folder / "manifest.json"), "--resume", "if-possible"]
    return [*argv, "--quiet", *options]


def run(argv: list[str], folder: Path, rows: int, kills: int) -> dict[str, Any]:
    """The job from its first process to its output; SIGKILL when so many equal parts are done."""
    folder.mkdir()
    began = time.monotonic()
    killed_at: list[int] = []
    while True:
        process = subprocess.Popen(argv)
        # Each process answers something before the next kill.
        stop = max([rows * (len(killed_at) + 1) // (kills + 1), *(one + 1 for one in killed_at)])
        while process.poll() is None:
            time.sleep(POLL_S)
            if len(killed_at) < kills and answered(folder) >= stop:
                process.kill()
        if process.wait() >= 0:
            break
        killed_at.append(answered(folder))
    return {
        "exit_code": process.returncode,
        "killed_at": killed_at,
        "wall_s": round(time.monotonic() - began, 1),
    }


def answered(folder: Path) -> int:
    """Rows in the journal."""
    try:
        return sum(look_at(folder / "out.jsonl").by_code.values())
    except UserError:  # it has not begun
        return 0


def check(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the output and the manifest hold, beside what was asked."""
    data = (folder / "out.jsonl").read_bytes()
    lines = [json.loads(line) for line in data.splitlines()]
    told = json.loads((folder / "manifest.json").read_text())
    names = [row["custom_id"] for row in rows]
    codes = Counter(one["error"]["code"] for one in lines if one["error"])
    return {
        "rows": len(rows),
        "answered": len(lines) - sum(codes.values()),
        "failed_by_code": dict(codes),
        "each_once": sorted(one["custom_id"] for one in lines) == sorted(names),
        "in_order": [one["custom_id"] for one in lines] == names,
        "manifest_agrees": (told["rows"], told["done"], told["failed_by_code"])
        == (len(rows), len(lines) - sum(codes.values()), dict(codes))
        and told["output_sha256"] == hashlib.sha256(data).hexdigest(),
        "attempts": told["attempts"],
        "total_tokens": sum(
            one["response"]["body"]["usage"]["total_tokens"] for one in lines if not one["error"]
        ),
    }


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--undisturbed", action="store_true", help="compare with a job not killed")
    args = parser.parse_args()
    rows = requests(args)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="batchgen-exec-") as name:
        folder = Path(name)
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        mode = ["--exact"] if args.undisturbed else []
        job = argv_of(args.model, folder / "killed", mode)
        found = run(job, folder / "killed", len(rows), args.kills)
        found |= check(folder / "killed", rows)
        if args.undisturbed:
            job = argv_of(args.model, folder / "whole", mode)
            found["undisturbed_wall_s"] = run(job, folder / "whole", len(rows), 0)["wall_s"]
            both = [undated(folder / one / "out.jsonl") for one in ("killed", "whole")]
            found["same_bytes"] = both[0] == both[1]
    tell(found, load, args)
    wanted = ("each_once", "in_order", "manifest_agrees", "same_bytes")
    is_good = all(found.get(name, True) for name in wanted)
    return 0 if is_good and found["exit_code"] in (0, 1) else 1


def undated(path: Path) -> str:
    """A digest of an output without the second at which its job began."""
    return hashlib.sha256(re.sub(rb'"created":\d+', b"", path.read_bytes())).hexdigest()


if __name__ == "__main__":
    sys.exit(main())

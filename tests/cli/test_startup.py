"""Start-up stays fast and light: what `import batchgen` and `--help` may load, and how long."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

BLOCK = """
import sys
BLOCKED = {blocked}
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Block())
"""
HEAVY = ("torch", "simpy", "triton", "pandas", "pyarrow", "matplotlib")


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


def best_of(code: str, tries: int = 5) -> float:
    """Seconds of the fastest of a few runs: the others waited for the machine."""
    times = []
    for _ in range(tries):
        start = time.perf_counter()
        assert run(code).returncode == 0
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.mark.parametrize(
    "code",
    [
        "import batchgen",
        "import batchgen.cli",
        "from batchgen.cli import main; assert main(['--help']) == 0",
        "from batchgen.cli import main; assert main(['sim', '--help']) == 0",
        "from batchgen.cli import main; assert main(['report', '--help']) == 0",
        "from batchgen.cli import main; assert main(['serve', '--help']) == 0",
    ],
)
def test_nothing_heavy_is_needed(code: str) -> None:
    done = run(BLOCK.format(blocked=HEAVY) + code)
    assert done.returncode == 0, done.stderr


def test_root_help_needs_neither_numpy_nor_rich() -> None:
    code = "from batchgen.cli import main; assert main(['--help']) == 0"
    done = run(BLOCK.format(blocked=(*HEAVY, "numpy", "rich")) + code)
    assert done.returncode == 0, done.stderr


def test_import_takes_under_300_ms() -> None:
    assert best_of("import batchgen") < 0.3


def test_help_takes_under_500_ms() -> None:
    assert best_of("from batchgen.cli import main; main(['--help'])") < 0.5

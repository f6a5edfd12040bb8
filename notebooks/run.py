"""Executes the notebooks of this folder in plain Python and keeps their outputs. No Jupyter needed.

    python notebooks/run.py              execute all of them and store what they show
    python notebooks/run.py 02           only those whose name holds this text
    python notebooks/run.py --check      execute, store nothing; exit code 1 where text differs

A cell's value is shown by Jupyter's protocol (`_repr_png_`, `_repr_html_`, repr), so that Jupyter
shows the same. Outputs hold no dates and no wall-clock times: the same code gives the same.
"""

from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import io
import json
import os
import sys
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
SMALL = "BATCHGEN_NOTEBOOK_SMALL"
"""Environment variable that the first cell of a notebook reads: "1" for a quick run."""

Cell = dict[str, Any]
Notebook = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description="Execute the notebooks and keep their outputs.")
    parser.add_argument("names", nargs="*", help="only notebooks whose name holds such a text")
    parser.add_argument("--check", action="store_true", help="compare instead of storing")
    given = parser.parse_args()
    os.environ.pop(SMALL, None)
    wrong = []
    for path in notebooks():
        if given.names and not any(name in path.name for name in given.names):
            continue
        print(path.name, file=sys.stderr)
        before = read(path)
        after = executed(before)
        if given.check:
            wrong += [f"{path.name}: {line}" for line in differences(before, after)]
        else:
            path.write_text(as_text(after), encoding="utf-8")
    print(*wrong, sep="\n", end="\n" if wrong else "")
    return 1 if wrong else 0


def notebooks() -> list[Path]:
    return sorted(FOLDER.glob("*.ipynb"))


def read(path: Path) -> Notebook:
    found: Notebook = json.loads(path.read_text(encoding="utf-8"))
    return found


def as_text(notebook: Notebook) -> str:
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def code_cells(notebook: Notebook) -> list[Cell]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def source(cell: Cell) -> str:
    return "".join(cell["source"])


def code_digest(notebook: Notebook) -> str:
    """Of all code: stored with the outputs, it says which code gave them."""
    code = json.dumps([source(cell) for cell in code_cells(notebook)])
    return hashlib.sha256(code.encode()).hexdigest()


def executed(notebook: Notebook) -> Notebook:
    """The notebook with the outputs of its cells, run in order in one namespace, in this folder.

    Raises what a cell raises; its traceback names the cell.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    cells, count = [], 0
    import pandas as pd

    # Of tables as text; their HTML has all.
    wide = ("display.width", 200, "display.max_columns", 30, "display.max_colwidth", None)
    with chdir(FOLDER), pd.option_context(*wide):
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                count += 1
                outputs = _run(source(cell), names, count)
                cell = cell | {"execution_count": count, "outputs": outputs}
            cells.append(cell)
    metadata = notebook["metadata"] | {"batchgen": {"code_sha256": code_digest(notebook)}}
    return notebook | {"cells": cells, "metadata": metadata}


def _run(code: str, names: dict[str, Any], count: int) -> list[Cell]:
    """Outputs of one cell: what it prints, then its value, where its last line has one."""
    label = f"<cell {count}>"
    body = ast.parse(code, label).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with redirect_stdout(printed):
        exec(compile(ast.Module(body, []), label, "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), label, "eval"), names)
    outputs: list[Cell] = []
    if printed.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": _lines(printed)})
    if value is not None:
        result = {"data": _shown(value), "execution_count": count, "metadata": {}}
        outputs.append(result | {"output_type": "execute_result"})
    return outputs


def _shown(value: Any) -> dict[str, Any]:
    data: dict[str, Any] = {}
    if hasattr(value, "_repr_png_"):
        data["image/png"] = base64.b64encode(value._repr_png_()).decode() + "\n"
    if hasattr(value, "_repr_html_"):
        data["text/html"] = _lines(io.StringIO(value._repr_html_()))
    data["text/plain"] = _lines(io.StringIO(repr(value)))
    return data


def _lines(text: io.StringIO) -> list[str]:
    return text.getvalue().splitlines(keepends=True)


def differences(before: Notebook, after: Notebook) -> list[str]:
    """Where the texts of outputs differ. Pictures are not compared: fonts change their bytes."""
    found = []
    for number, (one, other) in enumerate(
        zip(code_cells(before), code_cells(after), strict=True), start=1
    ):
        if texts(one) != texts(other):
            found.append(f"cell {number} shows {texts(other)!r}, stored is {texts(one)!r}")
    return found


def texts(cell: Cell) -> list[str]:
    """What a code cell shows as text, output by output."""
    return [
        "".join(output.get("text") or output["data"]["text/plain"]) for output in cell["outputs"]
    ]


if __name__ == "__main__":
    sys.exit(main())

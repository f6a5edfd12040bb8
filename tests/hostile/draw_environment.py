"""Odd environments: no home, no folder for temporary files, odd locales and variables, streams that
are closed or full, rights of files."""

from __future__ import annotations

import os
from random import Random

from drawing import SIM
from trying import Case, Place

VARIABLES: dict[str, tuple[str | None, ...]] = {
    "HOME": (None, "", "/nonexistent", "t.jsonl", "keep", "relative/home", "x" * 5000),
    "XDG_CACHE_HOME": (None, "", "relative", "t.jsonl", "/proc/self", "/nonexistent/a", "x" * 5000),
    "TMPDIR": ("/nonexistent", "", "t.jsonl", "keep", "/proc", "x" * 5000),
    "HF_HOME": ("/nonexistent", "", "t.jsonl", "x" * 5000),
    "TERM": (None, "", "dumb", "nothing-knows-this", "xterm-256color", "\x1b[31m"),
    "COLUMNS": ("0", "-1", "1", "20", "99999999", "x", "9" * 400, ""),
    "LINES": ("0", "-1", "x"),
    "NO_COLOR": ("1", ""),
    "FORCE_COLOR": ("1", "x"),
    "TTY_COMPATIBLE": ("1", "x"),
    "LANG": ("C", "POSIX", "xx_XX.none", "", "de_DE.ISO-8859-1"),
    "LC_ALL": ("C", "POSIX", "xx_XX.none", ""),
    "TZ": ("nowhere", "", ":", "UTC-99", "x" * 3000),
    "SOURCE_DATE_EPOCH": (
        "x",
        "-1",
        "",
        "9" * 30,
        "1e9",
        "1700000000",
        "99999999999",
        "0",
        "1" * 11,
    ),
    "PYTHONHASHSEED": ("x", "12345", "random"),
    "MPLBACKEND": ("nothing", "", "TkAgg", "agg"),
    "MPLCONFIGDIR": ("/nonexistent", "t.jsonl", "/proc", ""),
    "OMP_NUM_THREADS": ("0", "-1", "x", "", "9" * 30),
    "MKL_NUM_THREADS": ("0", "x"),
    "OMP_PROC_BIND": ("x", "true"),
    "BATCHGEN_COMPILED": ("", "0", "1", "x", "2"),
    "BATCHGEN_PRODUCTS": ("", "x", "amx", "avx512", "torch"),
    "BATCHGEN_API_KEY": ("", "\u00e9", "x" * 5000, "a b"),
    "CXX": ("", "none", "g++ -x", "'", "true", "false", "/dev/null", "t.jsonl", "x" * 5000),
    "PATH": ("", "/nonexistent"),
    "CUDA_VISIBLE_DEVICES": ("", "99", "x"),
    "PAGER": ("none",),
    "USER": (None,),
    "_TYPER_STANDARD_TRACEBACK": ("1", "x"),
    "TYPER_USE_RICH": ("0", "x"),
    "COMP_WORDS": ("batchgen s",),
}
EXEC = ("exec", "--model", "m", "-i", "ids.jsonl", "-o", "o.jsonl", "--threads", "1")
COMMANDS: tuple[tuple[str, ...], ...] = (
    EXEC,
    EXEC,
    (*EXEC, "--json"),
    (*EXEC, "--json-events"),
    (*EXEC, "--progress", "bar"),
    (*EXEC, "--progress", "plain"),
    ("exec", "--model", "m", "-i", "ids.jsonl", "-o", "-", "--threads", "1"),
    ("exec", "--model", "m", "-i", "-", "-o", "o.jsonl", "--threads", "1"),
    ("exec", "--model", "m", "-i", "ids.jsonl", "--dry-run"),
    ("exec", "--model", "org/none", "-i", "ids.jsonl", "-o", "o.jsonl"),
    ("job", "results", "answers.jsonl"),
    ("job", "status", "answers.jsonl"),
    ("validate", "input", "ids.jsonl"),
    ("sim", "--trace", "n\u00e4me\U0001f600.jsonl", *SIM),
    ("sim", "--trace", "n\u00e4me\U0001f600.jsonl", *SIM, "--out", "o.jsonl"),
    ("sim", "--trace", "none\u00e9.jsonl"),
    ("trace", "stats", "n\u00e4me\U0001f600.jsonl"),
    ("trace", "plot", "n\u00e4me\U0001f600.jsonl", "-o", "o.png"),
    (
        "trace",
        "generate",
        "-o",
        "o.jsonl",
        "-n",
        "3",
        "--part",
        "1 / constant:9 / constant:3",
        "--name",
        "ä😀",
    ),
    ("sweep", "s.yaml", "--out", "o.jsonl", "--workers", "2"),
    ("plan", "--trace", "t.jsonl", *SIM[:6], "--workers", "2"),
    ("report", "run"),
    ("model", "show", "llama-3.1-8b"),
    ("model", "list"),
    ("policy", "list"),
    (
        "bench",
        "bound",
        "--model",
        "llama-3.1-8b",
        "--seats",
        "4",
        "--tflops",
        "1",
        "--gb-per-s",
        "9",
        "--prompt-tokens",
        "5",
        "--output-tokens",
        "5",
    ),
    ("--version",),
    ("--help",),
    ("sim", "--help"),
)
IDS = (
    '{"custom_id": "\u00e4\u4e2d\U0001f600", "prompt": "h\u00e4llo", "max_tokens": 2}\n'
    '{"custom_id": "\\u2028", "prompt": "x", "max_tokens": 2}\n'
    '{"custom_id": "\u00e9", "prompt": "", "max_tokens": "\u00e9"}\n'
)


def draw(rng: Random, place: Place) -> Case:
    """A command in an odd environment."""
    at = place.folder
    (at / "ids.jsonl").write_text(IDS, encoding="utf-8")
    (at / "answers.jsonl").write_text(
        '{"id": "\u00e4", "custom_id": "\u00e4\U0001f600", "response": {}, "error": null}\n',
        encoding="utf-8",
    )
    (at / "n\u00e4me\U0001f600.jsonl").write_text((at / "t.jsonl").read_text())
    argv = rng.choice(COMMANDS)
    names = rng.sample(sorted(VARIABLES), rng.choice((0, 1, 1, 1, 2, 4)))
    env = {name: rng.choice(VARIABLES[name]) for name in names}
    task: dict[str, object] = {"env": env}
    if rng.random() < 0.35:
        task["encoding"] = rng.choice(("ascii", "ascii", "latin-1", "cp1252"))
    if rng.random() < 0.3:
        task["closed"] = rng.choice(([0], [1], [2], [1, 2], [0, 1, 2]))
    if rng.random() < 0.1:
        task["out"] = "/dev/full"
    if rng.random() < 0.05:
        task["err"] = "/dev/full"
    if rng.random() < 0.15:
        task["umask"] = rng.choice((0o000, 0o077, 0o777, 0o022))
    if "-" in argv and task.get("closed") != [0] and rng.random() < 0.8:
        task["stdin"] = str(at / "ids.jsonl")
    if rng.random() < 0.1 and os.geteuid() == 0:
        task["uid"] = 65534  # in a folder that it may not write
    if rng.random() < 0.05:
        task["gone"] = True
    outputs = ("o.jsonl", "o.png", "relative", "keep", "x" * 200)
    return Case(argv=argv, outputs=outputs, is_partial="out" in task or "err" in task, task=task)

"""Paths of every option: what lies there is no file, may not be touched, or has an odd name."""

from __future__ import annotations

import gzip
import os
import socket
from pathlib import Path
from random import Random

from drawing import lines
from trying import Case, Place

# Command, with {} for the path; what the path is: an input or an output.
INPUTS = lines(
    r"""
sim --trace {} SIM
sim --trace t.jsonl SIM --devices {}
sim --trace t.jsonl SIM --profile {}
sim --trace t.jsonl --model {} --gpus 1
sim --trace t.jsonl --model llama-3.1-8b --gpus 8 --cluster {}
sim --trace t.jsonl SIM --policy {}
sim --trace t.jsonl SIM --body {}
plan --trace {} --workers 1
plan --trace t.jsonl LLAMA --profile {} --workers 1
sweep {} --out o.jsonl
exec --model {} -i in.jsonl -o o.jsonl
exec --model m -i {} -o o.jsonl --threads 1
exec --model m -i {} --dry-run
exec --model m -i in.jsonl -o o.jsonl --profile {}
exec --model m -i in.jsonl -o o.jsonl --body {}
trace stats {}
trace stats {} --format mooncake
trace import {} -o o.jsonl
trace import t.jsonl -o o.jsonl --prefixes {}
trace plot {} -o o.png
trace devices stats {}
trace devices import {} -o o.jsonl
trace devices plot {} -o o.png
model show {}
validate replay {} --no-fresh
validate replay {}
validate input {}
validate agreement --model {} -i in.jsonl
validate agreement --model m -i {}
validate prediction --model m -i in.jsonl --profile {}
validate prediction --model {} -i in.jsonl --profile c.yaml
job status {}
job results {}
report {}
profile -o o.jsonl --quick --model {}
serve --model {} --state old.jsonl
bench bound --model {} --seats 4 --tflops 1 --gb-per-s 9 --prompt-tokens 5 --output-tokens 5
bench bound --model llama-3.1-8b --seats 4 --ceilings {} --prompt-tokens 5 --output-tokens 5
bench bound --model llama-3.1-8b --seats 4 --tflops 1 --gb-per-s 9 --trace {}
bench costs --tables {}
bench engines --data {}
bench engines --profiles {}
bench silicon --data {}
policy check {}
"""
)
OUTPUTS = lines(
    r"""
sim --trace t.jsonl SIM --out {}
sim --trace t.jsonl SIM --compare vllm,orca --out {}
sweep s.yaml --workers 1 --out {}
exec --model m -i in.jsonl -o {} --threads 1
exec --model m -i in.jsonl -o o.jsonl --threads 1 --out {}
exec --model m -i in.jsonl -o o.jsonl --threads 1 --manifest {}
exec --model m -i in.jsonl -o o.jsonl --threads 1 --error-file {}
exec --model m -i in.jsonl -o o.jsonl --threads 1 --job-dir {}
exec --model m -i in.jsonl -o - --threads 1 --job-dir {}
trace generate -n 9 --part '1 / constant:9 / constant:3' -o {}
trace import t.jsonl -o {}
trace plot t.jsonl -o {}
trace devices generate --gpus 16 -o {}
trace devices import d.jsonl -o {}
trace devices plot d.jsonl -o {}
report run --plots {}
report run --timeline {}
model init {}
bench bound --model llama-3.1-8b --seats 4 --tflops 1 --gb-per-s 9 --prompt-tokens 5 \
  --output-tokens 5 --out {}
bench published --only nothing-has-this --out {}
bench published --only nothing-has-this --commands {}
"""
)
FORCED = ("sim", "sweep", "exec", "trace", "model", "bench")
KINDS = (
    *("folder", "empty folder", "pipe", "socket", "broken link", "loop", "link to folder"),
    *("empty file", "binary", "gzip", "cut gzip", "json", "long line", "nul", "utf-16", "old"),
    *("none", "below a file", "below nothing", "long name", "long path", "odd name", "bytes"),
    *("itself", "device", "full", "stdin", "descriptor", "unreadable", "closed folder"),
    *("keep", "model file", "hard link", "link", "word", "read-only folder", "proc"),
)
ODD = (
    " ",
    "a b",
    "\u00e9",
    "\u202ex",
    "a\nb",
    "a\tb",
    "a\x1b[31mb",
    "-x",
    "--json",
    "a'b",
    'a"b',
    "%s",
    "{}",
    "~",
    "$HOME",
    "a\\b",
    "*.jsonl",
    ".hidden",
    "...",
    "\u2028",
)
INPUT_FILES = (
    "t.jsonl",
    "in.jsonl",
    "d.jsonl",
    "s.yaml",
    "m/config.json",
    "m/model.safetensors",
    "c.yaml",
    "run/batchgen/run.json",
    "old.jsonl",
    "m",
    "run",
    "ran",
    "run/batchgen",
    ".",
)


# Paths that are there already, or nowhere: one of them is given as it stands.
WORDS: dict[str, tuple[str, ...]] = {
    "below a file": ("t.jsonl/x", "folder/a/b/c", "t.jsonl/", "old.jsonl/x.jsonl"),
    "itself": INPUT_FILES,
    "device": ("/dev/null", "/dev/zero", "/dev/tty", "/dev/urandom"),
    "stdin": ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"),
    "descriptor": (
        *("/dev/fd/63", "/dev/fd/1", "/dev/stdout", "/dev/stderr", "/dev/fd/999999", "/dev/fd/x"),
    ),
    "closed folder": ("closed", "closed/x", "closed/none/x"),
    "read-only folder": ("still", "still/x", "still/none", "still/none/x"),
    "keep": ("keep", "keep/thesis.txt"),
    "model file": ("m/config.json", "m/new.jsonl", "m/new", "m/model.safetensors", "m"),
    "word": ("", ".", "..", "/", "//", "./.", "~", "none", "/nonexistent/x", "\u0007"),
    "proc": (
        *("/proc/self/mem", "/proc/self/environ", "/proc/self", "/proc/1/mem", "/sys", "/dev"),
    ),
}
ONE_WORD = {
    "folder": "folder",
    "below nothing": "nothing/at/all.jsonl",
    "bytes": "x\udcff\udc80.jsonl",
    "full": "/dev/full",
}
JSON = ("{}", "[]", "5", '"x"', "null", '{"a": {}}', "[[1]]", "{}\n{}\n")
LINKED = {
    "hard link": ("t.jsonl", "in.jsonl", "m/config.json", "d.jsonl", "s.yaml"),
    "link": ("t.jsonl", "in.jsonl", "m/config.json", "m", "d.jsonl"),
}
CLOSED = {"closed folder": {"closed": 0}, "read-only folder": {"still": 0o555}}
NAMES = ("x", "x.jsonl", "x.json", "x.yaml", "x.png", "x.jsonl.gz", "x.parquet", "x.csv")


def data_of(kind: str, rng: Random, trace: Path) -> bytes | None:
    """What a file of this kind holds; None: it is no file."""
    match kind:
        case "empty file":
            return b""
        case "binary":
            return rng.randbytes(rng.choice((1, 10, 5000)))
        case "gzip":
            return b"\x1f\x8b" + rng.randbytes(100)
        case "cut gzip":
            return gzip.compress(trace.read_bytes() * 50)[:60]
        case "json":
            return rng.choice(JSON).encode()
        case "long line":
            return b"x" * 200_000 + b"\n"
        case "nul":
            return b"\0" * 4096
        case "utf-16":
            return trace.read_text().encode("utf-16")
        case "old":
            return b"old\n"
        case "unreadable":
            return trace.read_bytes()
    return None


def make_folder(kind: str, at: Path) -> None:
    """The folder that paths of this kind lie in, if they do."""
    if kind in ("folder", "link to folder", "below a file"):
        (at / "folder").mkdir()
        (at / "folder" / "a").write_text("a\n")
    for name, mode in CLOSED.get(kind, {}).items():
        (at / name).mkdir()
        (at / name / "x").write_bytes((at / "t.jsonl").read_bytes())
        (at / name).chmod(mode)


def make_socket(at: Path, name: str) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        here = os.getcwd()
        os.chdir(at)  # the path of a socket has 107 bytes at most
        try:
            end.bind(name)
        finally:
            os.chdir(here)


def make_special(kind: str, path: Path, rng: Random) -> None:
    """What is no plain file, at a path."""
    match kind:
        case "link to folder":
            path.symlink_to("folder")
        case "broken link":
            path.symlink_to("nowhere")
        case "loop":
            path.symlink_to(path.name)
        case "link":
            path.symlink_to(rng.choice(LINKED[kind]))
        case "hard link":
            os.link(path.parent / rng.choice(LINKED[kind]), path)
        case "empty folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "socket":
            make_socket(path.parent, path.name)


def odd_path(kind: str, rng: Random, at: Path) -> str | None:
    """A path that is odd for its name alone."""
    match kind:
        case "long name":
            return "x" * rng.choice((200, 250, 255, 256, 300, 4000)) + rng.choice(("", ".jsonl"))
        case "long path":
            return "a/" * rng.choice((500, 2050, 3000)) + "x"
        case "odd name":
            name = rng.choice(ODD)
            if rng.random() < 0.5:
                (at / name).write_bytes((at / rng.choice(("t.jsonl", "in.jsonl"))).read_bytes())
            return name
    return None


def put(kind: str, rng: Random, place: Place) -> str:
    """Makes something of this kind; its path as an argument."""
    at = place.folder
    path = at / rng.choice(NAMES)
    make_folder(kind, at)
    if kind in ONE_WORD:
        return ONE_WORD[kind]
    if kind in WORDS:
        return rng.choice(WORDS[kind])
    odd = odd_path(kind, rng, at)
    if odd is not None:
        return odd
    data = data_of(kind, rng, at / "t.jsonl")
    if data is None:
        make_special(kind, path, rng)
    else:
        path.write_bytes(data)
    if kind == "unreadable":
        path.chmod(0)
    return path.name


def draw(rng: Random, place: Place) -> Case:
    """A command with one odd path, now and then by somebody who is not root."""
    kind = rng.choice(KINDS)
    path = put(kind, rng, place)
    is_output = rng.random() < 0.45
    argv = list(rng.choice(OUTPUTS if is_output else INPUTS))
    task: dict[str, object] = {}
    if kind in ("unreadable", "closed folder", "read-only folder") and os.geteuid() == 0:
        task["uid"] = 65534
        for one in (place.folder, place.folder / "tmp"):
            one.chmod(0o777)
    if is_output and argv[0] in FORCED and rng.random() < 0.5 and argv[:2] != ["trace", "x"]:
        argv.append("--force")
    if kind == "stdin" and rng.random() < 0.7:
        task["stdin"] = str(place.folder / rng.choice(("t.jsonl", "in.jsonl", "m/config.json")))
    if rng.random() < 0.03:
        task["closed"] = [0]
    words = tuple(path if word == "{}" else word for word in argv)
    outputs = ["o.jsonl", "o.png"]
    if is_output and kind in ("link to folder", "link"):
        outputs += ["folder", "m/batchgen"]
    if is_output:
        # Run directories may be made in any folder; nothing else of what is there may change.
        whole = path not in ("", ".", "m", "run", "ran")
        outputs.append(os.path.normpath(path if whole else f"{path}/batchgen"))
    return Case(argv=words, outputs=tuple(outputs), task=task)


def more(case: Case, ended: object, place: Place) -> list[str]:
    """What no output may ever do, whatever was asked for."""
    found = []
    for name, data in (("keep/thesis.txt", "years of work\n"),):
        if not (place.folder / name).exists() or (place.folder / name).read_text() != data:
            found.append(f"HARMED {name}")
    return found

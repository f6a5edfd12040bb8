"""Paths of every option: what lies there is no file, may not be touched, or has an odd name."""

from __future__ import annotations

import os
import socket
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


def put(kind: str, rng: Random, place: Place) -> str:
    """Makes something of this kind; its path as an argument."""
    at = place.folder
    name = rng.choice(
        ("x", "x.jsonl", "x.json", "x.yaml", "x.png", "x.jsonl.gz", "x.parquet", "x.csv")
    )
    path = at / name
    if kind in ("folder", "link to folder", "below a file"):
        (at / "folder").mkdir()
        (at / "folder" / "a").write_text("a\n")
    match kind:
        case "folder":
            return "folder"
        case "link to folder":
            path.symlink_to("folder")
        case "empty folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as end:
                here = os.getcwd()
                os.chdir(at)  # the path of a socket has 107 bytes at most
                try:
                    end.bind(name)
                finally:
                    os.chdir(here)
        case "broken link":
            path.symlink_to("nowhere")
        case "loop":
            path.symlink_to(name)
        case "empty file":
            path.write_bytes(b"")
        case "binary":
            path.write_bytes(rng.randbytes(rng.choice((1, 10, 5000))))
        case "gzip":
            path.write_bytes(b"\x1f\x8b" + rng.randbytes(100))
        case "cut gzip":
            import gzip

            path.write_bytes(gzip.compress((at / "t.jsonl").read_bytes() * 50)[:60])
        case "json":
            path.write_text(
                rng.choice(("{}", "[]", "5", '"x"', "null", '{"a": {}}', "[[1]]", "{}\n{}\n"))
            )
        case "long line":
            path.write_text("x" * 200_000 + "\n")
        case "nul":
            path.write_bytes(b"\0" * 4096)
        case "utf-16":
            path.write_text((at / "t.jsonl").read_text(), encoding="utf-16")
        case "old":
            path.write_text("old\n")
        case "none":
            pass
        case "below a file":
            return rng.choice(("t.jsonl/x", "folder/a/b/c", "t.jsonl/", "old.jsonl/x.jsonl"))
        case "below nothing":
            return "nothing/at/all.jsonl"
        case "long name":
            return "x" * rng.choice((200, 250, 255, 256, 300, 4000)) + rng.choice(("", ".jsonl"))
        case "long path":
            return "a/" * rng.choice((500, 2050, 3000)) + "x"
        case "odd name":
            name = rng.choice(ODD)
            if rng.random() < 0.5:
                (at / name).write_bytes((at / rng.choice(("t.jsonl", "in.jsonl"))).read_bytes())
            return name
        case "bytes":
            return "x\udcff\udc80.jsonl"
        case "itself":
            return rng.choice(INPUT_FILES)
        case "device":
            return rng.choice(("/dev/null", "/dev/zero", "/dev/tty", "/dev/urandom"))
        case "full":
            return "/dev/full"
        case "stdin":
            return rng.choice(("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"))
        case "descriptor":
            return rng.choice(
                (
                    "/dev/fd/63",
                    "/dev/fd/1",
                    "/dev/stdout",
                    "/dev/stderr",
                    "/dev/fd/999999",
                    "/dev/fd/x",
                )
            )
        case "unreadable":
            path.write_bytes((at / "t.jsonl").read_bytes())
            path.chmod(0)
        case "closed folder":
            (at / "closed").mkdir()
            (at / "closed" / "x").write_bytes((at / "t.jsonl").read_bytes())
            (at / "closed").chmod(0)
            return rng.choice(("closed", "closed/x", "closed/none/x"))
        case "read-only folder":
            (at / "still").mkdir()
            (at / "still" / "x").write_bytes((at / "t.jsonl").read_bytes())
            (at / "still").chmod(0o555)
            return rng.choice(("still", "still/x", "still/none", "still/none/x"))
        case "keep":
            return rng.choice(("keep", "keep/thesis.txt"))
        case "model file":
            return rng.choice(("m/config.json", "m/new.jsonl", "m/new", "m/model.safetensors", "m"))
        case "hard link":
            os.link(
                at / rng.choice(("t.jsonl", "in.jsonl", "m/config.json", "d.jsonl", "s.yaml")), path
            )
        case "link":
            path.symlink_to(rng.choice(("t.jsonl", "in.jsonl", "m/config.json", "m", "d.jsonl")))
        case "word":
            return rng.choice(
                ("", ".", "..", "/", "//", "./.", "~", "none", "/nonexistent/x", "\u0007")
            )
        case "proc":
            return rng.choice(
                (
                    "/proc/self/mem",
                    "/proc/self/environ",
                    "/proc/self",
                    "/proc/1/mem",
                    "/sys",
                    "/dev",
                )
            )
    return name


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

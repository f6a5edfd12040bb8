"""Writes the tables of README and docs/*.md that follow from the code or from results of GPUs:
presets, parts, modules, what was measured, predicted and searched. No prose.

python docs/make_tables.py            rewrite them in place
python docs/make_tables.py --check    exit code 1 when a file would change
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import gpu_tables
import plan_tables

from batchgen.catalog.systems import system_names
from batchgen.policy.base import SLOTS
from batchgen.policy.options import range_of
from batchgen.policy.presets import PARTS, PRESETS, find_preset, part_class

ROOT = Path(__file__).resolve().parents[1]
SIZES = {
    "page": ("page_tokens", "tokens"),
    "boundary": ("boundary", "passes"),
    "prefix cache": ("prefix_cache", ""),
}


def presets() -> str:
    """Preset x part, with the options that a preset sets and its sizes."""
    names = list(PRESETS)
    lines = [
        f"| part | {' | '.join(f'`{name}`' for name in names)} |",
        f"|{' --- |' * (len(names) + 1)}",
    ]
    for slot in SLOTS:
        cells = []
        for preset in PRESETS.values():
            options = ", ".join(f"{k}={v}" for k, v in preset.options.get(slot, {}).items())
            cells.append(preset.parts[slot] + (f" ({options})" if options else ""))
        lines.append(f"| {slot} | {' | '.join(cells)} |")
    for label, (field, unit) in SIZES.items():
        values = [getattr(preset, field) for preset in PRESETS.values()]
        texts = [{True: "yes", False: "no"}[v] if isinstance(v, bool) else str(v) for v in values]
        lines.append(f"| {label}{f' ({unit})' if unit else ''} | {' | '.join(texts)} |")
    lines.append(f"| source | {' | '.join(preset.source for preset in PRESETS.values())} |")
    return "\n".join(lines)


def parts() -> str:
    """Every part with what it does and its options."""
    lines = [
        "| slot | part | what it does | options, defaults, ranges |",
        "| --- | --- | --- | --- |",
    ]
    for slot in SLOTS:
        for name in PARTS[slot]:
            found = part_class(slot, name)
            text = re.split(r"\n\n", inspect.cleandoc(found.__doc__ or ""))[0].replace("\n", " ")
            options = [
                f"`{f.name}={f.default}` {range_of(f)}".rstrip()
                for f in dataclasses.fields(found.Config)
            ]
            lines.append(f"| {slot} | `{name}` | {text} | {', '.join(options)} |")
    return "\n".join(lines)


def ablations() -> str:
    """Systems of the catalog that are `batchgen` but for one thing, and that as `--set`."""
    lines = [
        "| system | what is taken away | as `--set` beside `batchgen` |",
        "| --- | --- | --- |",
    ]
    for name in system_names():
        if name.startswith(("batchgen-no-", "batchgen-in-")):
            found = find_preset(name)
            pairs = [
                f"{slot}.part={part}"
                for slot, part in found.parts.items()
                if part != PRESETS["batchgen"].parts[slot]
            ]
            for slot, options in (*found.options.items(), ("plan", found.plan)):
                pairs += [f"{slot}.{key}={value}".lower() for key, value in options.items()]
            text = found.source.removeprefix("batchgen without ")
            lines.append(f"| `{name}` | {text} | `{' '.join(pairs)}` |")
    return "\n".join(lines)


def modules() -> str:
    """Every module with the first sentence of its docstring, by folder."""
    lines = []
    folders = [ROOT / "batchgen", *sorted(p for p in (ROOT / "batchgen").iterdir() if p.is_dir())]
    folders = [f for f in folders if not f.is_symlink()] + [ROOT / "sim", ROOT / "exec"]
    nested = [p for f in folders[1:] for p in sorted(f.iterdir()) if p.is_dir()]
    for folder in sorted({*folders, *nested}, key=lambda f: _dotted(f)):
        files = [p for p in sorted(folder.glob("*.py")) if not p.name.startswith("__")]
        if not files:
            continue
        shown = folder.relative_to(ROOT)
        lines += ["", f"**{shown}/** (`{_dotted(folder)}`)", ""]
        lines += [f"- `{path.stem}`: {_first_sentence(path)}" for path in files]
    return "\n".join(lines).strip()


def _dotted(folder: Path) -> str:
    parts = folder.relative_to(ROOT).parts
    return ".".join(parts if parts[0] == "batchgen" else ("batchgen", *parts))


def _first_sentence(path: Path) -> str:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(doc.split("\n\n")[0].split())
    return re.split(r"(?<=[.!?]) (?=[A-Z])", paragraph)[0]


TABLES = {
    "docs/writing-a-policy-part.md": {"presets": presets, "parts": parts},
    "docs/architecture.md": {"modules": modules},
    "docs/stragglers.md": {"ablation systems": ablations},
    **gpu_tables.marks(),
    **plan_tables.marks(),
}


def rendered(name: str) -> str:
    """The text of a file with its tables as the code has them now."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for mark, make in TABLES[name].items():
        pattern = rf"(<!-- {mark}: .*?-->\n).*?(<!-- /{mark} -->)"
        table = make()
        text, found = re.subn(
            pattern, lambda m, t=table: f"{m[1]}\n{t}\n\n{m[2]}", text, flags=re.DOTALL
        )
        if found != 1:
            raise SystemExit(f"{name} has {found} pairs of '{mark}' marks, not one")
    return text


def main() -> int:
    changed = [n for n in TABLES if rendered(n) != (ROOT / n).read_text(encoding="utf-8")]
    if "--check" in sys.argv[1:]:
        for name in changed:
            print(f"{name} is not what the code says; run: python docs/make_tables.py")
        return 1 if changed else 0
    for name in changed:
        (ROOT / name).write_text(rendered(name), encoding="utf-8")
        print(f"wrote {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

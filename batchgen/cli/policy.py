"""`batchgen policy`: what presets and parts there are, and whether parts keep their word.

check  random loads of a part of one's own, in every preset and beside every other part: coalesced
       steps against the reference mode, purity, determinism, the end of every row.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, Any

import typer

from batchgen.cli.common import parse_overrides, say, users_code
from batchgen.errors import UserError
from batchgen.oneline import escaped, named, one_line

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)

CASES = 150


@app.callback()
def _before_any() -> None:
    """List policies and their parts; check parts of one's own."""


@app.command(name="list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Presets and parts, installed ones too, one line each."""
    with users_code():
        presets, parts = list(_presets()), list(_parts())
    if as_json:
        document = {"schema": 1, "presets": presets, "parts": parts}
        print(json.dumps(document, default=one_line))
        return 0
    for preset in presets:
        print(escaped(f"{preset['name']:<28} {preset['source'] or preset['error']}"))
    for part in parts:
        options = ", ".join(f"{k}={one_line(v)}" for k, v in part["options"].items())
        text = part["what"] or part["error"]
        more = f" Options: {options}." if options else ""
        print(escaped(f"{part['name']:<28} {text}{more}"))
    return 0


def _presets() -> Iterator[dict[str, Any]]:
    from batchgen.policy.presets import find_preset, preset_names

    for name in preset_names():
        found: dict[str, Any] = {"name": name, "parts": {}, "source": "", "error": ""}
        try:
            preset = find_preset(name)
            found |= {"parts": dict(preset.parts), "source": preset.source}
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # of a package that is not ours
            found["error"] = f"cannot be loaded: {named(error)}"
        yield found


def _parts() -> Iterator[dict[str, Any]]:
    from batchgen.policy.base import SLOTS
    from batchgen.policy.presets import PARTS, installed, part_class

    names = [f"{slot}.{part}" for slot in SLOTS for part in PARTS[slot]]
    names += sorted(set(installed("batchgen.parts")) - set(names))
    for name in names:
        slot, _, part = name.partition(".")
        found: dict[str, Any] = {"name": name, "what": "", "options": {}, "error": ""}
        try:
            cls = part_class(slot, part)
            found |= {
                "what": " ".join((cls.__doc__ or "").split("\n\n")[0].split()),
                "options": {field.name: field.default for field in dataclasses.fields(cls.Config)},
                "changes": cls.changes,
                "needs": sorted(cls.needs),
            }
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            found["error"] = f"cannot be loaded: {named(error)}"
        yield found


@app.command()
def check(
    target: Annotated[
        str,
        typer.Argument(
            help="A module or a .py file, either with :Class; a part 'slot.name'; or a preset."
        ),
    ],
    num_cases: Annotated[
        int, typer.Option("--cases", min=1, help="Random loads for each part.")
    ] = CASES,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the loads.")] = 0,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SLOT.OPTION=VALUE", help="Options of the part."),
    ] = None,
    case: Annotated[
        str | None, typer.Option(help="One case as JSON, as a finding prints it, instead.")
    ] = None,
    timeout_s: Annotated[
        int, typer.Option(min=1, max=86_400, help="Seconds that one run of a load may take.")
    ] = 30,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Run parts against the reference mode, on random loads; exit code 1 when one is found out."""
    from batchgen.check.again import MOST_CASES, Target, disagreements
    from batchgen.check.subjects import find
    from batchgen.check.sweep import Finding, cases, guarded, one_case, sweep

    settings = parse_overrides(overrides or ())
    with users_code():
        subjects = find(target, settings, timeout_s)
    chosen = _case(case) if case is not None else None
    findings: dict[str, Finding | None] = {}
    for subject in subjects:
        say(f"{subject.label}: {'one case' if chosen else f'{num_cases} cases, seed {seed}'}")
        with users_code():
            findings[subject.label] = guarded(
                subject,
                partial(one_case, subject, chosen)
                if chosen
                else partial(sweep, subject, num_cases, seed),
            )
    honest = [subject for subject in subjects if findings[subject.label] is None]
    if honest:
        say("the same in two other processes")
        few = min(num_cases, MOST_CASES)
        loads = {one.label: [chosen] if chosen else list(cases(one, few, seed)) for one in honest}
        same = Target(text=target, settings=settings, limit_s=timeout_s)
        with users_code():
            findings |= disagreements(honest, same, loads)
    documents = [_document(label, finding) for label, finding in findings.items()]
    if as_json:
        head = {"schema": 1, "target": target, "cases": num_cases, "seed": seed}
        print(json.dumps({**head, "parts": documents}))
    else:
        for document in documents:
            for line in _lines(document, 1 if chosen else num_cases, seed):
                print(escaped(line))
    return 1 if any(findings.values()) else 0


def _case(text: str) -> Any:
    import msgspec

    from batchgen.check.case import Case

    remedy = "give one as 'check' prints it"
    try:
        found = msgspec.json.decode(text, type=Case)
    except msgspec.DecodeError as error:
        raise UserError(f"--case is no case ({error})", remedy=remedy) from None
    if not found.rows:
        raise UserError("--case has no rows", remedy=remedy)
    try:
        found.runtime()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--case cannot be set up ({named(error)})", remedy=remedy) from None
    return found


def _document(label: str, finding: Any) -> dict[str, Any]:
    from batchgen.check.sweep import brief

    if finding is None:
        return {"part": label, "ok": True, "finding": None}
    case = brief(finding.case) if finding.case is not None else None
    found = {
        "property": finding.kind,
        "slot": finding.slot,
        "what": finding.text,
        "likely": finding.remedy,
        "case": case,
        "case_number": finding.number,
    }
    return {"part": label, "ok": False, "finding": found}


def _lines(document: dict[str, Any], num_cases: int, seed: int) -> Sequence[str]:
    label, finding = document["part"], document["finding"]
    if finding is None:
        return [f"{label}: ok ({num_cases} cases, seed {seed})"]
    where = f" (case {finding['case_number']}, seed {seed})" if finding["case_number"] else ""
    slot = (
        f", {finding['slot']}" if finding["slot"] and not label.startswith(finding["slot"]) else ""
    )
    lines = [
        f"{label}: FAILED {finding['property']}{slot}{where}: {finding['what']}",
        f"  likely: {finding['likely']}",
    ]
    if finding["case"] is not None:
        lines.append(f"  smallest case, for --case: {json.dumps(finding['case'])}")
    return lines

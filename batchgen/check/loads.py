"""Random cases over all compositions of parts, and what is simpler than a case. It runs nothing."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from functools import cache

from batchgen.check.case import Case, Row
from batchgen.memory.pool import pages_for
from batchgen.policy.presets import PARTS, PRESETS

NAMES = tuple(PRESETS)
BASES = ("static", "orca", "vllm", "batchgen")
"""Presets in which any two slots are swapped; the others differ from these in few parts."""
Composition = tuple[str, dict[str, str]]
"""A preset and its overrides, "slot.option" -> text."""
LARGE_HOST = 10_000
SPAN_PS = 1_500_000
"""About as long as a small case takes."""
TROUBLES = ("slow", "lost", "back", "notice", "cancel", "row_failed", "pool_short", "plan")


def swaps() -> list[Composition]:
    """Every preset with every single slot swapped for every part (and as it is)."""
    found: list[Composition] = []
    for name in NAMES:
        found.append((name, {}))
        for slot, parts in PARTS.items():
            found += [
                (name, {f"{slot}.part": part})
                for part in parts
                if PRESETS[name].parts[slot] != part and part != "oracle"
            ]
    return found


def pairs() -> list[Composition]:
    """Every base with two slots swapped, for every two parts that it has not; each once."""
    found: dict[tuple[str, ...], Composition] = {}
    for name in BASES:
        own = PRESETS[name].parts
        for one, two in itertools.combinations(PARTS, 2):
            for part, other in itertools.product(PARTS[one], PARTS[two]):
                if part == own[one] or other == own[two] or "oracle" in (part, other):
                    continue
                overrides = {f"{one}.part": part, f"{two}.part": other}
                found.setdefault(tuple(parts_of((name, overrides)).values()), (name, overrides))
    return list(found.values())


def parts_of(composition: Composition) -> dict[str, str]:
    """The part of every slot."""
    name, overrides = composition
    return {slot: overrides.get(f"{slot}.part", PRESETS[name].parts[slot]) for slot in PARTS}


@cache
def products() -> list[Composition]:
    """Every composition of all parts of all slots. The oracle is the ranker without error."""
    choices = [[part for part in parts if part != "oracle"] for parts in PARTS.values()]
    return [
        ("vllm", {f"{slot}.part": part for slot, part in zip(PARTS, choice, strict=True)})
        for choice in itertools.product(*choices)
    ]


def random_case(
    rng: random.Random,
    composition: Composition,
    *,
    kinds: tuple[str, ...] = TROUBLES,
    most_rows: int = 24,
) -> Case:
    """A case of a composition: arrivals, troubles, roles, stages, prefixes, scarce memory."""
    preset, overrides = composition
    overrides = dict(overrides)
    if overrides.get("order.part") == "by-prompt":
        overrides["order.threshold_tokens"] = str(rng.choice((4, 16)))
        overrides["order.long_share"] = str(rng.choice((0.3, 0.5, 0.8)))
    late = rng.random() < 0.5
    staged_rows = rng.random() < 0.3
    longest = rng.choice((8, 40, 60))
    grain = rng.choice((1, 1, 100_000, 400_000))  # arrivals and troubles at the same instants
    rows = tuple(
        _random_row(rng, longest, late, staged_rows, grain)
        for _ in range(rng.randint(1, most_rows))
    )
    roles = rng.choice(
        [("both",)] * 2
        + [("both",) * 2, ("both",) * 3]
        + [("prefill", "decode"), ("prefill", "prefill", "decode", "decode")]
    )
    page = rng.choice((1, 2, 4, 8))
    hbm = rng.randint(4, 60) * max(1, 8 // page)
    devices = rng.choice((1, 1, 2))
    troubles = tuple(
        (rng.choice(kinds), _time(rng, grain), rng.randint(0, 63), rng.randint(0, 63))
        for _ in range(rng.randint(0, 4) if kinds and rng.random() < 0.6 else 0)
    )
    return Case(
        preset=preset,
        overrides=overrides,
        rows=rows,
        engines=len(roles),
        roles=roles,
        ranks=rng.choice((1, 1, 2, 3)),
        devices=devices,
        engines_per_node=rng.choice((1, 2)),
        hbm_pages=hbm,
        host_pages=rng.choice((0, hbm // 2, LARGE_HOST)),
        page=page,
        boundary=rng.choice((2, 5, 16)),
        budget=rng.choice((4, 16, 64, 200)),
        seqs=rng.choice((2, 8, 64)),
        depth=rng.choice((1, 2)),
        prefix=rng.random() < 0.3,
        advised=rng.random() < 0.7,
        troubles=troubles,
        copy_ps=rng.choice((10, 170, 3000)),
        bad_copies=rng.choice((0, 0, 4)),
    )


def _time(rng: random.Random, grain: int) -> int:
    return rng.randint(0, SPAN_PS) // grain * grain


def _random_row(rng: random.Random, longest: int, late: bool, staged_rows: bool, grain: int) -> Row:
    prompt, budget = rng.randint(1, longest), rng.randint(1, longest)
    group = rng.randint(-1, 2)
    stages: tuple[tuple[int, int, int], ...] = ()
    if staged_rows and rng.random() < 0.5:
        stages = tuple(
            (rng.randint(1, 12), rng.randint(1, 12), rng.choice((0, 0, 1, 30_000, 400_000)))
            for _ in range(rng.randint(1, 2))
        )
    return Row(
        prompt=prompt,
        budget=budget,
        output=rng.randint(1, budget),
        arrival=rng.choice((0, _time(rng, grain))) if late else 0,
        group=group,
        shared=rng.randint(0, prompt) if group >= 0 else 0,
        stages=stages,
    )


def longer(case: Case, times: int) -> Case:
    """The case with prompts, pages and pass budgets so many times as large: loads of real size, for
    parts with thresholds in tokens. Outputs stay short, because every token is a pass."""
    rows = tuple(
        replace(
            row,
            prompt=row.prompt * times,
            shared=row.shared * times,
            stages=tuple((tokens * times, output, wait) for tokens, output, wait in row.stages),
        )
        for row in case.rows
    )
    return replace(case, rows=rows, page=case.page * times, budget=case.budget * times)


def scarcer(case: Case, share: float) -> Case:
    """The case with pools for that share of what its rows need together, but for any one alone."""
    needs = [
        pages_for(row.prompt + row.budget + sum(a + b for a, b, _ in row.stages), case.page)
        for row in case.rows
    ]
    return replace(case, hbm_pages=max(4, max(needs) + 2, int(share * sum(needs))))


def in_bursts(case: Case, rng: random.Random) -> Case:
    """The case on a few engines that take all first rows at once, and later rows that come together
    while those run: an answer that depends on what ended meanwhile depends on when that is told."""
    engines, seats = rng.randint(1, 3), rng.randint(1, 3)
    times = [rng.randint(SPAN_PS // 20, SPAN_PS // 3) for _ in range(rng.randint(1, 3))]
    rows = []
    for number, row in enumerate(case.rows):
        output = rng.randint(2, 40)
        arrival = 0 if number < engines * seats else rng.choice(times)
        more = rng.choice((0, rng.randint(0, 40)))
        rows.append(replace(row, budget=output + more, output=output, arrival=arrival, stages=()))
    return replace(
        case,
        rows=tuple(rows),
        engines=engines,
        roles=("both",) * engines,
        ranks=1,
        seqs=seats,
        budget=200,
        prefix=False,
    )


def simpler(case: Case) -> list[Case]:
    """Cases that are a little smaller, for finding the smallest that fails."""
    several = range(len(case.rows)) if len(case.rows) > 1 else ()
    found = [replace(case, rows=case.rows[:at] + case.rows[at + 1 :]) for at in several]
    for index in range(len(case.troubles)):
        troubles = case.troubles[:index] + case.troubles[index + 1 :]
        found.append(replace(case, troubles=troubles))
    if case.bad_copies:
        found.append(replace(case, bad_copies=0))
    if case.stream_ps:
        found.append(replace(case, stream_ps=0))
    if case.prefix:
        found.append(replace(case, prefix=False))
    if case.depth == 2:
        found.append(replace(case, depth=1))
    if case.advised:
        found.append(replace(case, advised=False))
    if case.ranks > 1:
        found.append(replace(case, ranks=case.ranks - 1))
    if case.engines > 1 and not (case.roles and case.roles[0] != "both"):
        engines = case.engines - 1
        found.append(replace(case, engines=engines, roles=("both",) * engines))
    if case.engines > 2 and case.roles and case.roles[0] != "both":
        found.append(replace(case, engines=2, roles=("prefill", "decode")))
    if case.devices > 1:
        found.append(replace(case, devices=1))
    for name, least in (("host_pages", 0), ("seqs", 64), ("budget", 64), ("boundary", 16)):
        if getattr(case, name) != least:
            found.append(replace(case, **{name: least}))  # type: ignore[arg-type]
    if any(row.arrival for row in case.rows):
        found.append(replace(case, rows=tuple(replace(row, arrival=0) for row in case.rows)))
    if any(row.group >= 0 for row in case.rows):
        plain_rows = tuple(replace(row, group=-1, shared=0) for row in case.rows)
        found.append(replace(case, rows=plain_rows))
    for index, row in enumerate(case.rows):
        if row.stages:
            plain = replace(row, stages=())
            found.append(replace(case, rows=(*case.rows[:index], plain, *case.rows[index + 1 :])))
    return found

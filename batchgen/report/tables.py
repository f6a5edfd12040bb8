"""The table of one or several runs and the lines that say why they differ. Reads summaries only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from batchgen.report import text
from batchgen.report.metrics import names
from batchgen.report.tail import CAUSES, column, tail_line

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

Summary = Mapping[str, Any]
Format = Callable[[Any], str]

# (label, key, format, which end is better: "low", "high" or ""); None starts a new section.
ROWS: tuple[tuple[str, str, Format, str] | None, ...] = (
    ("layout", "layout", str, ""),
    ("next best layout", "runner_up", str, ""),
    ("next best layout takes", "runner_up_s", str, ""),
    ("batch completion time", "bct_s", text.duration, "low"),
    ("known error", "known_error", str, ""),
    ("against the fastest", "slowdown", text.ratio, ""),
    ("rows failed", "failures", str, ""),
    ("without device trouble", "without_faults_bct_s", text.duration, ""),
    ("without it until 99 % are done", "without_faults_done99_s", text.duration, ""),
    ("without it the last 10 % take", "without_faults_tail10_s", text.duration, ""),
    None,
    ("at least: longest row alone", "longest_row_bound_s", text.duration, ""),
    ("at least: work / capacity", "work_bound_s", text.duration, ""),
    ("same passes, perfectly balanced", "balance_bound_s", text.duration, ""),
    None,
    ("output tokens/s", "output_tokens_per_s", text.count, "high"),
    ("prompt + output tokens/s", "total_tokens_per_s", text.count, "high"),
    ("GPU-hours", "gpu_hours", text.count, "low"),
    ("cost", "cost_usd", text.dollars, "low"),
    None,
    ("time in decode passes", "decode_s", text.duration, ""),
    ("time in mixed passes", "mixed_s", text.duration, ""),
    ("time in prefill passes", "prefill_s", text.duration, ""),
    ("idle", "idle_s", text.duration, "low"),
    ("GPU busy", "busy_fraction", text.percent, "high"),
    ("until 99 % are done", "done99_s", text.duration, "low"),
    ("predicted lengths, Kendall's tau-b", "predictor_tau", text.rank, ""),
    ("last 10 % of the rows take", "tail10_s", text.duration, "low"),
    *((f"  of it {name}", column(cause), text.duration, "") for cause, name in CAUSES.items()),
    ("rows per decoding pass", "mean_decode_batch", text.count, "high"),
    ("running sequences, mean", "mean_running", text.count, ""),
    ("MFU", "mfu", text.percent, "high"),
    ("MBU", "mbu", text.percent, "high"),
    None,
    ("KV pages leased, peak", "kv_peak_fraction", text.percent, ""),
    ("KV pages leased, mean", "kv_mean_fraction", text.percent, ""),
    ("preemptions", "preemptions", text.count, "low"),
    ("recomputed tokens", "recomputed_tokens", text.count, "low"),
    ("tokens from shared prefixes", "adopted_tokens", text.count, "high"),
    ("suspensions", "suspensions", text.count, ""),
    ("migrations", "migrations", text.count, ""),
    None,
    ("rows finished", "finished_rows", text.count, ""),
    ("faults", "faults", text.count, ""),
    ("passes", "passes", text.count, ""),
    ("steps", "steps", text.count, ""),
    ("this run took", "wall_s", text.duration, ""),
)
HIDDEN_WHEN_ZERO = frozenset(
    {"faults", "mixed_s", "prefill_s", "migrations", "adopted_tokens", *map(column, CAUSES)}
)
SPLIT = ("decode", "mixed", "prefill", "idle")


def labels(summaries: Sequence[Summary]) -> list[str]:
    """Names of the runs, all different."""
    return names(
        [str(s["policy"]) for s in summaries], [str(s.get("overrides", "")) for s in summaries]
    )


def comparison_table(summaries: Sequence[Summary]) -> Table:
    """One column per run, one line per metric; the better value of several is marked.

    A metric that no run knows is left out.
    """
    from rich.table import Table

    well = [ended_well(s) for s in summaries]
    best = fastest(summaries)
    table = Table(
        title=title(summaries), title_justify="left", title_style="bold", header_style="bold"
    )
    table.add_column("")
    for label in labels(summaries):
        table.add_column(label, justify="right", no_wrap=True)
    for row in ROWS:
        if row is None:
            table.add_section()
            continue
        label, key, form, better = row
        values = [cell_value(s, key, None if best is None else summaries[best]) for s in summaries]
        known = [v for v in values if v is not None and v != ""]
        if not known or (key in HIDDEN_WHEN_ZERO and not any(known)):
            continue
        if key == "slowdown" and len(summaries) == 1:
            continue
        if key == "layout" and len(set(known)) == 1:
            continue  # the title has it
        table.add_row(label, *_cells(values, form, better, well, alarm=key == "failures"))
    return table


def ended_well(summary: Summary) -> bool:
    """Whether the rows of a run have all ended, none by a failure: others are not compared."""
    return not summary["failed_rows"] and summary["finished_rows"] == summary["rows"]


def fastest(summaries: Sequence[Summary]) -> int | None:
    """The fastest of the runs whose rows all ended well, by number; None: there is none."""
    well = [i for i, one in enumerate(summaries) if ended_well(one)]
    return min(well, key=lambda i: float(summaries[i]["bct_s"]), default=None)


def cell_value(summary: Summary, key: str, best: Summary | None) -> Any:
    """What a cell shows: a metric, or what follows from some."""
    if key == "slowdown":
        if best is None or not best["bct_s"] or not ended_well(summary):
            return None
        return float(summary["bct_s"]) / float(best["bct_s"])
    if key == "failures":
        return failures(summary)
    if key == "known_error":
        return text.residual(summary.get("residual"))
    if key in ("runner_up", "runner_up_s"):
        second = (summary.get("layout_search") or {}).get("runner_up")
        if not second:
            return None
        if key == "runner_up":
            options = (f"{key}={value}" for key, value in second.get("options", {}).items())
            return " ".join([second["layout"], *options])
        return f"{text.duration(float(second['seconds']))} ({second['how']})"
    return summary.get(key)


def failures(summary: Summary) -> str:
    """How many rows did not end well, by code; "" if all did."""
    by_code = summary.get("failed_by_code") or {}
    lost = int(summary["rows"]) - int(summary["finished_rows"])
    if not lost:
        return ""
    codes = ", ".join(f"{count:,} {code}" for code, count in by_code.items())
    return f"{lost:,} of {int(summary['rows']):,}" + f" ({codes})" * bool(codes)


def _cells(
    values: Sequence[Any], form: Format, better: str, well: Sequence[bool], *, alarm: bool
) -> list[str]:
    """The better value is marked among the runs whose rows all ended well."""
    known = [v for v, good in zip(values, well, strict=True) if v is not None and good]
    mark = None
    if better and len(values) > 1 and len(set(known)) > 1:
        mark = min(known) if better == "low" else max(known)
    cells = []
    for value, good in zip(values, well, strict=True):
        cell = "-" if value is None else form(value)
        if alarm and value:
            cell = f"[bold red]{cell}[/]"
        elif mark is not None and value == mark and good:
            cell = f"[bold green]{cell}[/]"
        cells.append(cell)
    return cells


def title(summaries: Sequence[Summary]) -> str:
    """Model, machine and layout; 'several' where the runs differ."""

    def one(key: str) -> str:
        found = list(dict.fromkeys(str(s[key]) for s in summaries))
        return found[0] if len(found) == 1 else "several"

    return (
        f"{one('model')} on {one('num_gpus')} x {one('gpu')}, layout {one('layout')}, "
        f"{int(summaries[0]['rows']):,} rows ({one('backend')})" + _changed(summaries)
    )


def _changed(summaries: Sequence[Summary]) -> str:
    """What `--set` changed in all of the runs."""
    found = {str(s.get("overrides", "")) for s in summaries}
    return f", with {found.pop()}" if len(found) == 1 and found != {""} else ""


def why_lines(summaries: Sequence[Summary]) -> list[str]:
    """One line per run: where its time went; for all but the fastest also the gap, taken apart. A
    run with failed rows is nobody's measure and is measured by nobody.

    The times are means over GPUs and add up to BCT, so the differences add up to the gap exactly.
    """
    names = labels(summaries)
    best = fastest(summaries)
    lines = []
    for i, run in enumerate(summaries):
        bct = float(run["bct_s"])
        if not bct:
            lines.append(f"{names[i]}: nothing ran")
            continue
        shares = [
            f"{100 * run[f'{k}_s'] / bct:.0f} % {k}" for k in SPLIT if run[f"{k}_s"] >= 5e-3 * bct
        ]
        line = f"{names[i]}: {', '.join(shares)}"
        if run["mean_decode_batch"] is not None:
            line += f"; {text.count(float(run['mean_decode_batch']))} rows per decoding pass"
        line += f"; last 10 % of the rows take {100 * run['tail10_s'] / bct:.0f} % of the time"
        if told := tail_line(run):
            line += f": {told}"
        for kind in ("prompts", "decodes"):
            waited = float(run.get(f"barrier_{kind}_s") or 0.0)
            if waited >= 0.02 * bct:
                share = f"{100 * waited / bct:.0f} % of the time"
                line += f"; ranks wait {share} for {kind} of other ranks"
        healthy = run.get("without_faults_bct_s")
        if healthy is not None:
            cost = bct - healthy
            line += f"; device trouble costs {text.duration(cost)}, {100 * cost / bct:.0f} % of it"
        if not ended_well(run):
            line += f"; not compared, for rows failed: {failures(run)}"
        elif best is not None and i != best:
            line += "; " + _gap(run, summaries[best], names[best])
        lines.append(line)
    guessed = sorted({str(run.get("guessed_kernels", "")) for run in summaries} - {""})
    told = "not measured on this GPU, guessed by its peaks from others"
    lines += [f"{told}: {kernels}" for kernels in guessed]
    known = [text.cut_line(run) for run in summaries]
    known += [text.residual_line(run.get("residual")) for run in summaries]
    return lines + [line for line in dict.fromkeys(known) if line is not None]


def _gap(run: Summary, best: Summary, best_name: str) -> str:
    parts = [(float(run[f"{k}_s"]) - float(best[f"{k}_s"]), k) for k in SPLIT]
    total = float(run["bct_s"]) - float(best["bct_s"])
    if total <= 0:
        return f"as fast as {best_name}"
    # Parts under 2 % of the gap explain nothing.
    shown = sorted((p for p in parts if abs(p[0]) >= 0.02 * total), key=lambda p: -abs(p[0]))
    terms = ", ".join(f"{'+' if d > 0 else ''}{text.duration(d)} {k}" for d, k in shown)
    gap = f"{text.duration(total)} behind {best_name}"
    return f"{gap} = {terms}" if terms else gap


def report(summaries: Sequence[Summary]) -> Group:
    """The table with its 'why' lines, for a rich console."""
    from rich.console import Group
    from rich.text import Text

    why = [Text(f"- {line}") for line in why_lines(summaries)]
    return Group(comparison_table(summaries), Text("Why", style="bold"), *why)

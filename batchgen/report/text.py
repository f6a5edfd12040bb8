"""Numbers as text for tables and progress lines. Nothing here is read back by a program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def duration(seconds: float | None) -> str:
    """Two units at most: '2 d 3 h', '1 h 05 min', '3 min 20 s', '12.3 s', '4.5 ms'."""
    if seconds is None:
        return "-"
    if seconds < 0:
        return "-" + duration(-seconds)
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms" if seconds else "0 s"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def count(value: float | None) -> str:
    """Thousands separated; one decimal below 100 unless whole."""
    if value is None:
        return "-"
    if isinstance(value, int) or value >= 100:
        return f"{value:,.0f}"
    return f"{value:,.1f}"


def percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f} %"


def dollars(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f} $"


def ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def rank(tau: float | None) -> str:
    return "-" if tau is None else f"{tau:.3f}"


def residual(known: Mapping[str, Any] | None) -> str | None:
    """'± 10 % (bench engines, 90th)': an error as it was measured, with its source; of a profile at
    least how steady its machine was; None: the run is itself a measurement."""
    if known is None:
        return None
    if known.get("p90") is None:
        steady = spread(known.get("least"), known.get("most"))
        return f"{steady} (machine's speed)" if steady else "none measured"
    return f"± {100 * known['p90']:.0f} % ({known['source']}, 90th)"


def residual_line(known: Mapping[str, Any] | None) -> str | None:
    """The same in full: of what, how many points, which file."""
    if known is None:
        return None
    steady = spread(known.get("least"), known.get("most"))
    more = f"; a small job took {steady} of its median while the profile was made" if steady else ""
    if known.get("p90") is None:
        return f"known error: {known['what']}{more}"
    return (
        f"known error: of {known['what']}; median {100 * known['median']:.1f} %, 90th percentile "
        f"{100 * known['p90']:.1f} % of {known['count']:,} points ({known['source']}, "
        f"{known['result']}){more}"
    )


def spread(least: float | None, most: float | None) -> str:
    """'-2 to +9 %': what something took at its fastest and slowest, less its median; "" if it is
    not known."""
    if least is None or most is None:
        return ""
    return f"{100 * (least - 1):+.0f} to {100 * (most - 1):+.0f} %"


def cut_line(found: Mapping[str, Any]) -> str | None:
    """How many rows a simulation has ended at the context; None: none."""
    if not found.get("cut_rows"):
        return None
    most = count(int(found["context_tokens"]))
    return f"rows cut at the context of {most} tokens (length): {count(int(found['cut_rows']))}"

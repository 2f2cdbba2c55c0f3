"""A panel as data, and helpers that write its queries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

Kind = Literal["stat", "timeseries", "heatmap", "state-timeline", "table"]

ONE: Final = 'job="gateway",instance=~"$instance"'  # the selector of every query
RATE: Final = "$__rate_interval"


@dataclass(frozen=True)
class Panel:
    """One panel: queries with their legends. `width` is in columns, of 24."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: Kind = "timeseries"
    width: int = 8
    help: str = ""
    stack: bool = False
    red: float | None = None  # red from this value on
    green: float | None = None  # red below this value
    words: dict[str, str] = field(default_factory=dict)  # names of values


@dataclass(frozen=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


def rate(metric: str, more: str = "", by: str = "") -> str:
    selector = f"{ONE},{more}" if more else ONE
    return f"sum{f' by ({by})' if by else ''} (rate(gateway_{metric}{{{selector}}}[{RATE}]))"


def quantiles(metric: str, more: str = "") -> tuple[tuple[str, str], ...]:
    buckets = rate(f"{metric}_bucket", more, "le")
    return tuple((f"histogram_quantile({q}, {buckets})", f"p{100 * q:g}") for q in (0.5, 0.95, 0.99))


def heat(metric: str) -> tuple[tuple[str, str], ...]:
    return ((rate(f"{metric}_bucket", by="le"), "{{le}}"),)


def gauge(metric: str, by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} (gateway_{metric}{{{ONE}}})"


def share(part: str, whole: str) -> str:
    """A share: no value without traffic, 0 if there is traffic but nothing of the part."""
    return f"({part} or vector(0)) / ({whole} > 0)"


def some(expr: str) -> str:
    """0 before a counter has any series: an empty panel would look broken."""
    return f"{expr} or vector(0)"


GENERATING: Final = 'endpoint=~"chat|completions|embeddings"'

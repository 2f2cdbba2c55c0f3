"""How numbers are written for people: digits, units, intervals, signs."""

from __future__ import annotations

from math import floor, isfinite, log10
from typing import Final

from loadgen.analysis.stats import Bounds, Quantile, Stat

UNKNOWN: Final = "…"
FEW: Final = "~"
"""In front of a figure whose sample is too small for an interval."""


def digits(value: float, n: int = 3) -> str:
    """At least `n` significant digits, with thousands separators: 0.0123, 1.20, 45.6, 789, 12,345."""
    if not isfinite(value):
        return UNKNOWN
    if value == 0:
        return "0"
    places = max(0, n - 1 - floor(log10(abs(value))))
    return f"{value:,.{min(places, 4)}f}"


def amount(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else digits(value)


def rate(value: float) -> str:
    return digits(value)


def percent(share: float | None) -> str:
    """0 % only for none, 100 % only for all."""
    if share is None:
        return UNKNOWN
    if share in (0, 1):
        return f"{share:.0%}".replace("%", " %")
    text = f"{100 * share:.1f}" if 0.001 <= share < 0.9995 else f"{100 * share:.2g}"
    return ("> 99.9" if share >= 0.9995 else text) + " %"


def ms(value: float | Quantile | None) -> str:
    """Milliseconds, without the unit."""
    if isinstance(value, Quantile):
        return point(value)
    return UNKNOWN if value is None else digits(value)


def point(what: Quantile | Stat | None) -> str:
    """A percentile, or a mean, without its interval; marked by `FEW` where there is none."""
    value, interval = estimate(what)
    if value is None:
        return UNKNOWN
    return digits(value) if interval is not None else f"{FEW}{digits(value)}"


def estimate(what: Quantile | Stat | None) -> tuple[float | None, Bounds | None]:
    """A percentile's value, or a mean, and its interval."""
    if what is None:
        return None, None
    return (what.value, what.interval) if isinstance(what, Quantile) else (what.mean, what.mean_interval)


def signed(value: float, unit: str = "") -> str:
    """Always with a sign; the minus is U+2212, not a hyphen."""
    sign = "−" if value < 0 else "+" if value > 0 else "±"
    return f"{sign}{digits(abs(value))}{unit}"


def interval_text(bounds: Bounds, *, sign: bool = False) -> str:
    if sign:
        return f"{signed(bounds.low)} to {signed(bounds.high)}"
    return f"{digits(bounds.low)}–{digits(bounds.high)}"


def cell(what: Quantile | Stat | None, *, sign: bool = False) -> str:
    """A percentile, or a mean, with its interval; marked by `FEW` where there is none."""
    value, interval = estimate(what)
    if value is None:
        return UNKNOWN
    text = signed(value) if sign else digits(value)
    return f"{FEW}{text}" if interval is None else f"{text} ({interval_text(interval, sign=sign)})"


def count(n: int, noun: str) -> str:
    """1 request, 2 requests, 1,000 requests."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def time_text(quantile: Quantile | None) -> str:
    """A percentile of milliseconds with its unit: 58.5 s, ~217 ms."""
    if quantile is None or quantile.value is None:
        return UNKNOWN
    return f"{FEW if quantile.interval is None else ''}{duration(quantile.value)}"


def duration(milliseconds: float) -> str:
    """0.217 ms, 58.5 s."""
    if abs(milliseconds) >= 10_000:
        return f"{digits(milliseconds / 1000)} s"
    return f"{digits(milliseconds)} ms"

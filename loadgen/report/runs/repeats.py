"""One load measured several times: each figure's mean over the runs, with an interval that includes what differs
from run to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import fmean, stdev
from typing import Any, Final

import msgspec

from loadgen.analysis import UNKNOWN, digits
from loadgen.report.markdown import markdown_table

SHOWN: Final = (
    *("request_throughput", "output_throughput", "request_goodput"),
    *("median_ttft_ms", "p95_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "p99_tpot_ms"),
    *("median_itl_ms", "p99_itl_ms", "median_e2el_ms", "p95_e2el_ms", "p99_e2el_ms"),
)
REPEATS: Final = "repeats.json"
T_95: Final = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""The 97.5 % quantile of Student's t for 1 to 30 degrees of freedom (any table of it)."""


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """One figure over the runs. The interval is of the mean, 95 %, by Student's t: one run is one value."""

    metric: str
    runs: int
    mean: float
    low: float
    high: float
    least: float
    most: float


def spread_of(metric: str, values: Sequence[float]) -> Spread:
    """Of two values or more."""
    mean = fmean(values)
    half = T_95[min(len(values) - 1, len(T_95)) - 1] * stdev(values) / sqrt(len(values))
    return Spread(
        metric=metric,
        runs=len(values),
        mean=mean,
        low=mean - half,
        high=mean + half,
        least=min(values),
        most=max(values),
    )


def spreads_of(results: Sequence[Mapping[str, Any]]) -> list[Spread]:
    """Of every figure that each of these `result.json`s has."""
    spreads = []
    for metric in SHOWN:
        values = [result.get(metric) for result in results]
        if len(values) > 1 and all(isinstance(value, int | float) for value in values):
            spreads.append(spread_of(metric, [float(value) for value in values if value is not None]))
    return spreads


class _Document(msgspec.Struct):
    figures: list[Spread]


def read_repeats(content: bytes) -> list[Spread]:
    """Raises msgspec.MsgspecError."""
    return msgspec.json.decode(content, type=_Document).figures


def repeats_json(spreads: Sequence[Spread], runs: Sequence[str]) -> bytes:
    document = {"schema": 1, "runs": list(runs), "figures": msgspec.to_builtins(spreads)}
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def repeats_table(spreads: Sequence[Spread]) -> list[str]:
    """Markdown, which a terminal shows as well."""
    rows = [
        [
            one.metric,
            digits(one.mean),
            f"± {digits(one.high - one.mean)}",
            f"{digits(one.least)} to {digits(one.most)}",
        ]
        for one in spreads
    ]
    columns = ("ms, or per second", "mean of the runs", "95 % of the mean", "lowest and highest run")
    return markdown_table(columns, rows or [[UNKNOWN] * 4], words=(0,))

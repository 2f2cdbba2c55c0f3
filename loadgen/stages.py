"""Owns how a sweep's stages are read: the rate that a stage's name tells, and the knee.
Must not know tables or pictures.
Called by `view.py` and `plots.py`."""

from __future__ import annotations

from collections.abc import Mapping

from loadgen.knee import Stage, knee
from loadgen.summary import Group


def rate_of(name: str) -> float | None:
    """8.0 of "rate=8"; None of a stage that is not a rate."""
    key, _, text = name.partition("=")
    try:
        return float(text) if key == "rate" else None
    except ValueError:
        return None


def by_rate(stages: Mapping[str, Group]) -> list[tuple[float, Group]]:
    """(asked, stage) of those that are rates, ascending."""
    rates = ((rate_of(name), group) for name, group in stages.items())
    return sorted(((asked, group) for asked, group in rates if asked is not None), key=lambda stage: stage[0])


def knee_of(stages: Mapping[str, Group]) -> float | None:
    """The highest asked rate that was kept up with; None without a sweep, or where none was."""
    seen = []
    for asked, group in by_rate(stages):
        middle = group.stats["ttft_due"].at(50) or group.stats["e2el_due"].at(50)
        seen.append(
            Stage(
                asked=asked,
                achieved=group.request_throughput,
                ttft_p50_ms=middle.value if middle is not None else None,
                failed=group.error_rate,
            )
        )
    return knee(seen)

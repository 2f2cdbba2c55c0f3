"""A sweep's stages in a summary: the rate that a stage's name tells, and the knee."""

from __future__ import annotations

from collections.abc import Mapping

from loadgen.analysis.knee import SweepStage, find_knee, unsteady_warning
from loadgen.analysis.summary import Group, Summary


def rate_of(name: str) -> float | None:
    """8.0 for "rate=8"; None for a stage that is not a rate."""
    key, _, text = name.partition("=")
    try:
        return float(text) if key == "rate" else None
    except ValueError:
        return None


def by_rate(stages: Mapping[str, Group]) -> list[tuple[float, Group]]:
    """(requested rate, stage) of the stages that are rates, ascending."""
    rates = ((rate_of(name), group) for name, group in stages.items())
    return sorted(((asked, group) for asked, group in rates if asked is not None), key=lambda stage: stage[0])


def done_rate(asked: float, group: Group) -> float:
    """Completed requests per second at this requested rate, without the drain and the chance of arrivals."""
    return asked * group.kept_up


def token_rate(asked: float, group: Group) -> float:
    return done_rate(asked, group) * group.output_tokens / group.completed if group.completed else 0.0


def good_rate(asked: float, group: Group) -> float:
    return asked * group.goodput.attainment if group.goodput is not None else 0.0


def knee_of(summary: Summary) -> float | None:
    """The sweep's own knee, else computed as it does: the highest requested rate that the server kept up with, by
    median TTFT (by the mean if a stage is too short for a median). None without one."""
    if summary.knee is not None:
        return summary.knee
    return find_knee(_stages(summary))


def unsteady_warning_of(summary: Summary) -> str | None:
    """Why the knee may be wrong, or None."""
    return unsteady_warning(_stages(summary))


def _stages(summary: Summary) -> list[SweepStage]:
    seen = []
    for asked, group in by_rate(summary.by_stage):
        stat = group.stats["ttft_due"] if group.stats["ttft_due"].n else group.stats["e2el_due"]
        middle = stat.at(50)
        known = middle.value if middle is not None and middle.value is not None else stat.mean
        achieved = done_rate(asked, group)
        seen.append(SweepStage(asked=asked, achieved=achieved, ttft_p50_ms=known, failed=group.error_rate))
    return seen


def focus(summary: Summary) -> tuple[str, str, Group]:
    """The group whose latency a report shows: (description, stage, group). For a sweep the knee or the
    lightest stage, since a mix of rates means nothing; else the responses that were generated for their
    request."""
    rates = by_rate(summary.by_stage)
    if not rates:
        words = "responses generated for the request" if summary.fresh else ""
        return words, "", summary.fresh or summary.whole
    found = knee_of(summary)
    asked, group = next((stage for stage in rates if found and abs(stage[0] / found - 1) < 1e-4), rates[0])
    name = next(name for name, part in summary.by_stage.items() if part is group)
    return f"at {asked:.4g} requests/s, {'the knee' if found else 'the lowest rate'}", name, group

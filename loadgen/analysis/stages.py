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
    return sorted(
        ((requested, group) for requested, group in rates if requested is not None), key=lambda stage: stage[0]
    )


def done_rate(requested: float, group: Group) -> float:
    """Completed requests per second at this requested rate, without the drain and the chance of arrivals."""
    return requested * group.kept_up


def token_rate(requested: float, group: Group) -> float:
    return done_rate(requested, group) * group.output_tokens / group.completed if group.completed else 0.0


def good_rate(requested: float, group: Group) -> float:
    return requested * group.goodput.attainment if group.goodput is not None else 0.0


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
    stages = []
    for requested, group in by_rate(summary.by_stage):
        stat = group.stats["ttft_due"] if group.stats["ttft_due"].n else group.stats["e2el_due"]
        middle = stat.at(50)
        ttft = middle.value if middle is not None and middle.value is not None else stat.mean
        achieved = done_rate(requested, group)
        stages.append(
            SweepStage(requested=requested, achieved=achieved, ttft_p50_ms=ttft, failed=group.error_rate)
        )
    return stages


def focus(summary: Summary) -> tuple[str, str, Group]:
    """The group whose latency a report shows: (description, stage, group). For a sweep the knee or the
    lightest stage, since a mix of rates means nothing; else the responses that were generated for their
    request."""
    rates = by_rate(summary.by_stage)
    if not rates:
        words = "responses generated for the request" if summary.fresh else ""
        return words, "", summary.fresh or summary.whole
    knee = knee_of(summary)
    requested, group = next((stage for stage in rates if knee and abs(stage[0] / knee - 1) < 1e-4), rates[0])
    name = next(name for name, part in summary.by_stage.items() if part is group)
    return f"at {requested:.4g} requests/s, {'the knee' if knee else 'the lowest rate'}", name, group

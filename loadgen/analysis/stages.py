"""A sweep's stages in a summary: the rate that a stage's name tells, and the knee."""

from __future__ import annotations

from collections.abc import Mapping

from loadgen.analysis.knee import Limit, SweepStage, find_limit, unsteady_warning
from loadgen.analysis.summary import Group, Summary, rate_of


def by_rate(stages: Mapping[str, Group]) -> list[tuple[float, Group]]:
    """(requested rate, stage) of the stages that are rates, ascending."""
    rates = ((rate_of(name), group) for name, group in stages.items())
    return sorted(
        ((requested, group) for requested, group in rates if requested is not None), key=lambda stage: stage[0]
    )


def limit_of(summary: Summary) -> Limit:
    """The sweep's own, else computed as it does: by how fast requests ended relative to how fast they were due, by
    failures and by the median TTFT."""
    return summary.limit or find_limit(_stages(summary))


def unsteady_warning_of(summary: Summary) -> str | None:
    """Why the knee may be wrong, or None."""
    return unsteady_warning(_stages(summary))


def _stages(summary: Summary) -> list[SweepStage]:
    stages = []
    for requested, group in by_rate(summary.by_stage):
        stat = group.stats["ttft_due"] if group.stats["ttft_due"].n else group.stats["e2el_due"]
        middle = stat.at(50)
        stages.append(
            SweepStage(
                requested=requested,
                pace=group.kept_up,
                ttft_p50_ms=middle.value if middle is not None else None,
                failed=group.error_rate,
                completed=group.request_throughput,
            )
        )
    return stages


def focus(summary: Summary) -> tuple[str, str, Group]:
    """The group whose latency a report shows: (description, stage, group). For a sweep the highest rate that the
    server kept up with, or the lowest rate, since a mix of rates means nothing; else the responses that were
    generated for their request."""
    if summary.focus:
        return f"at {summary.focus}", summary.focus, summary.by_stage[summary.focus]
    rates = by_rate(summary.by_stage)
    if not rates:
        words = "responses generated for the request" if summary.fresh else ""
        return words, "", summary.fresh or summary.whole
    limit = limit_of(summary)
    kept = limit.kept
    requested, group = next((stage for stage in rates if kept and abs(stage[0] / kept - 1) < 1e-4), rates[0])
    name = next(name for name, part in summary.by_stage.items() if part is group)
    which = "the knee" if limit.knee else "the highest rate tried" if kept else "the lowest rate"
    return f"at {requested:.4g} req/s, {which}", name, group

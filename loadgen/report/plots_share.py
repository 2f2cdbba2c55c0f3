"""Plots of distributions: which curves a run has, their ECDFs, and the tail of its gaps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from loadgen.analysis import (
    PER_REQUEST,
    POOLED,
    Measured,
    Sample,
    Stat,
    Summary,
    digits,
    focus,
    interpolated,
    pooled,
    sample_of,
)
from loadgen.report.plot_style import BLUE, GREEN, MUTED, ORANGE, canvas, legend_above, log_axis, mark

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS: Final = 300
"""Points of a curve: more would be invisible and enlarge the page."""


@dataclass(frozen=True)
class Curve:
    """One line of a plot: its requests, and the statistics that are marked on it."""

    label: str
    requests: Sequence[Measured]
    colour: str
    stats: dict[str, Stat] | None = None
    itl_by: str = "none"
    due: bool = False  # also draw it from due, dashed


def curves(requests: Sequence[Measured], summary: Summary) -> tuple[str, list[Curve]]:
    """(description, curves): one for each side of an `ab`; a sweep is shown at its knee."""
    done = [request for request in requests if request.completed]
    fresh = [request for request in done if request.fresh]
    if summary.by_target:
        sides = zip(summary.by_target.items(), (BLUE, ORANGE), strict=False)
        return "", [
            Curve(
                name, [request for request in fresh if request.target == name], colour, group.stats, group.itl_by
            )
            for (name, group), colour in sides
        ]
    words, stage, group = focus(summary)
    if stage:
        fresh = [request for request in fresh if request.stage == stage]
        return words, [Curve("from send", fresh, BLUE, group.stats, group.itl_by, due=True)]
    shared = [request for request in done if not request.fresh]
    lines = [Curve("generated" if shared else "from send", fresh, BLUE, group.stats, group.itl_by, due=True)]
    return "", [*lines, *([Curve("shared (hit, attached)", shared, GREEN)] if shared else [])]


def thinned(values: Iterable[float]) -> tuple[list[float], list[float]]:
    """An ECDF of about `POINTS` points at most, half of them in the tail."""
    ordered = sorted(values)
    n, half = len(ordered), POINTS // 2
    if n <= POINTS:
        places = list(range(n))
    else:
        even = {round(place * (n - 1) / half) for place in range(half + 1)}
        tail = {n - 1 - round(n ** (place / half) - 1) for place in range(half)}
        places = sorted(place for place in even | tail if 0 <= place < n)
    return [ordered[place] for place in places], [(place + 1) / n for place in places]


def _ecdf(axes: Axes, sample: Sample, label: str, colour: str, style: str = "-") -> None:
    x, y = thinned(sample.values)
    axes.step(x, y, where="post", color=colour, label=label, linestyle=style)
    if not sample.exact:
        low, at_low = thinned(sample.lows)
        high, at_high = thinned(sample.highs)
        right = [_at(high, at_high, share) for share in at_low]
        axes.fill_betweenx(at_low, low, right, color=colour, alpha=0.22, lw=0)


def _at(x: Sequence[float], y: Sequence[float], share: float) -> float:
    """The curve's x at a share."""
    return next((value for value, height in zip(x, y, strict=True) if height >= share), x[-1])


def _percentiles(axes: Axes, lines: Sequence[Curve], name: str) -> None:
    """Mark p50, p95, p99 of one curve. Of two, which may be close: p50 and p99 of the first, p50 of the other."""
    marked = [(line, line.stats) for line in lines if line.stats is not None]
    for place, (line, stats) in enumerate(marked):
        points = (50.0, 95.0, 99.0) if len(marked) == 1 else (50.0,) if place else (50.0, 99.0)
        for p in points:
            percentile = stats[name].at(p)
            if percentile is not None and percentile.value is not None:
                left = p > 98 or place < len(marked) - 1
                mark(
                    axes, percentile.value, p / 100, f"p{p:g}  {digits(percentile.value)}", line.colour, left=left
                )


def _share_axis(axes: Axes) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.set_ylim(0, 1.09)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    legend_above(axes)


def share_plot(lines: Sequence[Curve], name: str, title: str) -> Figure | None:
    known = [(line, sample_of(line.requests, PER_REQUEST[name])) for line in lines]
    known = [(line, sample) for line, sample in known if len(sample) > 1]
    if not known:
        return None
    figure, (axes,) = canvas(height=3.7)
    log_axis(axes.xaxis, [value for _, sample in known for value in sample.values])
    for line, sample in known:
        _ecdf(axes, sample, line.label, line.colour)
        if line.due:
            _ecdf(axes, sample_of(line.requests, PER_REQUEST[f"{name}_due"]), "from due", ORANGE, "--")
    _percentiles(axes, [line for line, _ in known], name)
    _share_axis(axes)
    axes.set_xlabel(f"{title}, ms (log)")
    return figure


def gaps_plot(lines: Sequence[Curve]) -> Figure | None:
    """Without shared responses: the gaps of a replay are those of the socket."""
    known = [(line, pooled(line.requests, POOLED["itl"])) for line in lines if line.stats is not None]
    known = [(line, sample) for line, sample in known if len(sample) >= 10]
    if not known:
        return None
    by = known[0][0].itl_by
    what = f"gap between {by if by in ('tokens', 'chunks') else 'tokens or chunks'}, ms (log)"
    figure, (whole, tail) = canvas(1, 2, height=3.8)
    ordered = sorted(value for _, sample in known for value in sample.values)
    low, high = max(interpolated(ordered, 0.001) * 0.7, 1e-4), ordered[-1] * 1.2
    log_axis(whole.xaxis, [low, high])
    whole.set_xlim(low, high)
    log_axis(tail.xaxis, [interpolated(ordered, 0.5), high])
    for line, sample in known:
        label = line.label if len(known) > 1 else "as measured"
        _ecdf(whole, sample, label, line.colour)
        _tail(tail, sample.values, line.colour, "-", label)
        if not sample.exact and len(known) == 1:
            _tail(tail, sample.highs, MUTED, ":", "at most (merged reads)")
    _percentiles(whole, [line for line, _ in known], "itl")
    _share_axis(whole)
    tail.set_yscale("log")
    tail.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.4g} %")
    tail.yaxis.set_minor_formatter(lambda share, _: "")
    tail.set_ylabel("share of gaps above")
    legend_above(tail)
    for axes in (whole, tail):
        axes.set_xlabel(what)
    return figure


def _tail(axes: Axes, values: Sequence[float], colour: str, style: str, label: str) -> None:
    x, y = thinned(values)
    above = [(value, 1 - share + 1 / len(values)) for value, share in zip(x, y, strict=True) if share > 0.5]
    axes.step(*zip(*above, strict=True), where="pre", color=colour, ls=style, label=label)

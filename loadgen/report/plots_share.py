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
    focus,
    interpolated,
    point,
    pooled,
    sample_of,
)
from loadgen.report.plot_style import BLUE, GREEN, MUTED, ORANGE, Sheet, duration_axis, plain_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKED: Final = (50.0, 95.0, 99.0)
MAX_DOTS: Final = 1000
"""Requests drawn as dots; of more, every k-th is drawn."""
POINTS: Final = 240
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


def _label(line: Curve, name: str) -> str:
    """The curve's name with its percentiles, which beside the curve would cover others."""
    stat = line.stats[name] if line.stats is not None else None
    if stat is None or not stat.n:
        return line.label
    return f"{line.label}: " + ", ".join(f"p{p:g} {point(stat.at(p))}" for p in MARKED) + " ms"


def _percentiles(axes: Axes, lines: Sequence[Curve], name: str) -> None:
    """A dot on each curve at each percentile of its label."""
    for line in lines:
        stat = line.stats[name] if line.stats is not None else None
        values = [
            (q.value, p / 100) for p in MARKED if stat is not None and (q := stat.at(p)) and q.value is not None
        ]
        if values:
            axes.plot(*zip(*values, strict=True), "o", color=line.colour, markersize=4.5)


def _share_axis(axes: Axes) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.set_ylim(0, 1.04)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def share_plot(sheet: Sheet, lines: Sequence[Curve], name: str, title: str) -> Figure | None:
    known = [(line, sample_of(line.requests, PER_REQUEST[name])) for line in lines]
    known = [(line, sample) for line, sample in known if len(sample) > 1]
    if not known:
        return None
    figure, (axes,) = sheet.canvas(height=3.7)
    everything = [value for _, sample in known for value in sample.values]
    for line, sample in known:
        due = sample_of(line.requests, PER_REQUEST[f"{name}_due"])
        _ecdf(axes, sample, _label(line, name), line.colour)
        if line.due and _differ(due.values, sample.values):
            _ecdf(axes, due, "from due", ORANGE, "--")
            everything += due.values
    duration_axis(axes.xaxis, everything, title)
    _percentiles(axes, [line for line, _ in known], name)
    _share_axis(axes)
    sheet.legend(axes, columns=2)
    return figure


def _differ(one: Sequence[float], two: Sequence[float]) -> bool:
    """Whether two curves can be told apart: by more than a hundredth somewhere."""
    pairs = zip(sorted(one), sorted(two), strict=True)
    return any(abs(left - right) > 0.01 * max(left, right) for left, right in pairs)


def gaps_plot(sheet: Sheet, lines: Sequence[Curve]) -> Figure | None:
    """Without shared responses: the gaps of a replay are those of the socket."""
    known = [(line, pooled(line.requests, POOLED["itl"])) for line in lines if line.stats is not None]
    known = [(line, sample) for line, sample in known if len(sample) >= 10]
    if not known:
        return None
    by = known[0][0].itl_by
    what = f"gap between {by if by in ('tokens', 'chunks') else 'tokens or chunks'}"
    figure, (whole, tail) = sheet.canvas(1, 2, height=3.6)
    ordered = sorted(value for _, sample in known for value in sample.values)
    low, high = max(interpolated(ordered, 0.001), 1e-3), ordered[-1] * 1.2
    duration_axis(whole.xaxis, [low, high], what)
    whole.set_xlim(low, high)
    duration_axis(tail.xaxis, [max(interpolated(ordered, 0.5), 1e-3), high], what)
    for line, sample in known:
        label = line.label if len(known) > 1 else "as measured"
        _ecdf(whole, sample, _label(line, "itl"), line.colour)
        _tail(tail, sample.values, line.colour, "-", label)
        if not sample.exact and len(known) == 1:
            _tail(tail, sample.highs, MUTED, ":", "at most (packets read at once)")
    _percentiles(whole, [line for line, _ in known], "itl")
    _share_axis(whole)
    sheet.legend(whole, columns=1)
    tail.set_yscale("log")
    tail.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.4g} %")
    tail.yaxis.set_minor_formatter(lambda share, _: "")
    tail.set_ylabel("share of gaps above")
    sheet.legend(tail, columns=1)
    return figure


def _tail(axes: Axes, values: Sequence[float], colour: str, style: str, label: str) -> None:
    x, y = thinned(values)
    above = [(value, 1 - share + 1 / len(values)) for value, share in zip(x, y, strict=True) if share > 0.5]
    axes.step(*zip(*above, strict=True), where="pre", color=colour, ls=style, label=label)


def lengths_plot(sheet: Sheet, lines: Sequence[Curve]) -> Figure | None:
    """Lengths by usage, and TTFT by the prompt's length (E2E by the response's, where there is no TTFT)."""
    fresh = [request for line in lines if line.stats is not None for request in line.requests]
    known = [request for request in fresh if request.prompt_tokens and request.ttft is not None]
    if len({request.prompt_tokens for request in known}) < 3:
        return None
    figure, (lengths, latency) = sheet.canvas(1, 2, height=3.6)
    for name, label, colour, style in (
        ("input_tokens", "input", BLUE, "-"), ("output_tokens", "output", ORANGE, "--")
    ):  # fmt: skip
        sample = sample_of(fresh, PER_REQUEST[name])
        if len(sample):
            _ecdf(lengths, sample, label, colour, style)
    lengths.set_xlabel("tokens of a request")
    lengths.set_xlim(left=0)
    plain_axis(lengths.xaxis, 5)
    _share_axis(lengths)
    sheet.legend(lengths)
    for line in lines:
        dots = [(r.prompt_tokens, r.ttft.value) for r in line.requests if r.prompt_tokens and r.ttft is not None]
        if dots and line.stats is not None:
            x, y = zip(*dots[:: -(-len(dots) // MAX_DOTS)], strict=True)
            latency.scatter(
                x, y, s=14 if len(dots) < 300 else 6, color=line.colour, alpha=0.6, lw=0, label=line.label
            )
    duration_axis(latency.yaxis, [r.ttft.value for r in known if r.ttft is not None], "TTFT")
    latency.set_xlabel("input tokens")
    latency.set_xlim(left=0)
    plain_axis(latency.xaxis, 5)
    if len(lines) > 1:
        sheet.legend(latency)
    return figure

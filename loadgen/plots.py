"""Owns what each picture shows of a run; matplotlib (extra `plots`) draws it.
Must not know pages or folders; what is computed elsewhere comes in computed.
Called by `report.py`. Without matplotlib `available()` says no, and reports have their tables."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from loadgen.measures import Measured
from loadgen.numbers import digits
from loadgen.paired import MEASURES, differences, pairs_of
from loadgen.plot_style import BLUE, GREEN, MUTED, ORANGE, RED, VIOLET, canvas, log_axis, mark, saved, styled
from loadgen.plots_time import timeline_plot
from loadgen.stages import by_rate, knee_of
from loadgen.stats import Sample, Stat, interpolated
from loadgen.summary import PER_REQUEST, POOLED, Summary, pooled, sample_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS: Final = 400
"""Points of a curve: more cannot be seen and make the page heavy."""
HOW_TO: Final = "For plots: pip install 'streaming-gateway[plots]', then python -m loadgen report FOLDER."


@dataclass(frozen=True)
class Plot:
    name: str
    title: str
    caption: str
    svg: bytes
    png: bytes


def available() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def plots(requests: Sequence[Measured], summary: Summary) -> list[Plot]:
    """Every picture that the run has data for."""
    done = [request for request in requests if request.completed]
    drawn = []
    with styled():
        for name, title, caption, figure in (
            ("sweep", "Latency against rate", "TTFT from when requests were due. Where p50 turns up, a queue grows.",
             _sweep(summary)),
            ("paired", "Paired difference", "b less a, request by request: what slowed both down has left. "
             "The band is the median's 95 % interval.", _paired(requests)),
            ("ttft", "Time to first token", "Share of requests at or below. The band is what merged reads leave open.",
             _ttft(done, summary)),
            ("itl", "Between tokens", "All gaps of all streams; right: the slowest, where stalls show.",
             _itl(done, summary)),
            ("e2e", "End to end", "Share of requests at or below.", _e2e(done, summary)),
            ("timeline", "Timeline", "What was sent, what came back, and when it failed.", timeline_plot(requests)),
            ("goodput", "Goodput", "Share of what was attempted that met each objective; failures met none.",
             _goodput(summary)),
        ):  # fmt: skip
            if figure is not None:
                drawn.append(Plot(name, title, caption, saved(figure, "svg"), saved(figure, "png")))
    return drawn


# Distributions


def curve(values: Iterable[float]) -> tuple[list[float], list[float]]:
    """An ECDF of at most about `POINTS` points, as dense in the last percent as in the first."""
    ordered = sorted(values)
    n = len(ordered)
    if n <= POINTS:
        places = list(range(n))
    else:
        even = {round(place * (n - 1) / (POINTS // 2)) for place in range(POINTS // 2 + 1)}
        tail = {n - 1 - round(n ** (place / (POINTS // 2)) - 1) for place in range(POINTS // 2)}
        places = sorted(place for place in even | tail if 0 <= place < n)
    return [ordered[place] for place in places], [(place + 1) / n for place in places]


def _ecdf(axes: Axes, sample: Sample, label: str, colour: str, style: str = "-") -> None:
    x, y = curve(sample.values)
    axes.step(x, y, where="post", color=colour, label=label, linestyle=style)
    if not sample.exact:
        low, at_low = curve(sample.lows)
        high, at_high = curve(sample.highs)
        axes.fill_betweenx(
            at_low, low, [_at(high, at_high, share) for share in at_low], color=colour, alpha=0.22, lw=0
        )


def _at(x: Sequence[float], y: Sequence[float], share: float) -> float:
    """The curve's x at a share."""
    return next((value for value, height in zip(x, y, strict=True) if height >= share), x[-1])


def _percentiles(axes: Axes, stat: Stat, colour: str) -> None:
    for p in (50.0, 95.0, 99.0):
        found = stat.at(p)
        if found is not None and found.value is not None:
            mark(axes, found.value, p / 100, f"p{p:g}  {digits(found.value)}", colour, left=p > 90)


def _share_axis(axes: Axes) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.set_ylim(0, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _distribution(done: Sequence[Measured], summary: Summary, name: str, due: str, title: str) -> Figure | None:
    fresh = [request for request in done if request.fresh]
    sample = sample_of(fresh, PER_REQUEST[name])
    if len(sample) < 2:
        return None
    figure, (axes,) = canvas(height=3.7)
    shared = sample_of((request for request in done if not request.fresh), PER_REQUEST[name])
    log_axis(axes.xaxis, [*sample.values, *shared.values])
    label = "generated" if len(shared) else "from send"
    _ecdf(axes, sample, label, BLUE)
    from_due = sample_of(fresh, PER_REQUEST[due])
    _ecdf(axes, from_due, "from due", ORANGE, "--")
    if len(shared):
        _ecdf(axes, shared, "shared (hit, attached)", GREEN)
    _percentiles(axes, (summary.fresh or summary.whole).stats[name], BLUE)
    _share_axis(axes)
    axes.set_xlabel(f"{title}, ms (log)")
    axes.legend(loc="upper left" if not len(shared) else "center left")
    return figure


def _ttft(done: Sequence[Measured], summary: Summary) -> Figure | None:
    return _distribution(done, summary, "ttft", "ttft_due", "TTFT")


def _e2e(done: Sequence[Measured], summary: Summary) -> Figure | None:
    return _distribution(done, summary, "e2el", "e2el_due", "E2E")


def _itl(done: Sequence[Measured], summary: Summary) -> Figure | None:
    sample = pooled((request for request in done if request.fresh), POOLED["itl"])
    if len(sample) < 10:
        return None
    group = summary.fresh or summary.whole
    figure, (whole, tail) = canvas(1, 2, height=3.7)
    what = f"gap between {group.itl_by if group.itl_by in ('tokens', 'chunks') else 'tokens or chunks'}, ms (log)"
    ordered = sorted(sample.values)
    log_axis(whole.xaxis, [interpolated(ordered, 0.001), ordered[-1]])
    whole.set_xlim(max(interpolated(ordered, 0.001) * 0.7, 1e-4), ordered[-1] * 1.2)
    _ecdf(whole, sample, "gaps", BLUE)
    _percentiles(whole, group.stats["itl"], BLUE)
    _share_axis(whole)
    whole.set_xlabel(what)
    log_axis(tail.xaxis, [interpolated(ordered, 0.5), ordered[-1]])
    for side, style, label in ((sample.values, "-", "as measured"), (sample.highs, ":", "at most (merged reads)")):
        if style == "-" or not sample.exact:
            x, y = curve(side)
            above = [
                (value, 1 - share + 1 / len(sample)) for value, share in zip(x, y, strict=True) if share > 0.5
            ]
            tail.step(
                *zip(*above, strict=True),
                where="pre",
                color=BLUE if style == "-" else MUTED,
                ls=style,
                label=label,
            )
    tail.set_yscale("log")
    tail.set_title("share of gaps above")
    tail.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.4g} %")
    tail.set_xlabel(what)
    tail.legend(loc="upper right")
    return figure


# Against something else


def _sweep(summary: Summary) -> Figure | None:
    stages = by_rate(summary.by_stage)
    if len(stages) < 2:
        return None
    figure, (latency, done) = canvas(1, 2, height=3.8)
    rates = [asked for asked, _ in stages]
    every = []
    for p, colour in ((50.0, BLUE), (95.0, VIOLET), (99.0, ORANGE)):
        known = [
            (asked, q) for asked, group in stages if (q := group.stats["ttft_due"].at(p)) and q.value is not None
        ]
        if not known:
            continue
        x, y = [asked for asked, _ in known], [q.value or 0.0 for _, q in known]
        ends = [q.interval for _, q in known if q.interval is not None]
        latency.plot(x, y, "o-", color=colour, label=f"p{p:g}", markersize=4)
        latency.fill_between(
            x, [end.low for end in ends], [end.high for end in ends], color=colour, alpha=0.15, lw=0
        )
        every += y
    if every:
        log_axis(latency.yaxis, every)
    latency.set_title("TTFT from due, ms (log)")
    done.plot(rates, rates, color=MUTED, ls=":", label="asked")
    done.plot(
        rates, [group.request_throughput for _, group in stages], "o-", color=BLUE, label="completed", markersize=4
    )
    if all(group.goodput for _, group in stages):
        good = [group.goodput.per_second if group.goodput else 0.0 for _, group in stages]
        done.plot(rates, good, "s-", color=GREEN, label="good", markersize=4)
    done.set_title("requests/s")
    done.set_ylim(bottom=0)
    found = knee_of(summary.by_stage)
    for axes in (latency, done):
        axes.set_xlabel("asked, requests/s")
        if found:
            axes.axvline(found, color=RED, ls="--", lw=1.2, label=f"knee {found:g}/s")
        axes.legend(loc="upper left")
    return figure


def _goodput(summary: Summary) -> Figure | None:
    good = summary.whole.goodput
    if good is None:
        return None
    shares = {**{f"{name} ≤ {limit:g} ms": good.by_slo[name] for name, limit in good.slos.items()}}
    shares["all of them"] = good.attainment
    figure, (axes,) = canvas(height=0.9 + 0.38 * len(shares))
    names = list(shares)[::-1]
    axes.barh(names, [1] * len(names), color=MUTED, alpha=0.14, height=0.62)
    axes.barh(names, [shares[name] for name in names], height=0.62, color=[GREEN] + [BLUE] * (len(names) - 1))
    for place, name in enumerate(names):
        axes.text(1.01, place, f"{100 * shares[name]:.1f} %", va="center", fontsize=10)
    axes.set_xlim(0, 1.09)
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.spines[["bottom", "left"]].set_visible(False)
    axes.tick_params(length=0)
    return figure


def _paired(requests: Sequence[Measured]) -> Figure | None:
    both = [(a, b) for a, b in pairs_of(requests) if a.completed and b.completed]
    shown = [(title, differences(both, MEASURES[name])) for name, title in (("ttft", "TTFT"), ("e2el", "E2E"))]
    known = [(title, sample) for title, sample in shown if len(sample) >= 5]
    if not known:
        return None
    from loadgen.stats import describe

    figure, panels = canvas(1, len(known), height=3.5)
    for axes, (title, sample) in zip(panels, known, strict=True):
        ordered = sorted(sample.values)
        low, high = interpolated(ordered, 0.01), interpolated(ordered, 0.99)
        room = max(high - low, 1e-6) * 0.15
        low, high = min(low - room, 0 - room), max(high + room, room)
        inside = [value for value in ordered if low <= value <= high]
        axes.hist(inside, bins=40, range=(low, high), color=BLUE, alpha=0.75)
        axes.axvline(0, color=MUTED, lw=1.2)
        middle = describe(sample).at(50)
        if middle is not None and middle.value is not None and middle.interval is not None:
            axes.axvspan(middle.interval.low, middle.interval.high, color=RED, alpha=0.25, lw=0)
            axes.axvline(middle.value, color=RED, label=f"median {middle.value:+.3g} ms")
            axes.legend(loc="upper left")
        outside = len(ordered) - len(inside)
        axes.set_title(f"{title}: b − a" + (f" ({outside} of {len(ordered)} beyond the axis)" if outside else ""))
        axes.set_xlabel("ms")
        axes.set_ylabel("pairs")
    return figure

"""The plots of a run, drawn by matplotlib (extra `plots`). Without it `plots_available()` is false and reports
have their tables."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from loadgen.analysis import (
    PAIRED_MEASURES,
    Measured,
    Summary,
    by_rate,
    comparable_pairs,
    interpolated,
    limit_of,
    pair_up,
    paired_differences,
    pairs_by_order,
    pairs_of,
    signed,
)
from loadgen.record import Run
from loadgen.report.plot_style import (
    BLUE,
    CARD,
    GREEN,
    MUTED,
    ORANGE,
    RED,
    VIOLET,
    Sheet,
    duration_axis,
    plain_axis,
    saved,
    styled,
)
from loadgen.report.plots_share import Curve, curves, gaps_plot, lengths_plot, share_plot
from loadgen.report.plots_time import timeline_plot
from loadgen.report.sections.by_load import Point, points_of
from loadgen.report.sections.plots_engine import engine_plot, split_plot
from loadgen.report.sections.plots_pareto import pareto_plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARE: Final = "Share of requests at or below."
BAND: Final = " The band is where the share may lie, because several packets were read at once."
PAIRED: Final = (
    "b − a, request by request: load that slows both cancels out. Red: the difference without the effect of the "
    "order, and its 95 % interval."
)
PARETO: Final = (
    "Each point is a stage: to the right each user's stream is faster, further up the server delivers more. The "
    "line joins the stages that no other one exceeds in both."
)
ENGINE: Final = "By /metrics, once a second, on the timeline's axis."
SPLIT: Final = "By the engine's own times; what is left is network and the server's front."
RATES: Final = (
    "TTFT counts from due. Where p50 rises, the queue grows. Bars: 95 % intervals; hollow: the stage is too short "
    "for one. Completed counts the drain after a stage's last arrival, so in a short stage it is below the "
    "requested rate."
)
HOW_TO: Final = "For plots: pip install 'streaming-gateway[plots]', then python -m loadgen report FOLDER."


@dataclass(frozen=True)
class Plot:
    name: str
    title: str
    caption: str
    svg: bytes
    narrow: bytes  # the same as an SVG for a page of about 400 pixels
    png: bytes


def plots_available() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def plots(
    run: Run, requests: Sequence[Measured], summary: Summary, beside: Mapping[str, Sequence[Point]] | None = None
) -> list[Plot]:
    """Every plot that the run has data for. `beside`: points of other runs, laid over this one's."""
    drawn = []
    with styled():
        for name, title, caption, draw in drawings(run, requests, summary, beside or {}):
            wide, narrow = draw(Sheet()), draw(Sheet(narrow=True))
            if wide is not None and narrow is not None:
                svgs = saved(wide, "svg"), saved(narrow, "svg")
                drawn.append(Plot(name, title, caption, *svgs, saved(wide, "png")))
    return drawn


class Drawing(NamedTuple):
    name: str
    title: str
    caption: str
    draw: Callable[[Sheet], Figure | None]
    """None: the run has no data for it."""


def drawings(
    run: Run, requests: Sequence[Measured], summary: Summary, beside: Mapping[str, Sequence[Point]]
) -> list[Drawing]:
    words, lines = curves(requests, summary)
    of = f"{words[0].upper()}{words[1:]}. " if words else ""
    share = of + SHARE + (BAND if _merged(lines) else "")
    runs = {run.label or "this run": points_of(run, summary), **beside}
    every: tuple[tuple[str, str, str, Callable[[Sheet], Figure | None]], ...] = (
        ("sweep", "Latency against rate", RATES, lambda sheet: _sweep(sheet, summary)),
        ("pareto", "Throughput against speed", PARETO,
         lambda sheet: pareto_plot(sheet, runs, per_gpu=bool(run.config.get("gpus")))),
        ("paired", "Pair by pair", PAIRED, lambda sheet: _paired(sheet, requests)),
        ("ttft", "Time to first token", share, lambda sheet: share_plot(sheet, lines, "ttft", "TTFT")),
        ("itl", "Between tokens", f"{of}All gaps of all streams, and the slowest of them, which show stalls.",
         lambda sheet: gaps_plot(sheet, lines)),
        ("e2e", "End to end", of + SHARE, lambda sheet: share_plot(sheet, lines, "e2el", "E2E")),
        ("lengths", "Lengths", f"{of}Tokens by usage, and TTFT by the length of the prompt.",
         lambda sheet: lengths_plot(sheet, lines)),
        ("timeline", "Timeline", "Requests sent, responses received, and failures.",
         lambda sheet: timeline_plot(sheet, requests)),
        ("engine", "The engine's own figures", ENGINE, lambda sheet: engine_plot(sheet, run)),
        ("split", "What TTFT consists of", SPLIT, lambda sheet: split_plot(sheet, requests)),
        ("goodput", "Goodput", "Share of attempted requests that met each objective; failures met none.",
         lambda sheet: _goodput(sheet, summary)),
    )  # fmt: skip
    return [Drawing(*drawing) for drawing in every]


def _merged(lines: Sequence[Curve]) -> bool:
    """Whether a TTFT is known as an interval only."""
    return any(r.ttft is not None and r.ttft.low < r.ttft.high for line in lines for r in line.requests)


# Comparisons


def _sweep(sheet: Sheet, summary: Summary) -> Figure | None:
    stages = by_rate(summary.by_stage)
    if len(stages) < 2:
        return None
    figure, (latency, done) = sheet.canvas(1, 2, height=3.8)
    rates = [requested for requested, _ in stages]
    every: list[float] = []
    for p, colour in ((50.0, BLUE), (95.0, VIOLET), (99.0, ORANGE)):
        known = [
            (requested, q)
            for requested, group in stages
            if (q := group.stats["ttft_due"].at(p)) and q.value is not None
        ]
        if not known:
            continue
        latency.plot(*zip(*((x, q.value) for x, q in known), strict=True), "-", color=colour, label=f"p{p:g}")
        for x, q in known:
            face = colour if q.interval is not None else CARD
            latency.plot(x, q.value or 0.0, "o", color=colour, markerfacecolor=face, markersize=4.5)
            if q.interval is not None:
                latency.plot([x, x], [q.interval.low, q.interval.high], color=colour, lw=1, alpha=0.6)
                every += (q.interval.low, q.interval.high)
            every.append(q.value or 0.0)
    duration_axis(latency.yaxis, every, "TTFT from due")
    done.plot(rates, rates, color=MUTED, ls=":", label="requested")
    completed = [group.request_throughput for _, group in stages]
    done.plot(rates, completed, "o-", color=BLUE, label="completed", markersize=4)
    if all(group.goodput and not group.goodput.unmeasured for _, group in stages):
        good = [group.goodput.per_second or 0.0 for _, group in stages if group.goodput]
        done.plot(rates, good, "s-", color=GREEN, label="good", markersize=4)
    done.set_ylabel("requests/s")
    done.set_ylim(bottom=0)
    plain_axis(done.yaxis, 6)
    knee = limit_of(summary).knee
    for axes, label in ((latency, f"knee {knee or 0:.4g}/s"), (done, None)):
        axes.set_xlabel("requested rate, requests/s")
        if knee:
            axes.axvline(knee, color=RED, ls="--", lw=1.2, label=label)
        axes.set_xlim(left=0)
        plain_axis(axes.xaxis, 6)
        sheet.legend(axes)
    return figure


ALL: Final = "all of them"


def _goodput(sheet: Sheet, summary: Summary) -> Figure | None:
    good = summary.whole.goodput
    if good is None:
        return None
    shares = {f"{name} ≤ {good.slos[name]:g} ms": share for name, share in good.by_slo.items()}
    if good.attainment is not None:
        shares[ALL] = good.attainment
    if not shares:
        return None
    figure, (axes,) = sheet.canvas(height=0.9 + 0.38 * len(shares))
    names = list(shares)[::-1]
    axes.barh(names, [1] * len(names), color=MUTED, alpha=0.14, height=0.62)
    axes.barh(
        names,
        [shares[name] for name in names],
        height=0.62,
        color=[GREEN if name == ALL else BLUE for name in names],
    )
    for place, name in enumerate(names):
        axes.text(1.01, place, f"{100 * shares[name]:.1f} %", va="center", fontsize=10)
    axes.set_xlim(0, 1.2 if sheet.narrow else 1.09)
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.spines[["bottom", "left"]].set_visible(False)
    axes.tick_params(length=0)
    return figure


def _paired(sheet: Sheet, requests: Sequence[Measured]) -> Figure | None:
    """By order of the pair: the second request may find its prompt in a cache."""
    both = comparable_pairs(pairs_of(requests))
    result = pair_up(requests)
    known = [name for name in ("ttft", "e2el") if len(paired_differences(both, PAIRED_MEASURES[name])) >= 5]
    if not known or result is None:
        return None
    figure, panels = sheet.canvas(1, len(known), height=3.6)
    for axes, name in zip(panels, known, strict=True):
        parts = [list(paired_differences(half, PAIRED_MEASURES[name]).values) for half in pairs_by_order(both)]
        ordered = sorted(value for part in parts for value in part)
        low, high = interpolated(ordered, 0.05), interpolated(ordered, 0.95)
        room = max(high - low, 1e-6) * 0.4
        low, high = min(low, 0) - room, max(high, 0) + room
        inside = [[value for value in part if low <= value <= high] for part in parts]
        axes.hist(
            inside, bins=40, range=(low, high), stacked=True, color=[BLUE, ORANGE], alpha=0.75,
            label=["a first", "b first"],
        )  # fmt: skip
        axes.axvline(0, color=MUTED, lw=1.2)
        paired = result.measures[name]
        middle = paired.adjusted or paired.difference.at(50)
        if middle is not None and middle.value is not None and middle.interval is not None:
            axes.axvspan(middle.interval.low, middle.interval.high, color=RED, alpha=0.25, lw=0)
            axes.axvline(middle.value, color=RED, label=f"{signed(middle.value)} ms")
        sheet.legend(axes)
        outside = len(ordered) - sum(map(len, inside))
        beyond = f" ({outside} of {len(ordered)} beyond the axis)" if outside else ""
        axes.set_xlabel(f"{'TTFT' if name == 'ttft' else 'E2E'}: b − a, ms{beyond}")
        axes.set_ylabel("pairs")
        plain_axis(axes.xaxis, 5)
        plain_axis(axes.yaxis, 5)
    return figure

"""The plots of a run, drawn by matplotlib (extra `plots`). Without it `plots_available()` is false and reports
have their tables."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

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
    GREEN,
    MUTED,
    ORANGE,
    RED,
    VIOLET,
    canvas,
    legend_above,
    log_axis,
    plain_axis,
    saved,
    styled,
)
from loadgen.report.plots_share import curves, gaps_plot, share_plot
from loadgen.report.plots_time import timeline_plot
from loadgen.report.sections.loads import Point, points_of
from loadgen.report.sections.plots_engine import engine_plot, split_plot
from loadgen.report.sections.plots_pareto import pareto_plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARE: Final = "Share of requests at or below; the band shows the uncertainty from merged reads."
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
HOW_TO: Final = "For plots: pip install 'streaming-gateway[plots]', then python -m loadgen report FOLDER."


@dataclass(frozen=True)
class Plot:
    name: str
    title: str
    caption: str
    svg: bytes
    png: bytes


def plots_available() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def plots(
    run: Run, requests: Sequence[Measured], summary: Summary, beside: Mapping[str, Sequence[Point]] | None = None
) -> list[Plot]:
    """Every plot that the run has data for. `beside`: points of other runs, laid over this one's."""
    words, lines = curves(requests, summary)
    of = f"{words[0].upper()}{words[1:]}. " if words else ""
    with styled():
        figures = (
            ("sweep", "Latency against rate", "TTFT from due. Where p50 rises, the queue grows.", _sweep(summary)),
            ("pareto", "Throughput against speed", PARETO,
             pareto_plot({run.label or "this run": points_of(run, summary), **(beside or {})},
                         per_gpu=bool(run.config.get("gpus")))),
            ("paired", "Pair by pair", PAIRED, _paired(requests)),
            ("ttft", "Time to first token", of + SHARE, share_plot(lines, "ttft", "TTFT")),
            ("itl", "Between tokens", f"{of}All gaps of all streams; right: the slowest ones, which show stalls.",
             gaps_plot(lines)),
            ("e2e", "End to end", of + SHARE, share_plot(lines, "e2el", "E2E")),
            ("timeline", "Timeline", "Requests sent, responses received, and failures.", timeline_plot(requests)),
            ("engine", "The engine's own figures", ENGINE, engine_plot(run)),
            ("split", "What TTFT consists of", SPLIT, split_plot(requests)),
            ("goodput", "Goodput", "Share of attempted requests that met each objective; failures met none.",
             _goodput(summary)),
        )  # fmt: skip
        return [
            Plot(name, title, caption, saved(figure, "svg"), saved(figure, "png"))
            for name, title, caption, figure in figures
            if figure is not None
        ]


# Comparisons


def _sweep(summary: Summary) -> Figure | None:
    stages = by_rate(summary.by_stage)
    if len(stages) < 2:
        return None
    figure, (latency, done) = canvas(1, 2, height=3.8)
    rates = [requested for requested, _ in stages]
    every = []
    for p, colour in ((50.0, BLUE), (95.0, VIOLET), (99.0, ORANGE)):
        known = [
            (requested, q)
            for requested, group in stages
            if (q := group.stats["ttft_due"].at(p)) and q.value is not None
        ]
        if not known:
            continue
        x, y = [requested for requested, _ in known], [q.value or 0.0 for _, q in known]
        ends = [q.interval for _, q in known if q.interval is not None]
        latency.plot(x, y, "o-", color=colour, label=f"p{p:g}", markersize=4)
        latency.fill_between(
            x, [end.low for end in ends], [end.high for end in ends], color=colour, alpha=0.15, lw=0
        )
        every += y
    if every:
        log_axis(latency.yaxis, every)
    latency.set_ylabel("TTFT from due, ms (log)")
    done.plot(rates, rates, color=MUTED, ls=":", label="requested")
    done.plot(
        rates,
        [group.request_throughput for _, group in stages],
        "o-",
        color=BLUE,
        label="completed",
        markersize=4,
    )
    if all(group.goodput for _, group in stages):
        good = [group.goodput.per_second for _, group in stages if group.goodput]
        done.plot(rates, good, "s-", color=GREEN, label="good", markersize=4)
    done.set_ylabel("requests/s")
    done.set_ylim(bottom=0)
    plain_axis(done.yaxis)
    knee = limit_of(summary).knee
    for axes, label in ((latency, f"knee {knee or 0:.4g}/s"), (done, None)):
        axes.set_xlabel("requested rate, requests/s")
        if knee:
            axes.axvline(knee, color=RED, ls="--", lw=1.2, label=label)
        axes.set_xlim(left=0)
        plain_axis(axes.xaxis)
        legend_above(axes)
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
    """By order of the pair: the second request may find its prompt in a cache."""
    both = comparable_pairs(pairs_of(requests))
    result = pair_up(requests)
    known = [name for name in ("ttft", "e2el") if len(paired_differences(both, PAIRED_MEASURES[name])) >= 5]
    if not known or result is None:
        return None
    figure, panels = canvas(1, len(known), height=3.6)
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
        middle = paired.evened or paired.difference.at(50)
        if middle is not None and middle.value is not None and middle.interval is not None:
            axes.axvspan(middle.interval.low, middle.interval.high, color=RED, alpha=0.25, lw=0)
            axes.axvline(middle.value, color=RED, label=f"{signed(middle.value)} ms")
        legend_above(axes)
        outside = len(ordered) - sum(map(len, inside))
        beyond = f" ({outside} of {len(ordered)} beyond the axis)" if outside else ""
        axes.set_xlabel(f"{'TTFT' if name == 'ttft' else 'E2E'}: b − a, ms{beyond}")
        axes.set_ylabel("pairs")
        plain_axis(axes.xaxis)
    return figure

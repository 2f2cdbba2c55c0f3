"""The pictures of the engine's own figures: over time, and as parts of the time to the first token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from loadgen.analysis import Measured
from loadgen.record import Run
from loadgen.report.plot_style import BLUE, GREEN, MUTED, ORANGE, RED, VIOLET, Sheet, plain_axis
from loadgen.report.sections.engine import rate_series, series_of, splits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS: Final = (BLUE, ORANGE, GREEN, VIOLET)


def engine_plot(sheet: Sheet, run: Run) -> Figure | None:
    """Requests running and waiting; below them, of engines, use of the KV cache, preemptions and prefix hits."""
    sources = [source for source in run.scraped if len(source.readings) > 1]
    if not sources:
        return None
    of_engine = any(
        series_of(run, source, "kv_use")[1] or any(rate_series(run, source, "prefix_queries")[1])
        for source in sources
    )
    if of_engine:
        figure, (requests, kv, events) = sheet.canvas(3, 1, height=6.0, sharex=True)
    else:
        figure, (requests,) = sheet.canvas(height=2.4)
        kv = events = requests
    for source, colour in zip(sources, COLOURS, strict=False):
        for name, style in (("running", "-"), ("waiting", ":")):
            at, values = series_of(run, source, name)
            if values:
                requests.step(at, values, style, where="post", color=colour, lw=1.4, label=f"{source.name} {name}")
        at, values = series_of(run, source, "kv_use")
        if values:
            kv.step(at, [100 * value for value in values], where="post", color=colour, lw=1.4, label=source.name)
        at, values = rate_series(run, source, "preemptions")
        if values:
            events.step(at, values, where="post", color=RED, lw=1.4, label=f"{source.name} preemptions/s")
        at, queries = rate_series(run, source, "prefix_queries")
        _, hits = rate_series(run, source, "prefix_hits")
        if any(queries):
            shares = [100 * hit / query if query else 0.0 for hit, query in zip(hits, queries, strict=False)]
            kv.step(at, shares, ":", where="post", color=MUTED, lw=1.4, label=f"{source.name} prefix hits")
    panels = [
        (requests, "requests in the engine"),
        (kv, "KV cache in use, and prefix hits, %"),
        (events, "preemptions/s"),
    ]
    for axes, title in panels if of_engine else panels[:1]:
        axes.set_title(title)
        axes.set_ylim(bottom=0)
        plain_axis(axes.yaxis)
        if axes.get_legend_handles_labels()[0]:
            sheet.legend(axes, right=True, columns=3)
    events.set_xlabel("seconds since the run's start")
    return figure


def split_plot(sheet: Sheet, requests: Sequence[Measured]) -> Figure | None:
    """TTFT as a sum, for requests from the fastest tenth to the slowest."""
    parts = splits(requests)
    if len(parts) < 2:
        return None
    figure, (axes,) = sheet.canvas(height=3.6)
    names = [f"{100 * place // len(parts)}–{100 * (place + 1) // len(parts)} %" for place in range(len(parts))]
    bottom = [0.0] * len(parts)
    for label, colour, values in (
        ("network and front", MUTED, [max(part.network, 0.0) for part in parts]),
        ("queue", ORANGE, [part.queue for part in parts]),
        ("prefill", BLUE, [part.prefill for part in parts]),
    ):
        axes.bar(names, values, bottom=bottom, color=colour, width=0.7, label=label)
        bottom = [low + value for low, value in zip(bottom, values, strict=True)]
    axes.set_xlabel("requests by TTFT, the fastest first")
    axes.set_ylabel("TTFT, ms")
    plain_axis(axes.yaxis)
    sheet.legend(axes)
    return figure

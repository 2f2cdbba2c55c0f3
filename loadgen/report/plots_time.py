"""The plot of a run over time: arrivals, requests in flight, tokens, latency and failures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from loadgen.analysis import SECOND, Measured, bin_timeline
from loadgen.report.plot_style import BLUE, GREEN, MUTED, ORANGE, RED, Sheet, duration_axis, plain_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_DOTS: Final = 600
"""Requests drawn as dots; of more, every k-th is drawn."""


def timeline_plot(sheet: Sheet, requests: Sequence[Measured]) -> Figure | None:
    if len(requests) < 2:
        return None
    line = bin_timeline(requests)
    at = [place * line.width_s for place in range(len(line.due))]
    figure, (arrivals, flight, tokens, latency) = sheet.canvas(
        4, 1, height=7.2, sharex=True, height_ratios=[1, 1, 1, 1.7]
    )
    arrivals.step(at, line.due, where="post", color=MUTED, ls=":", label="due", lw=1.4)
    arrivals.step(at, line.sent, where="post", color=BLUE, label="sent", lw=1.4)
    arrivals.set_title("requests/s")
    sheet.legend(arrivals, right=True)
    arrivals.margins(x=0.01)
    flight.fill_between(at, line.in_flight, step="post", color=BLUE, alpha=0.25, lw=0)
    flight.step(at, line.in_flight, where="post", color=BLUE, lw=1.4)
    flight.set_title("in flight")
    tokens.fill_between(at, line.tokens, step="post", color=GREEN, alpha=0.25, lw=0)
    tokens.step(at, line.tokens, where="post", color=GREEN, lw=1.4)
    tokens.set_title("output tokens/s")
    plain_axis(latency.xaxis, 6)
    for axes in (arrivals, flight, tokens):
        axes.set_ylim(bottom=0)
        plain_axis(axes.yaxis, 3)
    _dots(sheet, latency, requests, line.start_ns)
    latency.set_xlabel("seconds since the first request was due")
    return figure


def _dots(sheet: Sheet, axes: Axes, requests: Sequence[Measured], start: int) -> None:
    streams = any(request.ttft is not None for request in requests)
    done = [request for request in requests if request.completed]
    drawn = done[:: -(-len(done) // MAX_DOTS) or 1]
    everything: list[float] = []
    sides = {request.target for request in drawn} == {"a", "b"}
    groups: tuple[tuple[str, str | None, Callable[[Measured], bool]], ...] = (
        (ORANGE, None, lambda request: request.fresh and not sides),
        (BLUE, "a", lambda request: request.fresh and sides and request.target == "a"),
        (ORANGE, "b", lambda request: request.fresh and sides and request.target == "b"),
        (GREEN, "shared", lambda request: not request.fresh),
    )
    for colour, label, belongs in groups:
        points = [
            ((request.due_ns - start) / SECOND, value)
            for request in drawn
            if belongs(request) and (value := _from_due(request, streams)) is not None
        ]
        if points:
            x, y = zip(*points, strict=True)
            axes.scatter(x, y, s=16 if len(drawn) < 300 else 7, color=colour, alpha=0.6, lw=0, label=label)
            everything += y
    if everything:
        duration_axis(axes.yaxis, everything, "TTFT" if streams else "E2E")
    failed = [(r.over_ns or r.due_ns) for r in requests if not r.completed and not r.cancelled]
    for place, moment in enumerate(failed[:: -(-len(failed) // 200) or 1]):
        label = f"failed ({len(failed):,})" if place == 0 else None
        axes.axvline((moment - start) / SECOND, color=RED, lw=1, alpha=0.6, label=label)
    if failed or sides or not all(request.fresh for request in drawn):
        sheet.legend(axes, right=True)
    axes.set_title(f"{'TTFT' if streams else 'E2E'} from due")


def _from_due(request: Measured, streams: bool) -> float | None:
    if not streams:
        return request.e2e_due
    return request.ttft_due.value if request.ttft_due is not None else None

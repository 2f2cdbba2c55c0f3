"""The picture of throughput against speed: tokens per second of each GPU against those of each user, for several
runs if others are laid over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from loadgen.report.plot_style import BLUE, GREEN, ORANGE, RED, VIOLET, Sheet, plain_axis
from loadgen.report.sections.by_load import Point, frontier

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = (BLUE, ORANGE, GREEN, VIOLET, RED)


def pareto_plot(sheet: Sheet, runs: Mapping[str, Sequence[Point]], *, per_gpu: bool) -> Figure | None:
    """One line through the best points of each run; the others are pale. None with fewer than two points."""
    known = {label: points for label, points in runs.items() if points}
    if sum(map(len, known.values())) < 2:
        return None
    figure, (axes,) = sheet.canvas(height=4.2)
    for number, (label, points) in enumerate(known.items()):
        colour = COLOURS[number % len(COLOURS)]
        best = frontier(points)
        others = [point for point in points if point not in best]
        axes.scatter(
            [point.user for point in others], [point.gpu for point in others], s=18, color=colour, alpha=0.35
        )
        axes.plot(
            [point.user for point in best],
            [point.gpu for point in best],
            "o-",
            color=colour,
            label=label,
            markersize=4,
        )
        if len(known) == 1:
            for point in best:
                axes.annotate(
                    point.name, (point.user, point.gpu), textcoords="offset points", xytext=(6, 4), fontsize=8
                )
    axes.set_xlabel("output tokens/s of one user (median)")
    axes.set_ylabel(f"output tokens/s {'of a GPU' if per_gpu else 'of all users'}")
    everything = [point for points in known.values() for point in points]
    axes.set_xlim(0, 1.15 * max(point.user for point in everything))
    axes.set_ylim(0, 1.12 * max(point.gpu for point in everything))
    plain_axis(axes.xaxis)
    plain_axis(axes.yaxis)
    if len(known) > 1:
        sheet.legend(axes)
    return figure

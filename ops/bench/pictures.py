"""Owns the pictures of comparisons, in loadgen's style: medians of the rounds in bands from the least to the most.
Must not know what was measured.
Called by the reports of the comparisons. Without matplotlib (extra `plots`) there are none."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from loadgen.report.plot_style import BLUE, GREEN, MUTED, ORANGE, RED, VIOLET, canvas, file_svg, saved, styled
from loadgen.report.plots import plots_available

COLOURS: Final = (RED, ORANGE, BLUE, GREEN, VIOLET)


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    across: str  # what the steps are
    steps: Mapping[float, str]  # and each one's name, in order
    ways: Mapping[str, Mapping[float, Sequence[float]]]  # of each way, at each step, the rounds' values
    bound: tuple[float, str] | None = None  # a line across, and its name


def picture(panels: Sequence[Panel]) -> bytes | None:
    """Side by side, as one SVG; a way has one colour in all of them. None without matplotlib."""
    if not plots_available():
        return None
    colours = dict(zip(dict.fromkeys(way for panel in panels for way in panel.ways), COLOURS, strict=False))
    with styled():
        figure, axes = canvas(1, len(panels), height=3.8)
        handles = {}
        for one, panel in zip(axes, panels, strict=True):
            at = {step: place for place, step in enumerate(panel.steps)}
            for way, values in panel.ways.items():
                steps = [step for step in panel.steps if step in values]
                places, colour = [at[step] for step in steps], colours[way]
                middle = [statistics.median(values[step]) for step in steps]
                (handles[way],) = one.plot(places, middle, "o-", color=colour)
                least, most = ([end(values[step]) for step in steps] for end in (min, max))
                one.fill_between(places, least, most, color=colour, alpha=0.15, linewidth=0)
            if panel.bound is not None:
                one.axhline(panel.bound[0], color=MUTED, linestyle=":", linewidth=1)
                place = (len(at) - 1, panel.bound[0])
                one.annotate(panel.bound[1], place, color=MUTED, ha="right", va="bottom", fontsize=9)
            one.set_title(panel.title)
            one.set_xlabel(panel.across)
            one.set_xticks(range(len(at)), list(panel.steps.values()))
            one.set_ylim(bottom=0)
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
        return file_svg(saved(figure, "svg"))

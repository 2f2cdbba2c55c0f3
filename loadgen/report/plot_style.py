"""How plots look: palette, type, axes; and how an SVG becomes part of a page or a file. matplotlib's global state
is left as it was."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from math import ceil, floor, log10
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, CARD = "#1f2430", "#6a7180", "#dfe3ea", "#ffffff"
BLUE, ORANGE, GREEN, RED, VIOLET = "#2864d8", "#c9720a", "#0c8a63", "#cf2f3c", "#7a4fd0"
VARIABLES: Final = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    CARD: "var(--card)",
    BLUE: "var(--blue)",
    ORANGE: "var(--orange)",
    GREEN: "var(--green)",
    RED: "var(--red)",
    VIOLET: "var(--violet)",
}
"""Each colour of a plot and the page's variable for it, so that a plot follows the page's dark mode."""

_STEPS: Final = (
    (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0),
    (1.0, 2.0, 3.0, 5.0, 7.0),
    (1.0, 2.0, 5.0),
    (1.0, 3.0),
    (1.0,),
)
"""Steps of a decade that may get a label, the closest first."""
CLOSE: Final = 3.0
"""A ratio of the largest to the smallest value below which steps of a decade are too few: ticks are even then."""
SECONDS_FROM: Final = 10_000.0  # milliseconds of the largest value from which an axis may be in seconds
_CHARACTER: Final = 0.085  # inches of a label's character
_LINE: Final = 0.32  # inches between two labels of a vertical axis

WIDTH: Final = 9.6  # inches; the page shows it at about 100 pixels an inch
NARROW_LEGEND: Final = 7.5  # points: a curve's name with three percentiles
NARROW: Final = 4.3  # inches; for a page of about 400 pixels
_STYLE: Final = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],
    "font.size": 10,
    "svg.fonttype": "none",  # text stays text: searchable, and in the page's colour
    "svg.hashsalt": "loadgen",  # the same data gives the same bytes
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
}


@contextmanager
def styled() -> Iterator[None]:
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        yield


@dataclass(frozen=True)
class Sheet:
    """What a plot is drawn on: a wide page, or a narrow one, on which panels stand below each other."""

    narrow: bool = False

    def canvas(
        self, rows: int = 1, columns: int = 1, *, height: float = 3.6, **more: Any
    ) -> tuple[Figure, list[Axes]]:
        from matplotlib.figure import Figure

        size = (WIDTH, height)
        if self.narrow:
            size = (NARROW, 0.85 * height * columns if columns > 1 else min(height, 0.3 + height * 0.9))
            rows, columns = rows * columns, 1
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **more)
        return figure, list(axes.flat)

    def legend(self, axes: Axes, *, right: bool = False, columns: int = 4) -> None:
        """The legend above the axes, where it covers no curve; `columns` below 4 for long labels."""
        size = None
        if self.narrow:
            columns, size = 2 if columns == 4 else 1, NARROW_LEGEND
        if right:
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=columns, borderaxespad=0.2, fontsize=size)
        else:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2, fontsize=size)


def canvas(rows: int = 1, columns: int = 1, *, height: float = 3.6, **more: Any) -> tuple[Figure, list[Axes]]:
    return Sheet().canvas(rows, columns, height=height, **more)


def saved(figure: Figure, form: str) -> bytes:
    """The layout is done once: with a layout engine, each `savefig` does it again and draws everything twice."""
    if (layout := figure.get_layout_engine()) is not None:
        layout.execute(figure)
        figure.set_layout_engine(None)
    into = BytesIO()
    metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
    colour = "white" if form == "png" else "none"
    figure.savefig(into, format=form, metadata=metadata, facecolor=colour, dpi=110)
    if form != "svg":
        return into.getvalue()
    return _NAMES.sub(b"<g", _INDENTS.sub(b"><", _COORDINATES.sub(_rounded, into.getvalue())))


_COORDINATES: Final = re.compile(rb' (?:d|x|y)="[^"]*"')
_INDENTS: Final = re.compile(rb">\s+<")
_NAMES: Final = re.compile(rb'<g id="[^"]*"')  # to which nothing refers
_LONG: Final = re.compile(rb"(\d)(\.\d)\d+")


def _rounded(number: re.Match[bytes]) -> bytes:
    """To a tenth of a point, on one line: invisible, and the page is a third smaller."""
    return _LONG.sub(rb"\1\2", number[0]).replace(b".0 ", b" ").replace(b"\n", b"")


_PROLOGUE: Final = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_METADATA: Final = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_ID: Final = re.compile(r'(?P<before>\bid="|href="#|url\(#)(?P<id>[^")]+)')


def file_svg(svg: bytes) -> bytes:
    """As a separate file, on white."""
    return svg.replace(b"<svg ", b'<svg style="background: #fff" ', 1)


def inline_svg(svg: bytes, name: str, title: str) -> str:
    """As part of a page: no prologue, no metadata, unique ids, the page's colours."""
    text = _METADATA.sub("", _PROLOGUE.sub("", svg.decode()))
    text = _ID.sub(lambda match: f"{match['before']}{name}-{match['id']}", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    return text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1).strip()


def plain_number(value: float, _: object = None) -> str:
    return f"{value:,.6g}".replace("-", "−", 1)


def duration_axis(axis: Any, values: Sequence[float], label: str) -> None:
    """Logarithmic, of milliseconds: labelled in ms, or in s where the values are long."""
    long = max(values, default=0.0) >= SECONDS_FROM and min(values) >= SECONDS_FROM / 100
    log_axis(axis, values, scale=1000.0 if long else 1.0)
    axis.set_label_text(f"{label}, {'s' if long else 'ms'} (log)")


def log_axis(axis: Any, values: Sequence[float], *, scale: float = 1.0) -> None:
    """Logarithmic, with as many labels, as plain numbers of `scale`, as there is room for."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    axis._set_axes_scale("log")
    shown = [value / scale for value in values if value > 0] or [1.0]
    ticks = ticks_between(min(shown), max(shown), _room(axis, max(shown)))
    axis.set_major_locator(FixedLocator([tick * scale for tick in ticks]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(value / scale)))
    axis.set_minor_formatter(NullFormatter())


def _room(axis: Any, largest: float) -> int:
    """How many labels fit."""
    figure, grid = axis.axes.figure, axis.axes.get_subplotspec().get_gridspec()
    if axis.axis_name == "x":
        width = 0.85 * figure.get_figwidth() / grid.ncols
        return max(int(width / (_CHARACTER * (len(plain_number(largest)) + 2.5))), 2)
    return max(int(0.75 * figure.get_figheight() / grid.nrows / _LINE), 3)


def ticks_between(low: float, high: float, most: int) -> list[float]:
    """At most about `most` round numbers that cover a logarithmic axis from `low` to `high`, all above 0."""
    from matplotlib.ticker import MaxNLocator

    if high / low < CLOSE:
        even = MaxNLocator(nbins=most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        return [float(tick) for tick in even if tick > 0]
    first, last = floor(log10(low)), ceil(log10(high))
    for steps in _STEPS:
        ticks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        inside = [tick for tick in ticks if low * 0.9 <= tick <= high * 1.1]
        if len(inside) <= most:
            return inside
    every = -(-(last - first) // most)  # even whole decades are too many
    return [10.0**power for power in range(first, last + 1, every)]


def plain_axis(axis: Any, ticks: int | None = None) -> None:
    """Linear, in plain numbers: 1,000 and 2.5, not 1000.0. `ticks`: about how many."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_formatter(FuncFormatter(plain_number))
    if ticks is not None:
        axis.set_major_locator(MaxNLocator(nbins=ticks, steps=[1, 2, 2.5, 5, 10]))

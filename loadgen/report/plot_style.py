"""How plots look: palette, type, axes; and how an SVG becomes part of a page or a file. matplotlib's global state
is left as it was."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
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
    (6, (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)),
    (30, (1.0, 2.0, 3.0, 5.0, 7.0)),
    (300, (1.0, 2.0, 5.0)),
    (float("inf"), (1.0,)),
)
"""Which steps of a decade get a label, by the ratio of the largest to the smallest value."""

WIDTH: Final = 9.6  # inches; the page shows it at about 100 pixels an inch
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


def canvas(rows: int = 1, columns: int = 1, *, height: float = 3.6, **more: Any) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **more)
    return figure, list(axes.flat)


def saved(figure: Figure, form: str) -> bytes:
    into = BytesIO()
    metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
    colour = "white" if form == "png" else "none"
    figure.savefig(into, format=form, metadata=metadata, facecolor=colour, dpi=110)
    return _COORDINATES.sub(_rounded, into.getvalue()) if form == "svg" else into.getvalue()


_COORDINATES: Final = re.compile(rb' (?:d|x|y)="[^"]*"')
_LONG: Final = re.compile(rb"(\d)(\.\d)\d+")


def _rounded(number: re.Match[bytes]) -> bytes:
    """To a tenth of a point: invisible, and the page is a third smaller."""
    return _LONG.sub(rb"\1\2", number[0]).replace(b".0 ", b" ")


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


def log_axis(axis: Any, values: Sequence[float]) -> None:
    """Logarithmic, with as many labels per decade, as plain numbers, as the range leaves room for."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis._set_axes_scale("log")
    shown = [value for value in values if value > 0]
    reach = max(shown) / min(shown) if shown else 1.0
    steps = next(steps for most, steps in _STEPS if reach <= most)
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(plain_number))
    axis.set_minor_formatter(NullFormatter())


def plain_axis(axis: Any) -> None:
    """Linear, in plain numbers: 1,000 and 2.5, not 1000.0."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(plain_number))


def legend_above(axes: Axes, *, right: bool = False, columns: int = 4) -> None:
    """The legend above the axes, where it covers no curve."""
    if right:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=columns, borderaxespad=0.2)
    else:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2)


def mark(axes: Axes, x: float, y: float, text: str, colour: str, *, left: bool = False) -> None:
    """A dot with a label beside it."""
    axes.plot([x], [y], "o", color=colour, markersize=4.5)
    place = (-6, 6) if left else (8, -10)
    align = "right" if left else "left"
    axes.annotate(text, (x, y), textcoords="offset points", xytext=place, color=colour, fontsize=9, ha=align,
                  bbox={"facecolor": CARD, "edgecolor": "none", "alpha": 0.8, "pad": 0.8})  # fmt: skip

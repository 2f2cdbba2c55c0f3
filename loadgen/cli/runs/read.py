"""A finished run from its folder, or a result of another load generator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from loadgen.analysis import Bounds, Measured, Summary, summarise_measured
from loadgen.cli.report import load, slos_of
from loadgen.errors import StoreError
from loadgen.record import Run
from loadgen.report import REPEATS, flat_metrics, read_foreign, read_repeats, result_json
from loadgen.store import RUN, read_run


class Side(NamedTuple):
    """One run. Without single requests there is no summary, and the values are those of its file."""

    name: str
    run: Run
    summary: Summary | None
    requests: list[Measured]
    values: dict[str, float | None]
    intervals: Mapping[str, Bounds] = {}  # of the mean over several runs of one load


def _repeated(path: Path) -> Side:
    """The folder of `run --repeat`: means over the runs."""
    try:
        figures = read_repeats((path / REPEATS).read_bytes())
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StoreError(f"{path / REPEATS}: {error}") from None
    run = read_run(path / "run-1")
    return Side(
        name=str(path),
        run=run,
        summary=None,
        requests=[],
        values={figure.metric: figure.mean for figure in figures},
        intervals={figure.metric: Bounds(figure.low, figure.high) for figure in figures},
    )


def read_side(path: Path) -> Side:
    """Read a run from its raw events, so that the same definitions apply whatever version ran it; a file in its
    folder stands for the folder. Anything else is another tool's result."""
    folder = path.parent if path.is_file() and (path.parent / RUN).exists() else path
    if not folder.exists():
        raise StoreError(f"{path}: No such file or directory")
    if folder.is_dir() and (folder / RUN).exists():
        run = read_run(folder)
        requests, summary = load(folder, run, slos_of(run.config))
        return Side(str(path), run, summary, requests, flat_metrics(result_json(run, summary)))
    if (folder / REPEATS).exists():
        return _repeated(path)
    foreign = read_foreign(path)
    if not foreign.requests:
        return Side(str(path), foreign.run, None, [], dict(foreign.values))
    measured = summarise_measured(foreign.run, foreign.requests)
    values = flat_metrics(result_json(foreign.run, measured))
    return Side(str(path), foreign.run, measured, foreign.requests, values)

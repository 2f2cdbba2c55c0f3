"""`python -m loadgen report`: the reports of a run again from its raw events, so that old runs gain from new
definitions."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from loadgen.analysis import (
    BadGoodput,
    Measured,
    Summary,
    in_order,
    measure_records,
    parse_goodput,
    summarise_measured,
)
from loadgen.errors import StoreError
from loadgen.record import Run
from loadgen.report import Files, Point, points_of, report_of, write_report
from loadgen.store import read_records, read_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="folder of a run, with events.jsonl and run.json"
    )
    parser.add_argument("--out", type=Path, help="folder for the reports (default: the run's own)")
    parser.add_argument(
        "--beside",
        type=Path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="other runs to lay over this one in the picture of throughput against speed",
    )
    parser.add_argument("--goodput", nargs="+", metavar="NAME:MS", help="objectives instead of the run's")
    parser.add_argument(
        "--definitions",
        choices=("loadgen", "vllm"),
        default="loadgen",
        help="vllm: the role chunk is the first token, chunks are counted, the last one with choices is the end",
    )


def main(args: argparse.Namespace, words: Sequence[str] = ()) -> int:
    """0; 1 if a file could not be written; 2 for a folder or an objective that cannot be used."""
    try:
        run = read_run(args.folder)
        slos = parse_goodput(args.goodput) if args.goodput else slos_of(run.config)
        requests, summary = load(args.folder, run, slos, args.definitions)
        beside = dict(map(_points, args.beside))
        files = Files(args.out or args.folder)
        write_report(report_of(run, requests, summary), files, beside)
    except (StoreError, BadGoodput) as error:
        return refuse(str(error))
    print("\n".join(map(str, files.paths)))
    for lost in files.lost:
        print(f"loadgen: could not write {lost}", file=sys.stderr)
    return 1 if files.lost else 0


def _points(folder: Path) -> tuple[str, list[Point]]:
    """Another run's name and points. Raises StoreError, and BadGoodput."""
    run = read_run(folder)
    _, summary = load(folder, run, slos_of(run.config))
    points = points_of(run, summary)
    if not points:
        raise StoreError(f"{folder}: has no stages with output tokens; give the folder of a sweep")
    return run.label or folder.name, points


def main_report(argv: Sequence[str]) -> int:
    """`main` from its command line."""
    parser = argparse.ArgumentParser(prog="python -m loadgen report", description=main.__doc__)
    add_arguments(parser)
    return main(parser.parse_args(list(argv)), argv)


def load(
    folder: Path, run: Run, slos: Mapping[str, float] | None = None, definitions: Any = "loadgen"
) -> tuple[list[Measured], Summary]:
    """A run's requests and their summary, from its events. Raises StoreError."""
    everything = measure_records(read_records(folder), definitions)
    try:
        summary = summarise_measured(run, everything, slos, definitions=definitions)
    except msgspec.ValidationError as error:  # the limit that a sweep found is in its configuration
        raise StoreError(f"{folder}: not a run: config.limit: {error}") from None
    return in_order(everything), summary


def slos_of(config: Mapping[str, Any]) -> dict[str, float]:
    """The run's objectives in milliseconds. Raises BadGoodput."""
    objectives = config.get("goodput") or ()
    if isinstance(objectives, Mapping):
        objectives = [f"{name}:{limit}" for name, limit in objectives.items()]
    words = [objectives] if isinstance(objectives, str) else objectives
    if not isinstance(words, Sequence) or not all(isinstance(word, str) for word in words):
        raise BadGoodput(f"the run's objectives are none: {objectives!r:.60}")
    return parse_goodput(words)


def refuse(message: str) -> int:
    print(f"loadgen: {message}", file=sys.stderr)
    return 2

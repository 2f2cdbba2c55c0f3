"""`python -m loadgen export`: runs as CSV, one row for each run, or one for each request."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from loadgen.analysis import SECOND, BadGoodput, Measured, Span
from loadgen.cli.report import refuse
from loadgen.cli.runs.read import Side, read_side
from loadgen.errors import StoreError
from loadgen.report import flat_metrics, result_json

FORMULAS: Final = ("=", "+", "-", "@", "\t", "\r")
"""First characters that a spreadsheet takes for a formula; servers' texts may begin with them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="folder of a run, or a result of vLLM, GuideLLM or AIPerf",
    )
    parser.add_argument("--requests", action="store_true", help="one row for each request instead of each run")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: stdout")


def main(args: argparse.Namespace, words: Sequence[str] = ()) -> int:
    """0; 2 for a run that cannot be read, or a file that cannot be written."""
    try:
        sides = [read_side(path) for path in args.runs]
        if args.requests:
            rows = [row for side in sides for row in request_rows(side)]
        else:
            rows = [run_row(side) for side in sides]
        if args.out is None:
            write(sys.stdout, rows)
        else:
            with args.out.open("w", newline="") as file:
                write(file, rows)
    except (StoreError, BadGoodput) as error:
        return refuse(str(error))
    except OSError as error:
        return refuse(f"{args.out or 'stdout'}: {error.strerror or error}")
    return 0


def write(file: IO[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """One column for each name that any row has, in the order of their first use."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_cell(row.get(name)) for name in names] for row in rows)


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(FORMULAS):
        return f"'{value}"
    return "" if value is None else value


def run_row(side: Side) -> dict[str, Any]:
    """What was run, and its figures by their names in result.json."""
    run = side.run
    values: Mapping[str, float | None] = side.values
    rate = run.config.get("request_rate")
    if side.summary is not None:
        result = result_json(run, side.summary, requests=side.requests)
        values, rate = flat_metrics(result), result["request_rate"]
    return {
        "run": side.name,
        "date": run.date,
        "label": run.label,
        "model": run.model,
        "endpoint": run.endpoint,
        "server": " ".join(run.targets.values()),
        "measured_by": run.config.get("measured_by", "loadgen"),
        "invalid": "; ".join(run.invalid),
        "stopped": run.stopped,
        "interrupted": int(run.interrupted),
        "request_rate": rate,
        **_texts(run.config.get("metadata")),
        **values,
    }


def _texts(metadata: Any) -> dict[str, str]:
    return {str(name): str(value) for name, value in metadata.items()} if isinstance(metadata, Mapping) else {}


def request_rows(side: Side) -> Iterator[dict[str, Any]]:
    """Each request in the order of its due time; times in seconds since the run's start. Raises StoreError."""
    if side.summary is None:
        raise StoreError(f"{side.name}: has no single requests")
    for request in side.requests:
        yield {
            "run": side.name,
            "index": request.index,
            "target": request.target,
            "stage": request.stage,
            "due_s": request.due_ns / SECOND,
            "sent_s": _seconds(request.sent_ns),
            "end_s": _seconds(request.end_ns),
            "status": request.status,
            "failure": request.failure or "",
            "detail": request.detail,
            "cache": request.shared or "",
            "queued_ms": request.queued,
            "ttft_ms": _value(request.ttft),
            "tpot_ms": _value(request.tpot),
            "mean_itl_ms": _mean(request),
            "max_itl_ms": max(request.itl.values) if request.itl and request.itl.values else None,
            "e2el_ms": request.e2e,
            "input_tokens": request.prompt_tokens,
            "output_tokens": request.output_tokens,
            "cached_tokens": request.cached_tokens,
        }


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / SECOND


def _value(span: Span | None) -> float | None:
    return None if span is None else span.value


def _mean(request: Measured) -> float | None:
    gaps: Iterable[float] = request.itl.values if request.itl else ()
    values = list(gaps)
    return sum(values) / len(values) if values else None

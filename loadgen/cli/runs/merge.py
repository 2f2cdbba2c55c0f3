"""`python -m loadgen merge`: the shares of a run on several machines as one, where machine 0 could not do it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import msgspec

from loadgen.cli import finish
from loadgen.cli.report import refuse
from loadgen.cli.runs.machines import merged_records
from loadgen.drive import WorkerError
from loadgen.errors import StoreError, UsageError
from loadgen.record import Run, Share
from loadgen.spec import Limits
from loadgen.store import read_records, read_run

OWN = ("machine", "meet", "result_dir", "unique_salt", "label", "host", "quiet")
"""Settings in which the machines of one run may differ."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shares", type=Path, nargs="+", metavar="FOLDER", help="each machine's folder of the run")
    parser.add_argument("--result-dir", default="out", metavar="DIR", help="where the run's folder is created")
    parser.add_argument("--label", default="merged", help="the run's name")


def main(args: argparse.Namespace, words: Sequence[str] = ()) -> int:
    """As `run`'s; 2 for folders that are not the shares of one run."""
    try:
        runs = check_shares([(path, read_run(path)) for path in args.shares])
        records = [list(read_records(path)) for path, _ in runs]
        folder = finish.make_folder(args.result_dir, args.label, finish.now())
        run = runs[0][1]
        everything = merged_records(records, folder)
    except (StoreError, UsageError) as error:
        return refuse(str(error))
    errors = [msgspec.convert(share_of(one).worker_error, WorkerError) for _, one in runs]
    run.workers, run.share = len(runs), None
    run.interrupted = any(one.interrupted for _, one in runs)
    run.stopped = next((one.stopped for _, one in runs if one.stopped), "")
    run.warnings.append(
        "merged without machine 0's second comparison of clocks: how far the machines' times agree is not known"
    )
    open_loop = run.config.get("request_rate") not in (None, "inf")
    finish.judge(run, everything, errors, Limits(), open_loop=open_loop)
    reported = finish.report(folder, run, everything, run.config.get("goodput"))
    return finish.exit_code(run, everything, run.config.get("max_error_rate") or 0.0, lost=reported.lost)


def share_of(run: Run) -> Share:
    """Raises UsageError."""
    if run.share is None:
        raise UsageError("a folder is a whole run, not a machine's share of one")
    return run.share


def check_shares(runs: Sequence[tuple[Path, Run]]) -> list[tuple[Path, Run]]:
    """By machine. Raises UsageError unless they are all the shares of one run, each once."""
    shares = [(share_of(run), path, run) for path, run in runs]
    first = shares[0][0]
    for share, path, run in shares:
        if (share.run, share.machines) != (first.run, first.machines):
            raise UsageError(f"{path} is of another run than {shares[0][1]}")
        different = [
            name for name, value in run.config.items() if name not in OWN and value != runs[0][1].config.get(name)
        ]
        if different:
            raise UsageError(f"{path} was run with other flags than {shares[0][1]}: {', '.join(different)}")
    numbers = [share.machine for share, _, _ in shares]
    twice = sorted({number for number in numbers if numbers.count(number) > 1})
    missing = sorted(set(range(first.machines)) - set(numbers))
    if twice or missing:
        raise UsageError(
            f"of {first.machines} machines"
            + (f", {', '.join(map(str, twice))} twice" if twice else "")
            + (f", {', '.join(map(str, missing))} missing" if missing else "")
        )
    return [(path, run) for _, path, run in sorted(shares, key=lambda one: one[0].machine)]

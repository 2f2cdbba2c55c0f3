"""`run --repeat K`: the same load K times, and each figure's interval over the runs."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from loadgen.analysis import count
from loadgen.cli.finish import silent
from loadgen.errors import UsageError
from loadgen.report import Files, repeats_json, repeats_table, spreads_of

INTERRUPTED: Final = 130
FAILED: Final = 1
WORST: Final = (FAILED, 3)  # exit codes that a repeat's own overrides, the worse one first


def check_repeat(args: argparse.Namespace) -> None:
    """Raises UsageError for flags that would have each run overwrite the last one's file."""
    if args.repeat > 1 and args.save_result and not args.append_result:
        raise UsageError("--repeat writes several results: give --append-result instead of --save-result")


class Once(NamedTuple):
    """How one run ended."""

    code: int
    result: dict[str, Any] | None = None  # result.json


async def repeat(args: argparse.Namespace, folder: Path, once: Callable[[Path], Awaitable[Once]]) -> int:
    """Run `once` for each run's folder, with a new seed and a new salt for each run; the exit code of the worst.

    Ctrl-C ends the run, which is then in no figure of the repeats, and the repeats.
    """
    seed, salt = args.seed, args.unique_salt
    codes: list[int] = []
    results: dict[str, dict[str, Any]] = {}
    folders = [folder / f"run-{number}" for number in range(1, args.repeat + 1)]
    for number, place in enumerate(folders):
        if not silent(args):
            print(f"run {number + 1} of {args.repeat}", file=sys.stderr)
        args.seed = seed + number
        args.unique_salt = salt if salt is None else f"{salt}-{number}"
        with contextlib.suppress(OSError):  # a full disk costs files and no figures
            place.mkdir()
        code, result = await once(place)
        codes.append(code)
        if code == INTERRUPTED:
            break
        if result is not None:
            results[place.name] = result
    spreads = spreads_of(list(results.values()))
    table = [f"# {count(len(results), 'run')} of the same load", "", *repeats_table(spreads)]
    files = Files(folder)
    files.write("repeats.md", ("\n".join(table) + "\n").encode())
    files.write("repeats.json", repeats_json(spreads, list(results)))
    if not silent(args):
        print("\n".join(table), file=sys.stderr if args.json else sys.stdout)
    for text in files.lost:
        print(f"could not write {text}", file=sys.stderr)
    if not silent(args):
        print(f"written to {folder}", file=sys.stderr)
    return worst([*codes, *([FAILED] if files.lost else [])])


def worst(codes: list[int]) -> int:
    if INTERRUPTED in codes:
        return INTERRUPTED
    return next((code for code in WORST if code in codes), max(codes, default=0))

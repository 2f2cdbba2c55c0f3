"""Owns the trial of one mutant: the tests that reach it, the closest first, until one fails twice or time is out.
Must not know samples or what is equivalent. A failure counts when the same test fails again alone, so a test that
failed by its timing does not. Called by __main__.py."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ops.mutation.mutants import Mutant
from ops.mutation.reach import MARKERS, Index, run, within
from ops.mutation.recorder import RESULT, function_of

NEAR: Final = 12.0  # seconds of tests that run first: those of the module's own test files
PATIENCE: Final = 15.0  # seconds that a run may take beyond four times what its tests take without the mutation


@dataclass(frozen=True, slots=True)
class Verdict:
    outcome: str  # killed, timeout, survived
    by: str  # the test that fails, or what ran
    seconds: float


@dataclass(frozen=True, slots=True)
class Run:
    status: int | None
    failed: Sequence[str]
    hung: bool


def trial(copy: Path, mutant: Mutant, index: Index, budget: float) -> Verdict:
    """Write the mutant into the copy of the tree, try it, and take it out again."""
    path = copy / mutant.module
    before = path.read_text()
    path.write_text(mutant.source)
    started = time.monotonic()
    try:
        outcome, by = _outcome(copy, mutant, index, budget)
        return Verdict(outcome, by, round(time.monotonic() - started, 1))
    finally:
        path.write_text(before)


def _outcome(copy: Path, mutant: Mutant, index: Index, budget: float) -> tuple[str, str]:
    names = index.reaching(mutant.lines, mutant.module)
    if not names:
        return "survived", "no test reaches it"
    first = list(within(names, index.seconds, NEAR))
    rest = list(within((name for name in names if name not in first), index.seconds, budget)) if budget else []
    for part in (first, rest):
        left = part
        while left:
            result = _tests(copy, left, index)
            if result.hung or result.status is None:
                return "timeout", result.failed[0] if result.failed else left[0]
            if result.status in (0, 5):
                break
            if not result.failed:
                return "killed", "no test can be collected"
            again = _tests(copy, result.failed[:1], index)
            if again.status != 0:
                return "killed", result.failed[0]
            left = left[_place(left, result.failed[0]) + 1 :]
    return "survived", f"{len(first) + len(rest)} of {len(names)} tests that reach it"


def _place(names: Sequence[str], function: str) -> int:
    file = function.partition("::")[0]
    return names.index(function) if function in names else names.index(f"{file}::")


def _tests(copy: Path, names: Sequence[str], index: Index) -> Run:
    """The named functions, and whole files for names without one, until the first failure."""
    seconds = [index.seconds.get(name, PATIENCE) for name in names]
    with tempfile.TemporaryDirectory() as place:
        result, chosen = Path(place, "result.json"), Path(place, "chosen")
        chosen.write_text("\n".join(name.removesuffix("::") for name in names))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "ops.mutation.recorder"]
        command += ["-p", "no:cacheprovider", "-o", f"timeout={max(PATIENCE, 4 * max(seconds)):.0f}"]
        command += ["-m", MARKERS, f"@{chosen}"]
        environment = os.environ | {RESULT: str(result), "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            status, output = run(command, copy, environment, PATIENCE + 4 * sum(seconds))
        finally:
            _end_children(copy)
        failed = json.loads(result.read_text())["failed"] if result.exists() else []
        return Run(status, [function_of(name) for name in failed], "Timeout (>" in output)


def _end_children(copy: Path) -> None:
    """End what a test started in another session, where the mutant kept the test from ending it."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if Path(os.readlink(entry / "cwd")).is_relative_to(copy):
                    os.kill(int(entry.name), signal.SIGKILL)

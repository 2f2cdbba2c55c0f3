"""Tries one mutant: the tests that reach it, the closest first, until one fails or time is up. A failure counts if
the same test alone passes without the mutation and fails again with it: a failure of timing does not."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ops.mutation.mutants import Mutant
from ops.mutation.reach import MARKERS, Index, within
from ops.mutation.recorder import RESULT, function_of
from ops.mutation.server import OUTPUT, Pytests
from ops.mutation.warm import UNABLE, Warm

NEAR: Final = 12.0  # seconds of tests that run first: those of the module's own test files
QUICK: Final = (
    0.05  # seconds; a test of the module itself that takes less does not wait, so it does not fail by timing
)
START: Final = 30.0  # seconds that a run may take on top of four times the duration of its tests
WARM_START: Final = 8.0  # the same in a process that has collected the tests
HANGS: Final = 15.0  # seconds after which a test counts as hung, or four times its duration if that is more


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


@dataclass(frozen=True, slots=True)
class Ground:
    """The copy of the tree in which mutants are tried, its tests, and what each reaches."""

    copy: Path
    tests: Pytests
    index: Index
    warm: Warm | None = None  # runs what it can; `tests` runs the rest


def trial(on: Ground, mutant: Mutant, budget: float) -> Verdict:
    """Write the mutant into the copy of the tree, try it, and restore the module."""
    started = time.monotonic()
    with _written(on.copy / mutant.module, mutant.source):
        outcome, by = _outcome(on, mutant, budget)
    return Verdict(outcome, by, round(time.monotonic() - started, 1))


@contextmanager
def _written(path: Path, source: str) -> Iterator[None]:
    before = path.read_text()
    path.write_text(source)
    try:
        yield
    finally:
        path.write_text(before)


def _outcome(on: Ground, mutant: Mutant, budget: float) -> tuple[str, str]:
    index = on.index
    names = index.reaching(mutant.lines, mutant.module)
    if not names:
        return "survived", "no test reaches it"
    first = list(within(names, index.seconds, NEAR))
    rest = list(within((name for name in names if name not in first), index.seconds, budget)) if budget else []
    for part in (first, rest):
        left = part
        while left:
            result = _tests(on, mutant.module, left)
            if result.hung or result.status is None:
                return "timeout", result.failed[0] if result.failed else left[0]
            if result.status in (0, 5):
                break
            if not result.failed:
                return "killed", "no test can be collected"
            test = result.failed[0]
            quick = part is first and index.seconds.get(test, HANGS) < QUICK
            if quick or _notices(on, mutant, test, 1 if part is first else 2):
                return "killed", test
            left = left[_place(left, test) + 1 :]
    return "survived", f"{len(first) + len(rest)} of {len(names)} tests that reach it"


def _notices(on: Ground, mutant: Mutant, test: str, rounds: int) -> bool:
    for _ in range(rounds):
        with _written(on.copy / mutant.module, mutant.original):
            if _tests(on, mutant.module, [test]).status != 0:
                return False
        if _tests(on, mutant.module, [test]).status == 0:
            return False
    return True


def _place(names: Sequence[str], function: str) -> int:
    file = function.partition("::")[0]
    return names.index(function) if function in names else names.index(f"{file}::")


def _tests(on: Ground, module: str, names: Sequence[str]) -> Run:
    """Run the named functions (or whole files, for names without one) until the first failure."""
    seconds = [on.index.seconds.get(name, HANGS) for name in names]
    if on.warm is not None:
        status, failed, hung = on.warm.run(names, module, WARM_START + 4 * sum(seconds))
        if status:
            _end_children(on)
        if status != UNABLE:
            return Run(status, failed, hung)
    with tempfile.TemporaryDirectory() as place:
        result, chosen, output = Path(place, "result.json"), Path(place, "chosen"), Path(place, "output")
        chosen.write_text("\n".join(name.removesuffix("::") for name in names))
        arguments = ["-q", "-x", "-p", "ops.mutation.recorder", "-p", "no:cacheprovider", "-m", MARKERS]
        arguments += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # modules imported by the server
        arguments += ["-o", f"timeout={max(HANGS, 4 * max(seconds)):.0f}", f"@{chosen}"]
        environment = {RESULT: str(result), OUTPUT: str(output)}
        try:
            status, text = on.tests.run(arguments, environment, START + 4 * sum(seconds))
        finally:
            _end_children(on)
        failed = json.loads(result.read_text())["failed"] if result.exists() else []
        return Run(status, [function_of(name) for name in failed], "Timeout (>" in text)


def _end_children(on: Ground) -> None:
    """Kill processes in other sessions that a test could not end because of the mutant."""
    kept = {on.tests.pid} if on.warm is None else {on.tests.pid, on.warm.pid}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in kept:
            with suppress(OSError):
                if Path(os.readlink(entry / "cwd")).is_relative_to(on.copy):
                    os.kill(int(entry.name), signal.SIGKILL)

"""The pytest plugin that records which lines each test function runs, and for how long; loaded with `-p
ops.mutation.recorder` under `coverage run`."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path

import coverage
import pytest

RESULT = "MUTATION_RECORD"  # the environment variable that names the file to write

seconds: dict[str, float] = defaultdict(float)
failed: set[str] = set()
hung = False  # a failure is a timeout of pytest-timeout


def function_of(nodeid: str) -> str:
    """The test function of a case: its name without parameters."""
    return nodeid.partition("[")[0]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Code that runs between two tests, such as imports, belongs to the empty context."""
    current = coverage.Coverage.current()
    if current is not None:
        current.switch_context(function_of(item.nodeid))
    try:
        return (yield)
    finally:
        if current is not None:
            current.switch_context("")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    global hung
    function = function_of(report.nodeid)
    seconds[function] += report.duration
    if report.failed:
        failed.add(function)
        hung = hung or "Timeout (>" in report.longreprtext


def pytest_sessionfinish() -> None:
    if path := os.environ.get(RESULT):
        Path(path).write_text(json.dumps({"seconds": seconds, "failed": sorted(failed)}))

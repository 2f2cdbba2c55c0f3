"""Tests wait for facts, not for time: `asyncio.sleep` of anything but 0 is allowed in virtual time only.
ruff bans `time.sleep`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
# File and function -> why it may sleep. Functions under `@virtual` need no line here.
MAY_SLEEP = {
    "kit/engine_scripts.py::_pause": "the pace of the timed engine; 0 in tests",
    "kit/redis_fleet.py::eventually": "processes that come up tell of nothing, and need the CPU",
    "kit/running.py::pause": "another process or a clock must go on, and needs the CPU",
    "kit/running.py::until": "after many turns of the loop: a clock or a process must go on, and needs the CPU",
    "kit/test_clock.py::divide": "virtual time, by run_virtual",
    "loadgen/cli/test_find.py::measure": "how late the loop wakes from a sleep is what it measures",
    "loadgen/cli/test_find.py::script": "the pace of a server in front of a real program",
    "loadgen/cli/test_loads.py::_answer": "the pace of a server in front of a real program",
    "system/test_drain.py::finish": "virtual time, by @virtual",
    "proxy/flights/fleet/test_model.py::passes": "virtual time, by a VirtualLoop",
    "proxy/flights/test_exchange.py::play": "virtual time, by run_virtual",
    "proxy/flights/test_exchange_faults.py::half_open": "virtual time, by @virtual",
    "system/test_paused.py::_pace": "the pace of an engine in front of a real process",
    "system/test_paused.py::_stopped": "a process that is stopped for seconds is what it tests",
    "proxy/server/test_respond.py::takes": "virtual time, by @virtual",
}


def sleeps(source: str) -> Iterator[tuple[str, int]]:
    """The function and line of each sleep, under whatever name `asyncio.sleep` was imported."""
    tree = ast.parse(source)
    names = {"asyncio.sleep"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {f"{alias.asname}.sleep" for alias in node.names if alias.name == "asyncio"}
        elif isinstance(node, ast.ImportFrom) and node.module == "asyncio":
            names |= {alias.asname or alias.name for alias in node.names if alias.name == "sleep"}

    def visit(node: ast.AST, function: str) -> Iterator[tuple[str, int]]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if "virtual" in map(ast.unparse, node.decorator_list):
                return
            function = node.name
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in names and not is_zero(node):
            yield function, node.lineno
        for child in ast.iter_child_nodes(node):
            yield from visit(child, function)

    yield from visit(tree, "<module>")


def is_zero(call: ast.Call) -> bool:
    return [ast.unparse(argument) for argument in call.args] == ["0"]


def test_tests_wait_for_facts_and_do_not_sleep() -> None:
    found = {
        f"{path.relative_to(TESTS).as_posix()}::{function}": line
        for path in TESTS.rglob("*.py")
        for function, line in sleeps(path.read_text())
    }
    assert {where: line for where, line in found.items() if where not in MAY_SLEEP} == {}
    assert MAY_SLEEP.keys() - found.keys() == set(), "excuses that are no longer needed"


@pytest.mark.parametrize(
    ("source", "caught"),
    [
        ("import asyncio as aio\nasync def f():\n    await aio.sleep(0.1)", True),
        ("from asyncio import sleep as nap\nasync def f(x):\n    await nap(x)", True),
        ("import asyncio\nasync def f():\n    await asyncio.sleep(delay=1)", True),
        ("import asyncio\nasync def f():\n    await asyncio.sleep(0)", False),
        ("import asyncio\n@virtual\nasync def f():\n    await asyncio.sleep(9)", False),
        ("clock.sleep(1)", False),
    ],
)
def test_a_sleep_is_caught_under_any_name(source: str, caught: bool) -> None:
    assert bool(list(sleeps(source))) is caught

"""The house's laws, held by `ast`: layers, circles, sizes, owned tasks, no sleeps, docstrings.

Each law is a pure function from source to a list of violations, and each is shown to catch one.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAX_LINES = 500
# Longer files, each with the reason why it is one concept all the same.
MAY_BE_LONGER = {
    "proxy/flights/embeddings/embedder.py": "every step of a request for embeddings, and where each contains what it raises",
    "proxy/flights/scheduler.py": "every step of a flight, and where each contains what it raises",
}
HOUSES = ("proxy", "loadgen", "corpus")
TABLED = ("proxy", "loadgen", "corpus")  # with a layer table in their README.md
SPAWNERS = ("create_task", "ensure_future")

# file::function -> why it may pass time. Functions under `@virtual` pass none and need no line here.
MAY_SLEEP = {
    "tests/engine_scripts.py::_pause": "the timed engine's pace is what it is for; 0 in tests",
    "tests/test_clock.py::divide": "virtual time, by run_virtual",
    "tests/test_paused.py::_pace": "a real engine's pace, against a real process",
    "tests/test_paused.py::_stopped": "a process that is stopped for seconds is what it tests",
    "tests/test_drain.py::finish": "virtual time, by @virtual",
    "tests/test_journey.py::play": "virtual time, by run_virtual",
    "tests/test_journey_faults.py::half_open": "virtual time, by @virtual",
    "tests/test_respond.py::takes": "virtual time, by @virtual",
}

Table = Mapping[str, int]  # "wire/sse.py" or "embedded/" -> layer
Imports = Mapping[str, set[str]]  # "wire/sse.py" -> {"errors.py"}


@cache
def files(*folders: str) -> dict[str, str]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in found}


def modules(house: str = "proxy") -> dict[str, str]:
    return {name.removeprefix(f"{house}/"): source for name, source in files(house).items()}


# Layers


def read_table(markdown: str) -> Table:
    table: dict[str, int] = {}
    for layer, names in re.findall(r"^\| *(\d+) *\|([^|]*)\|", markdown, re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", names):
            assert name not in table, f"{name} is in the table twice"
            table[name] = int(layer)
    return table


def layer_of(module: str, table: Table) -> int | None:
    """The module's own row, or that of the closest package around it."""
    packages = [f"{parent.as_posix()}/" for parent in Path(module).parents]
    return next((table[name] for name in (module, *packages) if name in table), None)


def imported(module: str, source: str, known: Iterable[str], house: str = "proxy") -> set[str]:
    """The house's own modules that this one imports anywhere in its text, inside functions too."""
    package = (house, *Path(module).parent.parts)
    dotted: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            dotted += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            origin = ".".join([*base, *([node.module] if node.module else [])])
            dotted += [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
    paths = [name.removeprefix(f"{house}.").replace(".", "/") for name in dotted if name.startswith(f"{house}.")]
    return {name for path in paths for name in (f"{path}.py", f"{path}/__init__.py") if name in known}


def import_graph(sources: Mapping[str, str], house: str = "proxy") -> Imports:
    return {module: imported(module, source, sources, house) for module, source in sources.items()}


def breaks_layers(graph: Imports, table: Table) -> list[str]:
    found = []
    for module, targets in graph.items():
        own = layer_of(module, table)
        if own is None:
            if module.rpartition("/")[2] != "__init__.py":
                found.append(f"{module} is not in the table")
            elif targets:
                found.append(f"{module} imports {sorted(targets)}, but is in no layer")
            continue
        for target in sorted(targets):
            layer = layer_of(target, table)
            if layer is not None and layer > own:
                found.append(f"{module} (layer {own}) imports {target} (layer {layer})")
    return found


def circles(graph: Imports) -> list[str]:
    """Every circle once, as the path that closes it."""
    found: list[str] = []
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            found.append(" -> ".join([*path[path.index(module) :], module]))
        elif module not in finished:
            for target in sorted(graph.get(module, ())):
                visit(target, (*path, module))
            finished.add(module)

    for module in graph:
        visit(module, ())
    return found


# Sizes and docstrings


def too_long(sources: Mapping[str, str]) -> list[str]:
    sizes = {name: len(source.splitlines()) for name, source in sources.items()}
    return [f"{name} has {size} lines" for name, size in sizes.items() if size > MAX_LINES]


def without_docstring(sources: Mapping[str, str]) -> list[str]:
    """Owns what, must not know what, called by whom: fewer than three lines cannot say it."""
    named = {name: source for name, source in sources.items() if Path(name).name != "__init__.py"}
    lines = {name: (ast.get_docstring(ast.parse(source)) or "").splitlines() for name, source in named.items()}
    return [f"{name}: {len(text)} lines of docstring" for name, text in lines.items() if len(text) < 3]


# Tasks


def dropped_tasks(name: str, source: str) -> list[str]:
    """Spawned tasks that nothing keeps: a bare statement, or `_ =`. A TaskGroup keeps its own."""
    tree = ast.parse(source)
    groups = set(task_groups(tree))
    found = []
    for node in ast.walk(tree):
        kept_by_nobody = isinstance(node, ast.Expr) or (
            isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["_"]
        )
        if not kept_by_nobody or not isinstance(call := getattr(node, "value", None), ast.Call):
            continue
        owner, _, spawner = ast.unparse(call.func).rpartition(".")
        if spawner in SPAWNERS and owner not in groups:
            found.append(f"{name}:{call.lineno} drops a task")
    return found


def task_groups(tree: ast.AST) -> Iterator[str]:
    """What is called a TaskGroup in this file: by `async with`, or by a parameter's annotation."""
    for node in ast.walk(tree):
        if isinstance(node, ast.withitem) and node.optional_vars is not None:
            name, made = ast.unparse(node.optional_vars), ast.unparse(node.context_expr)
        elif isinstance(node, ast.arg) and node.annotation is not None:
            name, made = node.arg, ast.unparse(node.annotation)
        else:
            continue
        if "TaskGroup" in made:
            yield name


# Sleeps


class Sleeps(ast.NodeVisitor):
    """Finds `time.sleep` and `asyncio.sleep` of anything but 0, whatever they were imported as."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.found: list[tuple[str, int]] = []  # file::function, line
        self._meaning: dict[str, str] = {"time": "time", "asyncio": "asyncio"}
        self._functions: list[str] = []

    def visit_Import(self, node: ast.Import) -> None:
        self._meaning |= {alias.asname or alias.name: alias.name for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self._meaning |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        if "virtual" in map(ast.unparse, node.decorator_list):
            return
        self._functions.append(node.name)
        self.generic_visit(node)
        self._functions.pop()

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.visit_FunctionDef(node)

    def visit_Call(self, node: ast.Call) -> None:
        first, dot, rest = ast.unparse(node.func).partition(".")
        function = self._meaning.get(first, first) + dot + rest
        waits = function == "time.sleep" or (
            function == "asyncio.sleep" and [ast.unparse(arg) for arg in node.args] != ["0"]
        )
        if waits:
            where = self._functions[-1] if self._functions else "<module>"
            self.found.append((f"{self.name}::{where}", node.lineno))
        self.generic_visit(node)


def sleeps(sources: Mapping[str, str]) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    for name, source in sources.items():
        visitor = Sleeps(name)
        visitor.visit(ast.parse(source))
        found += visitor.found
    return found


# The laws, on the house as it stands


@pytest.mark.parametrize("house", TABLED)
def test_every_module_is_tabled_and_imports_only_from_its_layer_or_above(house: str) -> None:
    table = read_table((ROOT / house / "README.md").read_text())
    assert breaks_layers(import_graph(modules(house), house), table) == []


@pytest.mark.parametrize("house", HOUSES)
def test_no_imports_run_in_a_circle(house: str) -> None:
    assert circles(import_graph(modules(house), house)) == []


def test_no_file_is_too_long_to_hold_one_concept() -> None:
    long = too_long(files(*HOUSES, "tests", "ops"))
    assert [found for found in long if found.partition(" ")[0] not in MAY_BE_LONGER] == []
    assert len(long) == len(MAY_BE_LONGER), "excuses that nobody needs any more"


@pytest.mark.parametrize("house", HOUSES)
def test_every_module_opens_by_saying_what_it_owns(house: str) -> None:
    assert without_docstring(modules(house)) == []


def test_every_task_has_an_owner() -> None:
    everything = files(*HOUSES, "tests", "ops").items()
    assert [found for name, source in everything for found in dropped_tasks(name, source)] == []


def test_tests_wait_for_facts_and_do_not_sleep() -> None:
    found = sleeps(files("tests"))
    assert [f"{where} (line {line})" for where, line in found if where not in MAY_SLEEP] == []
    assert set(MAY_SLEEP) - {where for where, _ in found} == set(), "excuses that nobody needs any more"


# The checkers catch what they are for

TABLE = "| layer | modules | one job |\n|---|---|---|\n| 0 | `a.py` | x |\n| 1 | `b.py`, `p/` | y |\n"


def test_the_table_is_read_with_its_packages() -> None:
    table = read_table(TABLE)
    assert table == {"a.py": 0, "b.py": 1, "p/": 1}
    assert layer_of("p/deep/c.py", table) == 1
    assert layer_of("c.py", table) is None
    with pytest.raises(AssertionError, match="twice"):
        read_table(TABLE + "| 2 | `a.py` | z |\n")


@pytest.mark.parametrize(
    "statement",
    [
        "import proxy.b",
        "from proxy import b",
        "from proxy import b as other",
        "from proxy.b import thing",
        "from . import b",
        "from .b import thing",
        "def late():\n    from proxy.b import thing",
    ],
)
def test_an_import_from_a_lower_layer_is_caught_however_it_is_written(statement: str) -> None:
    graph = import_graph({"a.py": statement, "b.py": "from proxy.a import thing\nimport asyncio"})
    assert breaks_layers(graph, read_table(TABLE)) == ["a.py (layer 0) imports b.py (layer 1)"]


def test_relative_imports_inside_a_package_are_followed() -> None:
    graph = import_graph({"p/c.py": "from .d import x\nfrom ..a import y", "p/d.py": "", "a.py": ""})
    assert graph["p/c.py"] == {"p/d.py", "a.py"}


def test_a_module_missing_from_the_table_is_caught() -> None:
    graph = import_graph({"c.py": "", "a.py": "", "__init__.py": "from proxy.a import x"})
    assert breaks_layers(graph, read_table(TABLE)) == [
        "c.py is not in the table",
        "__init__.py imports ['a.py'], but is in no layer",
    ]


def test_a_circle_is_caught_and_named_once() -> None:
    graph = {"a.py": {"b.py"}, "b.py": {"c.py"}, "c.py": {"b.py"}, "d.py": {"a.py", "c.py"}}
    assert circles(graph) == ["b.py -> c.py -> b.py"]


def test_a_long_file_is_caught() -> None:
    assert too_long({"a.py": "x\n" * MAX_LINES, "b.py": "x\n" * (MAX_LINES + 1)}) == ["b.py has 501 lines"]


def test_a_missing_or_short_docstring_is_caught() -> None:
    sources = {"a.py": "x = 1", "b.py": '"""One."""', "c.py": '"""One.\nTwo.\nThree."""', "p/__init__.py": ""}
    assert without_docstring(sources) == ["a.py: 0 lines of docstring", "b.py: 1 lines of docstring"]


@pytest.mark.parametrize(
    ("line", "dropped"),
    [
        ("asyncio.create_task(f())", True),
        ("_ = loop.create_task(f())", True),
        ("asyncio.get_running_loop().create_task(f())", True),
        ("ensure_future(f())", True),
        ("task = asyncio.create_task(f())", False),
        ("await asyncio.create_task(f())", False),
        ("tasks.add(asyncio.create_task(f()))", False),
        ("group.create_task(f())", False),
    ],
)
def test_a_dropped_task_is_caught_and_a_kept_one_is_not(line: str, dropped: bool) -> None:
    source = f"async def main():\n    async with asyncio.TaskGroup() as group:\n        {line}\n"
    assert dropped_tasks("a.py", source) == (["a.py:3 drops a task"] if dropped else [])


@pytest.mark.parametrize(
    ("source", "caught"),
    [
        ("import time\ntime.sleep(0)", True),
        ("from time import sleep as nap\nnap(1)", True),
        ("import asyncio as aio\nasync def f():\n    await aio.sleep(0.1)", True),
        ("from asyncio import sleep\nasync def f(x):\n    await sleep(x)", True),
        ("import asyncio\nasync def f():\n    await asyncio.sleep(delay=1)", True),
        ("import asyncio\nasync def f():\n    await asyncio.sleep(0)", False),
        ("import asyncio\n@virtual\nasync def f():\n    await asyncio.sleep(9)", False),
        ("clock.sleep(1)", False),
    ],
)
def test_a_sleep_is_caught_under_any_name(source: str, caught: bool) -> None:
    assert bool(sleeps({"a.py": source})) is caught

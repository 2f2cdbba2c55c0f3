"""Which lines of the gateway each test function runs, and how long it takes. A line is identified by its module,
its definition and its text, so a record survives edits elsewhere in the file."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import coverage

from ops.mutation.recorder import RESULT

# Not run against mutants: tests of other programs, of the page, of source text and documents; and the chaos runs,
# which take minutes.
LEFT_OUT: Final = (
    "loadgen/", "corpus/", "ops/", "real/", "proxy/server/page/", "system/test_chaos", "test_architecture",
    "test_docs", "test_public_names", "test_readme", "test_waiting",
)  # fmt: skip
MARKERS: Final = "not vllm"
# Not sysmon, the default from Python 3.14 on: it tells of a line once, to the first test alone that runs it.
CORE: Final = "ctrace"
COVERAGE: Final = f"""[run]
core = {CORE}
branch = False
source = proxy
sigterm = True
patch = subprocess
disable_warnings = no-data-collected, module-not-measured
"""


class Line(NamedTuple):
    """One line of code, independent of its number."""

    module: str
    definition: str
    text: str


@dataclass(slots=True)
class Function:
    """A test function with the lines that it runs. The empty name has what a file runs outside its tests."""

    seconds: float = 0.0
    lines: set[Line] = field(default_factory=set)


Reach = dict[str, Function]
"""By test function, such as `tests/proxy/test_app.py::test_x`; without a name after `::`, the rest of the file."""


def definitions(source: str) -> list[str]:
    """For each line, from 1, the qualified name of the innermost definition around it."""
    names = [""] * (source.count("\n") + 2)

    def visit(node: ast.AST, around: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = around
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{around}.{child.name}" if around else child.name
                for number in range(child.lineno, (child.end_lineno or child.lineno) + 1):
                    names[number] = name
            visit(child, name)

    visit(ast.parse(source), "")
    return names


def lines_of(module: str, source: str) -> list[Line]:
    """The lines of a module in order."""
    names = definitions(source)
    return [Line(module, names[at], text.strip()) for at, text in enumerate(source.split("\n"), 1)]


def at_import(module: str, source: str) -> set[Line]:
    """The lines outside functions: they run when the module is imported."""
    inside = {
        number
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for number in range(node.body[0].lineno, (node.end_lineno or node.lineno) + 1)
    }
    return {line for number, line in enumerate(lines_of(module, source), 1) if number not in inside}


def test_files(root: Path) -> list[str]:
    names = (path.relative_to(root / "tests").as_posix() for path in (root / "tests").rglob("test_*.py"))
    return sorted(f"tests/{name}" for name in names if not name.startswith(LEFT_OUT))


def near(root: Path, modules: Iterable[str]) -> list[str]:
    """The test files in the folders of the modules and in the folders around these, up to their rooms'."""
    folders: set[str] = set()
    for module in modules:
        *around, _ = module.split("/")
        folders |= {"/".join(["tests", *around[:depth]]) for depth in range(min(2, len(around)), len(around) + 1)}
    return [file for file in test_files(root) if Path(file).parent.as_posix() in folders]


def record(root: Path, test_file: str, limit: float) -> Reach | None:
    """Run one test file under coverage. None if it took longer than `limit` seconds or failed to run."""
    with tempfile.TemporaryDirectory() as place:
        settings, result = Path(place, "settings"), Path(place, "result.json")
        settings.write_text(f"{COVERAGE}data_file = {place}/data\n")
        environment = os.environ | {RESULT: str(result)}
        command = [sys.executable, "-m", "coverage", "run", f"--rcfile={settings}", "-m", "pytest", "-q"]
        command += ["-p", "ops.mutation.recorder", "-p", "no:cacheprovider", "-m", MARKERS, test_file]
        if run(command, root, environment, limit)[0] is None or not result.exists():
            return None
        said = json.loads(result.read_text())
        found: Reach = {name: Function(seconds) for name, seconds in said["seconds"].items()}
        found[f"{test_file}::"] = Function(sum(said["seconds"].values()))
        for path in Path(place).glob("data*"):  # one for each child process
            _add(found, path, root, test_file)
        return {name: function for name, function in found.items() if name not in said["failed"]}


def _add(found: Reach, path: Path, root: Path, test_file: str) -> None:
    data = coverage.CoverageData(basename=str(path))
    data.read()
    for name in data.measured_files():
        file = Path(name)
        if not file.is_relative_to(root):
            continue
        lines = lines_of(file.relative_to(root).as_posix(), file.read_text())
        for number, contexts in data.contexts_by_lineno(name).items():
            if number > len(lines):
                continue  # a module that a test has created under one of our names
            for context in contexts:
                if (function := found.get(context or f"{test_file}::")) is not None:
                    function.lines.add(lines[number - 1])


def run(command: list[str], root: Path, environment: Mapping[str, str], limit: float) -> tuple[int | None, str]:
    """Exit status (None after `limit` seconds) and output. The children of the command end with it."""
    process = subprocess.Popen(
        command,
        cwd=root,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        return None, ""
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# Kept between runs


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save(reach: Reach, sha: str, path: Path) -> None:
    lines = sorted({line for function in reach.values() for line in function.lines})
    at = {line: index for index, line in enumerate(lines)}
    functions = {name: [f.seconds, sorted(at[line] for line in f.lines)] for name, f in reach.items()}
    record = {"sha": sha, "lines": [[line.module, line.definition, line.text] for line in lines]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record | {"functions": functions}))


def load(path: Path) -> tuple[str, Reach]:
    record = json.loads(path.read_text())
    lines = [Line(*line) for line in record["lines"]]
    functions = record["functions"].items()
    return record["sha"], {n: Function(seconds, {lines[i] for i in at}) for n, (seconds, at) in functions}


def kept(folder: Path, test_file: str) -> Path:
    return folder / f"{test_file.removeprefix('tests/').removesuffix('.py').replace('/', '.')}.json"


# Choice


class Index:
    """Finds the test functions that reach a line, the closest to its module first."""

    def __init__(self, reach: Reach) -> None:
        self.seconds = {name: function.seconds for name, function in reach.items()}
        self._by_line: dict[Line, set[str]] = defaultdict(set)
        self._by_definition: dict[tuple[str, str], set[str]] = defaultdict(set)
        for name, function in reach.items():
            for line in function.lines:
                self._by_line[line].add(name)
                self._by_definition[line.module, line.definition].add(name)

    def reaching(self, lines: Iterable[Line], module: str) -> list[str]:
        """The functions that run one of `lines`. For a line without a record, its definition counts.

        A name that ends in `::` is a whole file: its child processes, or its imports, run the line.
        """
        found: set[str] = set()
        for line in lines:
            found |= self._by_line.get(line) or self._by_definition.get((line.module, line.definition), set())
        stems = {f"test_{Path(module).stem}", "_".join(["test", *Path(module).with_suffix("").parts[1:]])}
        if not found:  # such as code of killed child processes, whose coverage is lost
            like = f"test_{Path(module).stem.partition('_')[0]}"
            found = {
                name for name in self.seconds if name.endswith("::") and Path(name[:-2]).stem.startswith(like)
            }

        def order(name: str) -> tuple[bool, bool, bool, float, str]:
            file, _, function = name.partition("::")
            stem = Path(file).stem
            near = stem in stems or any(stem.startswith(f"{s}_") for s in stems)
            return not near, not function, stem not in stems, self.seconds[name], name

        return sorted(found, key=order)


def within(names: Iterable[str], seconds: Mapping[str, float], budget: float) -> Iterator[str]:
    """The first of `names` that fit into `budget` seconds, at least one."""
    spent = 0.0
    for name in names:
        if spent and spent + seconds[name] > budget:
            continue
        spent += seconds[name]
        yield name

"""Owns what each test function reaches: which lines of the proxy it runs, and how long it takes.
Must not know mutants or verdicts. A line is known by its module, its definition and its text, so a record outlives
an edit elsewhere in the file. Called by __main__.py, which keeps the records between runs, and by trial.py."""

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

# The load generator, the deployment files and the page are no rooms of the gateway; the laws of the tree read its
# text; the bench and chaos runs measure. None of them is asked whether a mutant is noticed.
LEFT_OUT: Final = (
    "loadgen/", "corpus/", "ops/", "real/", "proxy/server/page/", "system/test_chaos", "test_architecture",
    "test_docs", "test_public_names", "test_readme",
)  # fmt: skip
MARKERS: Final = "not vllm"
COVERAGE: Final = """[run]
branch = False
source = proxy
sigterm = True
patch = subprocess
disable_warnings = no-data-collected, module-not-measured
"""


class Line(NamedTuple):
    """One line of code, whatever its number is today."""

    module: str
    definition: str
    text: str


@dataclass(slots=True)
class Function:
    """A test function, with the lines that it runs. The empty name holds what a file runs outside its tests."""

    seconds: float = 0.0
    lines: set[Line] = field(default_factory=set)


Reach = dict[str, Function]
"""By test function, as `tests/proxy/test_app.py::test_x`; with no name after `::`, the rest of its file."""


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
    """Every line of a module, at its number less 1."""
    names = definitions(source)
    return [Line(module, names[at], text.strip()) for at, text in enumerate(source.split("\n"), 1)]


def test_files(root: Path) -> list[str]:
    names = (path.relative_to(root / "tests").as_posix() for path in (root / "tests").rglob("test_*.py"))
    return sorted(f"tests/{name}" for name in names if not name.startswith(LEFT_OUT))


def record(root: Path, test_file: str, limit: float) -> Reach | None:
    """Run one test file under coverage. None where it took longer than `limit` seconds, or could not be run."""
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
        for path in Path(place).glob("data*"):  # one more for each child process
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
                continue  # of a module that a test has made and named as one of ours
            for context in contexts:
                if (function := found.get(context or f"{test_file}::")) is not None:
                    function.lines.add(lines[number - 1])


def run(command: list[str], root: Path, environment: Mapping[str, str], limit: float) -> tuple[int | None, str]:
    """Exit status, None past `limit` seconds, and output. The children of the command end with it."""
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
    """Which test functions reach a line, the closest to its module first."""

    def __init__(self, reach: Reach) -> None:
        self.seconds = {name: function.seconds for name, function in reach.items()}
        self._by_line: dict[Line, set[str]] = defaultdict(set)
        self._by_definition: dict[tuple[str, str], set[str]] = defaultdict(set)
        for name, function in reach.items():
            for line in function.lines:
                self._by_line[line].add(name)
                self._by_definition[line.module, line.definition].add(name)

    def reaching(self, lines: Iterable[Line], module: str) -> list[str]:
        """Functions that run one of `lines`. A line that no record knows counts as its definition does.

        A name that ends in `::` is a whole file: its children, or its imports, run the line.
        """
        found: set[str] = set()
        for line in lines:
            found |= self._by_line.get(line) or self._by_definition.get((line.module, line.definition), set())
        stems = {f"test_{Path(module).stem}", "_".join(["test", *Path(module).with_suffix("").parts[1:]])}
        if not found:  # as of a child process that is killed: its coverage is lost
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
    """As many of `names`, in order, as `budget` seconds allow; one at least."""
    spent = 0.0
    for name in names:
        if spent and spent + seconds[name] > budget:
            continue
        spent += seconds[name]
        yield name

"""A pytest process that has imported the gateway and collected tests once. It forks a child for each run, which
replaces the code of the mutated functions in memory: a run takes the time of its tests."""

from __future__ import annotations

import ast
import gc
import inspect
import json
import os
import random
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, Final, Self, TextIO

import coverage
import pytest

from ops.mutation import recorder
from ops.mutation.reach import CORE, MARKERS, Function, Reach, lines_of
from ops.mutation.server import wait

HANGS: Final = 5  # seconds after which a test counts as hung
UNABLE: Final = 99  # exit status of a child whose mutant is not in functions alone


class Warm:
    """Runs tests of `files` in `root`, the copy of a tree, one run after the other."""

    def __init__(self, root: Path, files: Sequence[str]) -> None:
        self._root = root
        asks, self._requests = os.pipe()
        self._replies, answers = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ops.mutation.warm", str(asks), str(answers), *files],
            cwd=root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(asks, answers),
        )
        os.close(asks)
        os.close(answers)
        self._lines = os.fdopen(self._replies)
        self.functions: frozenset[str] = frozenset(json.loads(self._lines.readline() or "[]"))

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(self, names: Sequence[str], module: str, limit: float) -> tuple[int | None, list[str], bool]:
        """Exit status, the functions that failed, whether one hung. The status is None after `limit` seconds, and
        `UNABLE` where `module` differs from what was imported outside its functions."""
        status, said = self._ask({"names": list(names), "module": module, "limit": limit})
        return status, said.get("failed", []), said.get("hung", False)

    def record(self, names: Sequence[str], limit: float) -> Reach:
        """What the functions reach in this process, without those that fail. Child processes are not covered."""
        _, said = self._ask({"names": list(names), "module": "", "limit": limit})
        files = {name: lines_of(name, (self._root / name).read_text()) for name in said.get("files", ())}
        found: Reach = {}
        for name, seconds in said.get("seconds", {}).items():
            if name not in said["failed"]:
                found[name] = Function(seconds)
                for file, numbers in said["lines"].get(name, {}).items():
                    found[name].lines.update(files[file][number - 1] for number in numbers)
        return found

    def _ask(self, question: dict[str, Any]) -> tuple[int | None, dict[str, Any]]:
        os.write(self._requests, json.dumps(question).encode() + b"\n")
        status, said = json.loads(self._lines.readline())
        return status, said

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._requests)
        self._lines.close()
        self._process.wait()


class Server:
    """The pytest plugin that answers requests instead of running what was collected."""

    def __init__(self, asks: int, answers: int) -> None:
        self._requests = os.fdopen(asks)
        self._answers = os.fdopen(answers, "w")
        self._sources: dict[str, str] = {}
        self._functions: dict[str, list[FunctionType]] = defaultdict(list)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items: dict[str, list[pytest.Item]] = defaultdict(list)
        for item in session.items:
            items[recorder.function_of(item.nodeid)].append(item)
            items[item.nodeid.partition("::")[0] + "::"].append(item)
        root = Path.cwd()
        self._sources = {
            path.relative_to(root).as_posix(): path.read_text() for path in (root / "proxy").rglob("*.py")
        }
        for function in gc.get_objects():
            if type(function) is FunctionType:
                self._functions[function.__code__.co_filename].append(function)
        gc.freeze()  # a child that collects garbage copies none of this
        self._say(sorted(name for name in items if not name.endswith("::")))
        for line in self._requests:
            question = json.loads(line)
            chosen = [item for name in question["names"] for item in items.get(name, ())]
            with open(os.memfd_create("reply"), "w+") as reply:
                child = os.fork()
                if child == 0:
                    self._child(session, chosen, question["module"], reply)
                status = wait(child, question["limit"])
                reply.seek(0)
                self._say([status, json.loads((status is not None and reply.read()) or "{}")])
        return True

    def _mutated(self, module: str) -> bool:
        before, after, path = self._sources[module], Path(module).read_text(), str(Path(module).resolve())
        return before == after or replace(self._functions[path], path, before, after)

    def _say(self, words: object) -> None:
        self._answers.write(json.dumps(words) + "\n")
        self._answers.flush()

    def _child(self, session: pytest.Session, items: list[pytest.Item], module: str, reply: TextIO) -> None:
        status = 3
        try:
            os.setsid()
            random.seed()
            said: dict[str, Any]
            if not module:
                status, said = 0, _recorded(session, items)
            elif not self._mutated(module):
                status, said = UNABLE, {}
            else:
                failed, hung = _failing(session, items)
                status, said = int(bool(failed)), {"failed": failed, "hung": hung}
            json.dump(said, reply)
            reply.flush()
        finally:
            os._exit(status)


def _each(session: pytest.Session, items: list[pytest.Item]) -> Iterator[pytest.Item]:
    following: list[pytest.Item | None] = [*items[1:], None]
    for item, after in zip(items, following, strict=True):
        session.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
        yield item


def _failing(session: pytest.Session, items: list[pytest.Item]) -> tuple[list[str], bool]:
    for item in _each(session, items):
        if recorder.failed:
            return [recorder.function_of(item.nodeid)], recorder.hung
    return [], False


def _recorded(session: pytest.Session, items: list[pytest.Item]) -> dict[str, Any]:
    root = Path.cwd()
    cover = coverage.Coverage(data_file=None, include=[f"{root}/proxy/*"], config_file=False)
    cover.set_option("run:core", CORE)
    cover.start()
    for _ in _each(session, items):
        pass
    cover.stop()
    data = cover.get_data()
    lines: dict[str, dict[str, list[int]]] = defaultdict(dict)
    names = {file: Path(file).relative_to(root).as_posix() for file in data.measured_files()}
    for file, name in names.items():
        for number, contexts in data.contexts_by_lineno(file).items():
            for context in contexts:
                lines[context].setdefault(name, []).append(number)
    return {
        "seconds": recorder.seconds, "failed": sorted(recorder.failed), "lines": lines,
        "files": sorted(names.values()),
    }  # fmt: skip


# A mutant in memory


def replace(functions: Iterable[FunctionType], path: str, before: str, after: str) -> bool:
    """Give the functions of the imported module at `path` the code of `after`. False if it differs from `before`
    outside the bodies of functions: values there were computed at the import."""
    if _outside(before) != _outside(after):
        return False
    old, new = (list(_codes(compile(source, path, "exec"))) for source in (before, after))
    if len(old) != len(new):
        return False
    known = Counter(map(_name, old))
    changed = {_name(code): mutant for code, mutant in zip(old, new, strict=True) if code != mutant}
    if any(known[name] > 1 for name in changed):
        return False  # such as two lambdas in one line
    try:
        for function in functions:
            if (mutant := changed.get(_name(function.__code__))) is not None:
                function.__code__ = mutant
    except ValueError:  # the mutant uses other variables of the function around it
        return False
    return True


def _name(code: CodeType) -> tuple[str, int]:
    return code.co_qualname, code.co_firstlineno


def _codes(code: CodeType) -> Iterator[CodeType]:
    """All functions, in order; those inside others too, which may have been made at the import."""
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            if inner.co_flags & inspect.CO_NEWLOCALS:  # a function, not the body of a class
                yield inner
            yield from _codes(inner)


class _Hollow(ast.NodeTransformer):
    """Removes the bodies of functions."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.body = []
        return node

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        node.body = []
        return node


def _outside(source: str) -> str:
    return ast.dump(_Hollow().visit(ast.parse(source)))


def main() -> None:
    asks, answers, *files = sys.argv[1:]
    arguments = ["-q", "-s", "-p", "no:cacheprovider", "-m", MARKERS, "-o", f"timeout={HANGS}"]
    arguments += ["--continue-on-collection-errors", *files]
    pytest.main(arguments, plugins=[recorder, Server(int(asks), int(answers))])


if __name__ == "__main__":
    main()

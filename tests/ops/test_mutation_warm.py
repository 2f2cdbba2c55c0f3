"""The quick mutation run: a mutant in memory, the process that has collected the tests, its tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

from ops.mutation import mutants, reach
from ops.mutation.reach import Function, Index
from ops.mutation.server import Pytests
from ops.mutation.trial import Ground, trial
from ops.mutation.warm import UNABLE, Warm, replace

ROOT = Path(__file__).parent.parent.parent

SOURCE = """\
class Box:
    size = 3

    def full(self, count=1):
        return count >= self.size

    @property
    def name(self):
        return "box"

    @classmethod
    def made(cls):
        return [cls() for _ in range(2)]


def outer(word):
    def inner():
        return word + "!"
    return inner


wrapped = outer("a")
"""


@pytest.fixture
def module() -> dict[str, Any]:
    """What the source defines, once imported."""
    namespace: dict[str, Any] = {}
    exec(compile(SOURCE, "box.py", "exec"), namespace)
    return namespace


def functions(namespace: dict[str, Any]) -> list[FunctionType]:
    box = namespace["Box"]
    return [box.full, box.name.fget, box.made.__func__, namespace["outer"], namespace["wrapped"]]


@pytest.mark.parametrize(
    ("was", "becomes", "reads", "gives"),
    [
        ("count >= self.size", "count > self.size", lambda m: m["Box"]().full(3), False),
        ('return "box"', 'return "bag"', lambda m: m["Box"]().name, "bag"),
        ("range(2)", "range(3)", lambda m: len(m["Box"].made()), 3),
        ('word + "!"', 'word * 2 + "!"', lambda m: m["outer"]("b")(), "bb!"),
        (
            "    def inner():\n",
            "    if not word:\n        pass\n    def inner():\n",
            lambda m: m["outer"]("b")(),
            "b!",
        ),
    ],
)
def test_imported_functions_get_the_code_of_a_mutant(
    module: dict[str, Any], was: str, becomes: str, reads: Callable[[dict[str, Any]], object], gives: object
) -> None:
    assert replace(functions(module), "box.py", SOURCE, SOURCE.replace(was, becomes))
    assert reads(module) == gives
    assert module["Box"]().full() is False


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("size = 3", "size = 4"),
        ("count=1", "count=2"),
        ('outer("a")', 'outer("b")'),
        ("range(2)", "(lambda: range(2))()"),
    ],
)
def test_a_mutant_outside_functions_is_not_tried_in_memory(module: dict[str, Any], was: str, becomes: str) -> None:
    assert not replace(functions(module), "box.py", SOURCE, SOURCE.replace(was, becomes))
    assert module["Box"]().full(3)


TEST = """\
from proxy.box import Box, outer

def test_full():
    assert not Box().full(2)

def test_name():
    assert Box().name == "box"

def test_fails():
    assert outer("a")() == "b"
"""


@pytest.mark.timeout(180)  # several runs of pytest, each of seconds where the machine is busy
def test_the_process_that_has_collected_runs_the_mutant_of_the_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    path = tmp_path / "proxy" / "box.py"
    for folder in ("proxy", "tests"):
        (tmp_path / folder).mkdir()
    (tmp_path / "proxy" / "__init__.py").write_text("")
    path.write_text(SOURCE)
    file = "tests/test_box.py"
    (tmp_path / file).write_text(TEST)
    full, name, fails = (f"{file}::test_{what}" for what in ("full", "name", "fails"))
    with Pytests(tmp_path) as cold, Warm(tmp_path, [file]) as warm:
        assert warm.functions == {full, name, fails}
        known = warm.record([full, name, fails], 60.0)
        assert {test: {line.text for line in function.lines} for test, function in known.items()} == {
            full: {"return count >= self.size"},
            name: {'return "box"'},
        }
        assert warm.run([full, name], "proxy/box.py", 60.0) == (0, [], False)
        path.write_text(SOURCE.replace("size = 3", "size = 2"))
        assert warm.run([full], "proxy/box.py", 60.0)[0] == UNABLE
        path.write_text(SOURCE)
        assert warm.run([f"{file}::"], "proxy/box.py", 60.0) == (1, [fails], False)
        ground = Ground(tmp_path, cold, Index(known | {f"{file}::": Function(0.1)}), warm)

        def outcome(was: str, becomes: str) -> str:
            entry = {"module": "proxy/box.py", "was": was, "becomes": becomes}
            (mutant,) = mutants.given(entry, {"proxy/box.py": SOURCE})
            verdict = trial(ground, mutant, 20.0)
            return f"{verdict.outcome} by {verdict.by}"

        assert outcome("return count >= self.size", "return count <= self.size") == f"killed by {full}"
        assert outcome("return count >= self.size", "return count > self.size").startswith("survived by 1 of 1")
        assert outcome("def full(self, count=1):", "def full(self):") == f"killed by {full}"
        assert outcome("size = 3", "size = 2") == f"killed by {full}", "in the file"


def test_the_tests_near_a_module_are_those_of_its_folder_and_of_its_room() -> None:
    near = reach.near(ROOT, ["proxy/flights/merging/merger.py"])
    assert {"tests/proxy/flights/merging/test_merger.py", "tests/proxy/flights/test_key.py"} < set(near)
    assert {str(Path(file).parent) for file in near} == {"tests/proxy/flights/merging", "tests/proxy/flights"}
    assert {str(Path(file).parent) for file in reach.near(ROOT, ["proxy/app.py"])} == {"tests/proxy"}


def test_lines_outside_functions_run_at_the_import() -> None:
    texts = {line.text for line in reach.at_import("proxy/box.py", SOURCE)}
    assert {"class Box:", "size = 3", "def full(self, count=1):", "@property", 'wrapped = outer("a")'} < texts
    assert not {"return count >= self.size", 'return "box"', 'return word + "!"', "def inner():"} & texts

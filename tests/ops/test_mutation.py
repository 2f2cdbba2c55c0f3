"""The mutation run: its mutants and sample, the choice of tests, and what counts as killed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator

from ops.mutation import mutants, operators, reach, session
from ops.mutation.mutants import Mutant
from ops.mutation.reach import Function, Index, Line
from ops.mutation.server import Pytests
from ops.mutation.trial import Ground, Verdict, trial

ROOT = Path(__file__).parent.parent.parent

SOURCE = """\
from __future__ import annotations

MOST = 10


class Box:
    size: int | None = 3

    def __repr__(self) -> str:
        return f"{1 + 1}"

    def full(self, count: int, *, other: int | None = None) -> bool:
        if count > MOST:
            self.size = count
        return count + 1 >= MOST
"""


@pytest.mark.parametrize("operator", operators.OWN.values())
def test_an_operator_makes_of_its_examples_what_it_says(operator: Callable[[], Operator]) -> None:
    for example in operator().examples():
        made = mutate_code(example.pre_mutation_code, operator(), example.occurrence)
        assert made == example.post_mutation_code


def test_every_operator_that_is_named_exists() -> None:
    assert all(operators.made(name) for _, name in operators.every())


def test_declarations_and_reprs_are_not_mutated_and_constants_are_data() -> None:
    found = {(place.row, place.family) for place in mutants.places("proxy/box.py", SOURCE)}
    assert found == {
        (13, "bound"),
        (13, "comparison"),
        (13, "condition"),
        (14, "statement"),
        (15, "bound"),
        (15, "comparison"),
        (15, "arithmetic"),
        (15, "constant"),
    }


def test_a_mutant_is_known_by_its_content_wherever_it_stands() -> None:
    entry = {"module": "proxy/box.py", "was": "if count > MOST:", "becomes": "if count >= MOST:"}
    (here,) = mutants.given(entry, {"proxy/box.py": SOURCE})
    (there,) = mutants.given(entry, {"proxy/box.py": SOURCE.replace("MOST = 10", "MOST = 10\n\n# more\n")})
    assert here.id == there.id
    assert here.definition == "Box.full"
    assert here.source == SOURCE.replace("count > MOST", "count >= MOST")
    assert mutants.given(entry | {"definition": "Box.other"}, {"proxy/box.py": SOURCE}) == []


def test_a_sample_is_the_same_for_a_seed_and_takes_of_every_room() -> None:
    sources = {f"proxy/{name}.py": SOURCE for name in ("a", "flights/queue/b", "wire/c")}
    first, again, other = (mutants.sample(sources, seed, 6) for seed in (1, 1, 2))
    assert [m.id for m in first] == [m.id for m in again] != [m.id for m in other]
    assert Counter(mutants.room_of(m.module) for m in first) == {"top": 2, "flights": 2, "wire": 2}
    assert len({(m.module, m.lines[0]) for m in first}) == 6, "one mutant a line"


def test_the_page_is_left_out_and_every_other_room_of_the_gateway_is_there() -> None:
    modules = mutants.modules(ROOT)
    assert not any(module.startswith("proxy/server/page/") for module in modules)
    assert {"wire", "embedded", "server", "flights"} < Counter(map(mutants.room_of, modules)).keys()


def test_the_tests_of_a_module_s_own_file_come_first_then_the_quick_ones() -> None:
    line = Line("proxy/box.py", "Box.full", "if count > MOST:")
    known = {
        "tests/test_app.py::test_slow": Function(9.0, {line}),
        "tests/test_app.py::test_quick": Function(0.1, {line}),
        "tests/test_app.py::test_other": Function(0.0, set()),
        "tests/test_box_twice.py::test_c": Function(2.0, {line}),
        "tests/test_box.py::": Function(3.0, {line}),
        "tests/test_box.py::test_b": Function(1.0, {line}),
    }
    index = Index(known)
    order = index.reaching([line], "proxy/box.py")
    assert order == [
        "tests/test_box.py::test_b",
        "tests/test_box_twice.py::test_c",
        "tests/test_box.py::",
        "tests/test_app.py::test_quick",
        "tests/test_app.py::test_slow",
    ]
    assert list(reach.within(order, index.seconds, 4.0)) == [order[0], order[1], order[3]]
    unknown = Line("proxy/box.py", "Box.full", "a line that was edited since")
    assert index.reaching([unknown], "proxy/box.py") == order
    assert index.reaching([Line("proxy/box.py", "Box.new", "x")], "proxy/box.py") == ["tests/test_box.py::"]
    assert index.reaching([Line("proxy/new.py", "", "x")], "proxy/new.py") == []


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of one module and one test file."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # none is used here; they take a second of each run
    (tmp_path / "proxy").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "proxy" / "__init__.py").write_text("")
    (tmp_path / "proxy" / "box.py").write_text(TOY)
    (tmp_path / "tests" / "test_box.py").write_text(TOY_TEST)
    return tmp_path


TOY = """\
def rooms(count):
    while count > 3:
        count -= 3
    return count


def unseen(count):
    return count + 1
"""
TOY_TEST = """\
import pathlib, subprocess, sys
from proxy.box import rooms

def test_rooms():
    assert rooms(7) == 1

def test_child():
    code = "from proxy.box import unseen; unseen(1)"
    subprocess.run([sys.executable, "-c", code], check=True)

def test_once():
    mark = pathlib.Path("mark")
    rooms(7)
    assert not pathlib.Path("flaky").exists() or mark.exists() or mark.write_text("x") < 0
"""


@pytest.mark.timeout(180)  # a dozen runs of pytest, each of seconds where the machine is busy
def test_a_mutant_is_killed_survives_or_takes_too_long(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ops.mutation.trial.HANGS", 2.0)
    monkeypatch.setattr("ops.mutation.trial.QUICK", 0.0)
    known = reach.record(toy, "tests/test_box.py", 60.0)
    assert known is not None
    assert {line.text for line in known["tests/test_box.py::test_rooms"].lines} == {
        "while count > 3:",
        "count -= 3",
        "return count",
    }
    assert "return count + 1" in {line.text for line in known["tests/test_box.py::"].lines}, "a child's lines"
    reach.save(known, "sha", toy / "kept.json")
    sha, again = reach.load(toy / "kept.json")
    assert (sha, again) == ("sha", known)
    (toy / "flaky").write_text("")
    with Pytests(toy) as tests:
        ground = Ground(toy, tests, Index(again))

        def outcome(was: str, becomes: str) -> str:
            entry = {"module": "proxy/box.py", "was": was, "becomes": becomes}
            (mutant,) = mutants.given(entry, {"proxy/box.py": TOY})
            verdict = trial(ground, mutant, 20.0)
            assert (toy / "proxy" / "box.py").read_text() == TOY, "it is taken out again"
            return f"{verdict.outcome} by {verdict.by}"

        same = outcome("while count > 3:", "while 3 < count:")
        assert (toy / "mark").exists(), "a test failed, once"
        assert same == "survived by 2 of 2 tests that reach it"
        assert outcome("while count > 3:", "while count > 4:") == "killed by tests/test_box.py::test_rooms"
        assert outcome("return count + 1", "return count - 1") == "survived by 1 of 1 tests that reach it"
        assert outcome("return count + 1", "return missing") == "killed by tests/test_box.py::test_child"
        monkeypatch.setattr("ops.mutation.trial.START", 2.0)  # it keeps a CPU busy until then
        assert outcome("count -= 3", "pass").startswith("timeout by ")


def test_a_session_goes_on_where_it_was_and_keeps_its_sample(tmp_path: Path) -> None:
    drawn = mutants.sample({"proxy/box.py": SOURCE}, 1, 3)
    mine = session.Session(tmp_path / "x.jsonl")
    mine.draw(drawn)
    verdict = Verdict("killed", "tests/test_box.py::test_b", 1.0)
    mine.judged(drawn[1], verdict)
    again = session.Session.open(tmp_path / "x.jsonl")
    assert again.verdicts == {drawn[1].id: verdict}
    assert ids(again.mutants({"proxy/box.py": "# moved\n" + SOURCE})) == ids(drawn)
    assert ids(again.mutants({"proxy/box.py": SOURCE.replace(drawn[0].was, "pass")})) == ids(drawn[1:])


def ids(found: list[Mutant]) -> list[str]:
    return [mutant.id for mutant in found]


def test_every_mutant_that_is_called_equivalent_is_in_the_tree_and_has_its_reason() -> None:
    reasons, stale = session.equivalent(mutants.modules(ROOT))
    assert stale == []
    assert all(len(reason) > 20 for reason in reasons.values())

"""The memory budget: what fits, who is refused first, and that everything comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Code, GatewayError
from proxy.flights.memory import LEAST, Held, Memory, available, budget_for


def test_no_owner_holds_more_than_half() -> None:
    memory = Memory(1000)
    memory.hold("a", "upload", 500)
    with pytest.raises(GatewayError) as refused:
        memory.hold("a", "upload", 1)
    assert refused.value.code is Code.MEMORY_FULL
    assert refused.value.retry_after == 1


def test_the_last_fifth_is_for_those_below_an_equal_share() -> None:
    memory = Memory(1000)
    memory.hold("a", "upload", 500)
    memory.hold("b", "upload", 200)
    light = memory.hold("c", "upload", 100)
    with pytest.raises(GatewayError):
        memory.hold("b", "upload", 140)
    assert light.resize(250)
    assert memory.held == 950
    light.release()
    light.release()
    assert memory.held == 700


def test_what_does_not_fit_changes_nothing() -> None:
    told: list[str] = []
    memory = Memory(1000, on_refused=told.append)
    held = memory.hold("a", "answer", 100)
    assert not held.resize(501)
    assert (held.size, memory.held, memory.kinds, told) == (100, 100, {"answer": 100}, ["answer"])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(("x", "y")), st.integers(0, 400))))
def test_the_sums_are_right_and_everything_comes_back(steps: list[tuple[str, str, int]]) -> None:
    memory = Memory(1000)
    holders: dict[tuple[str, str], Held] = {}
    for owner, kind, size in steps:
        held = holders.setdefault((owner, kind), memory.hold(owner, kind))
        held.resize(size)
        assert memory.held == sum(one.size for one in holders.values()) == sum(memory.kinds.values()) <= 1000
        assert sum(size for _, size in memory.heaviest(10)) == memory.held
    for held in holders.values():
        held.release()
    assert memory.held == 0
    assert memory.heaviest() == []


def test_the_cgroup_s_limit_counts_where_it_is_less(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       1000 kB\n")
    limit = tmp_path / "memory.max"
    assert available((str(limit),), str(meminfo)) == 1_024_000
    limit.write_text("max\n")
    assert available((str(limit),), str(meminfo)) == 1_024_000
    limit.write_text("500000\n")
    assert available((str(limit),), str(meminfo)) == 500_000


def test_a_budget_that_is_set_is_taken_as_it_is() -> None:
    assert budget_for(123) == 123
    assert budget_for(0) >= LEAST


@pytest.mark.parametrize(
    ("budget", "held", "more", "fits"),
    [
        (1000, {}, 500, True),
        (1000, {}, 501, False),  # more than half
        (1001, {}, 500, True),
        (1000, {"a": 250}, 250, True),
        (1000, {"a": 250}, 251, False),
        (1000, {"b": 500, "c": 100}, 200, True),  # up to the last fifth
        (1000, {"b": 300, "c": 100}, 400, True),  # the same, and over an equal share
        (1000, {"b": 300, "c": 100}, 401, False),
        (1000, {"b": 500, "c": 100}, 333, True),  # in it, up to a third
        (1000, {"b": 500, "c": 100}, 334, False),
        (1000, {"a": 100, "b": 500, "c": 200}, 200, True),  # it is one of the three already
        (1000, {"a": 134, "b": 466, "c": 200}, 200, False),
        (1000, {"b": 500, "c": 450}, 50, True),
        (1000, {"b": 500, "c": 450}, 51, False),
    ],
)
def test_the_bounds_of_what_an_owner_may_hold(budget: int, held: dict[str, int], more: int, fits: bool) -> None:
    memory = Memory(budget)
    for owner, size in held.items():
        if owner != "a":
            memory.hold(owner, "x")._memory.resize(Held(memory, owner, "x"), size)
    mine = memory.hold("a", "x")
    assert mine.resize(held.get("a", 0))
    before = (memory.held, memory.kinds["x"])
    assert mine.resize(mine.size + more) is fits
    assert (memory.held - before[0], memory.kinds["x"] - before[1]) == ((more, more) if fits else (0, 0))


def test_the_heaviest_come_first_and_those_that_hold_nothing_are_forgotten() -> None:
    memory = Memory(1000)
    held = [memory.hold(name, "x", size) for name, size in (("a", 10), ("b", 30), ("c", 20), ("d", 5))]
    assert memory.heaviest() == [("b", 30), ("c", 20), ("a", 10)]
    assert memory.heaviest(1) == [("b", 30)]
    held[1].release()
    assert memory.heaviest() == [("c", 20), ("a", 10), ("d", 5)]
    assert repr(memory) == "<Memory 35 of 1000 bytes, 3 owners>"


@pytest.mark.parametrize(
    ("meminfo", "limits", "total"),
    [
        (b"MemTotal: 1000 kB\n", [], 1_024_000),
        (b"MemTotal: 1000 kB\n", [b"1024000"], 1_024_000),
        (b"MemTotal: 1000 kB\n", [b"1023999"], 1_023_999),
        (b"MemTotal: 1000 kB\n", [b"1"], 1),
        (b"MemTotal: 1000 kB\n", [b"0"], 1_024_000),
        (b"MemTotal: 1000 kB\n", [b"\xff", b"900"], 900),
        (b"MemTotal: 1000 kB\n", [b"", b"900", b"800"], 800),
        (b"MemTotal:", [b"900"], 900),
        (b"MemTotal: x kB", [], 4 << 30),
        (b"\xff", [], 4 << 30),
        (b"", [], 4 << 30),
    ],
)
def test_what_there_is_is_the_least_that_can_be_read(
    tmp_path: Path, meminfo: bytes, limits: list[bytes], total: int
) -> None:
    (tmp_path / "meminfo").write_bytes(meminfo)
    paths = [str(tmp_path / "gone")]
    for n, limit in enumerate(limits):
        (tmp_path / str(n)).write_bytes(limit)
        paths.append(str(tmp_path / str(n)))
    assert available(tuple(paths), str(tmp_path / "meminfo")) == total
    assert available((), str(tmp_path / "gone")) == 4 << 30


@pytest.mark.parametrize(("there", "budget"), [(4 * LEAST - 1, LEAST), (4 * LEAST + 4, LEAST + 1)])
def test_an_automatic_budget_is_a_quarter_of_what_there_is_and_no_less_than_some(
    monkeypatch: pytest.MonkeyPatch, there: int, budget: int
) -> None:
    monkeypatch.setattr("proxy.flights.memory.available", lambda: there)
    assert budget_for(0) == budget
    monkeypatch.setattr("proxy.flights.memory.available", lambda: 0)
    assert budget_for(0) == 67_108_864
    assert Memory(9).hold("a", "x").size == 0


def test_who_asks_for_no_more_is_refused_nothing() -> None:
    told: list[str] = []
    memory = Memory(1000, on_refused=told.append)
    memory.hold("a", "x", 500)
    mine = memory.hold("b", "x", 350)
    memory.hold("c", "x", 100)  # now 350 is over an equal share, in the last fifth
    assert mine.resize(350)
    assert not mine.resize(351)
    assert (memory.held, told) == (950, ["x"])

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

"""What a client connection may take its time for, looked at once a second: a pure decision."""

from __future__ import annotations

import math
from typing import Any

import pytest

from proxy.server.listener.timeouts import Over, Times, Watched

TIMES = Times(head=15, stall=60, closing=30)


def looks(*facts: tuple[float, dict[str, Any]], times: Times = TIMES) -> list[Over | None]:
    """What is over at each look, of a connection that was accepted at 0."""
    watched = Watched(0.0)
    usual: dict[str, Any] = {
        "requests": 1, "waits": True, "partial": False, "unread": 0, "taken": 0, "closing": False,
    }  # fmt: skip
    return [watched.look(now, times, **(usual | changes)) for now, changes in facts]


@pytest.mark.parametrize("partial", [False, True])
def test_the_first_head_has_its_time_from_the_accept(partial: bool) -> None:
    facts = {"requests": 0, "partial": partial}
    assert looks((1, facts), (14.9, facts), (15, facts)) == [None, None, "head"]


def test_a_kept_connection_may_be_idle_and_the_next_head_has_its_time_from_its_first_byte() -> None:
    idle, begun = {"partial": False}, {"partial": True}
    assert looks((30, idle), (60, begun), (74, begun), (75, begun)) == [None, None, None, "head"]
    assert looks((30, begun), (44, idle), (46, begun), (60, begun)) == [None, None, None, None]


def test_another_request_begins_the_time_anew() -> None:
    assert looks((10, {"partial": True}), (26, {"partial": True, "requests": 2})) == [None, None]


def test_a_request_under_way_has_no_time_for_a_head() -> None:
    assert looks((99, {"waits": False, "requests": 0}), (999, {"waits": False, "partial": True})) == [None, None]


@pytest.mark.parametrize("state", [{}, {"waits": False}, {"closing": True}, {"requests": 0, "waits": False}])
def test_bytes_that_the_client_does_not_take_end_it_in_every_state(state: dict[str, Any]) -> None:
    stuck = {"unread": 100, "taken": 7} | state
    times = Times(head=15, stall=60, closing=math.inf)
    assert looks((1, stuck), (60, stuck), (61, stuck), times=times) == [None, None, "stall"]


def test_progress_is_what_the_client_took_whatever_is_written_meanwhile() -> None:
    growing = [(now, {"unread": 100 + now, "taken": now}) for now in range(0, 600, 30)]
    assert looks(*growing) == [None] * len(growing)
    stuck = [(now, {"unread": 100 + now, "taken": 7}) for now in (0, 30, 60, 90)]
    assert looks(*stuck)[-2:] == ["stall", "stall"]
    emptied = [(0, {"unread": 5}), (59, {"unread": 0}), (100, {"unread": 5}), (118, {"unread": 5})]
    assert looks(*emptied) == [None] * 4


def test_a_connection_that_closes_is_gone_in_its_time() -> None:
    closing = {"closing": True}
    assert looks((5, closing), (34, closing), (35, closing)) == [None, None, "closing"]


def test_no_stall_time_is_no_limit_but_closing_has_one() -> None:
    times = Times(head=15, closing=30)
    stuck = {"unread": 9, "waits": False}
    assert looks((0, stuck), (10**6, stuck), times=times) == [None, None]
    assert looks((0, stuck | {"closing": True}), (30, stuck | {"closing": True}), times=times)[-1] == "closing"


@pytest.mark.parametrize(
    ("times", "every"), [(TIMES, 1.0), (Times(head=0.4), 0.1), (Times(head=15, stall=0.2), 0.05)]
)
def test_it_is_looked_at_often_enough(times: Times, every: float) -> None:
    assert times.every == pytest.approx(every)

"""Exceptions that are contained: each is counted and told, and every step runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from proxy.errors import Code
from proxy.telemetry.containment import Containment, contained, internal, raised, unawaited
from tests.kit.clock import virtual

ODD = ValueError("odd")


def fails() -> None:
    raise ODD


@pytest.mark.parametrize("at", range(4))
def test_every_step_runs_though_one_raises(at: int) -> None:
    ran: list[int] = []
    told: list[Any] = []
    steps: list[Callable[[], object]] = [lambda n=n: ran.append(n) for n in range(3)]  # type: ignore[misc]
    steps.insert(at, fails)
    assert contained(lambda *given: told.append(given), "here", *steps) is False
    assert (ran, told) == ([0, 1, 2], [("here", ODD)])
    assert contained(lambda *given: told.append(given), "here", steps[at - 1 if at == 3 else at + 1]) is True
    assert len(told) == 1


def test_what_is_contained_is_counted_and_a_report_that_raises_too() -> None:
    told: list[Any] = []
    good, bad = Containment(lambda *given: told.append(given)), Containment(lambda *given: fails())
    assert (good.count, bad.count) == (0, 0)
    for count in (1, 2):
        good("here", ODD)
        bad("here", ODD)
        assert (good.count, bad.count, len(told)) == (count, 2 * count, count)
    assert told[0] == ("here", ODD)
    assert repr(bad) == "<Containment of 4 exceptions>"


@virtual
async def test_a_task_that_raised_is_told_and_has_its_other_end() -> None:
    told: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append((context["message"], context["exception"])))
    raised("first", ODD)

    async def act(how: str) -> None:
        if how == "raises":
            raise ODD
        if how == "waits":
            await loop.create_future()

    others: list[str] = []
    for how in ("raises", "ends", "waits"):
        task = asyncio.ensure_future(act(how))
        await asyncio.sleep(0)
        if how == "waits":
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        unawaited(how, lambda how=how: others.append(how), task)  # type: ignore[misc]
    assert told == [("first", ODD), ("raises", ODD)]
    assert others == ["raises"]
    assert internal().code is Code.INTERNAL

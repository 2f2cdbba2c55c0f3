"""What is done with exceptions that are contained: every step runs, each is reported, a report that fails too."""

from __future__ import annotations

import asyncio
from functools import partial

from proxy.errors import Code
from proxy.telemetry.containment import Containment, contained, internal, unawaited


def test_every_step_runs_whatever_the_ones_before_raised() -> None:
    ran: list[int] = []
    told: list[str] = []

    def fails() -> None:
        raise ValueError("no")

    fine = contained(
        lambda where, e: told.append(f"{where}: {e}"), "here", lambda: ran.append(1), fails, lambda: ran.append(2)
    )
    assert (fine, ran, told) == (False, [1, 2], ["here: no"])
    assert contained(lambda where, e: None, "here", lambda: None)


def test_a_report_that_raises_is_counted_and_harms_nobody() -> None:
    def report(where: str, error: BaseException) -> None:
        raise OSError("the disk is full")

    containment = Containment(report)
    containment("here", ValueError("no"))
    assert containment.count == 2


def test_readers_are_not_told_what_raised() -> None:
    assert internal().code is Code.INTERNAL
    assert "log" in internal().message


async def test_a_task_that_raised_has_its_consequence_and_one_that_ended_well_or_was_cancelled_has_none() -> None:
    reported: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: reported.append(context["message"]))

    async def runs(error: BaseException | None) -> None:
        if error is not None:
            raise error

    consequences: list[str] = []
    for name, error in (("well", None), ("fault", ValueError("no")), ("cancelled", asyncio.CancelledError())):
        task = loop.create_task(runs(error))
        task.add_done_callback(partial(unawaited, "here", partial(consequences.append, name)))
        await asyncio.wait([task])
    assert (reported, consequences) == (["here"], ["fault"])

"""The stages of a search: what the live view is told of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from loadgen.drive.self_error import WorkerError
from loadgen.drive.session import Outcome, Session
from loadgen.drive.stages import Stages
from loadgen.record import Record
from loadgen.spec import Pace
from loadgen.workload import Item
from tests.loadgen.kit.running import PROMPT


class Told(Session):
    """Measures nothing, and keeps what it was told."""

    def __init__(self) -> None:
        self.totals: list[int | None] = []

    async def phase(self, schedule: Any, pace: Pace, emit: Callable[[Record], None], **more: Any) -> Outcome:
        self.totals.append(more["total"])
        return Outcome(worker_error=WorkerError(), start_unix_ns=1)


@pytest.mark.parametrize(("times", "total"), [([0.0, 0.1], 2), (None, None)])
async def test_a_stage_of_users_has_a_time_and_no_number_of_requests(
    times: list[float] | None, total: int | None
) -> None:
    """“28/1000000 done” of a search."""
    session = Told()
    stages = Stages(session, iter([Item(PROMPT)] * 4), lambda record: None)
    await stages.run("4 users", Pace(max_concurrency=4, max_seconds=2.0), 2, times)
    assert session.totals == [total]

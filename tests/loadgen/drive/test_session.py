"""One process's measurement as a whole: when it begins."""

from __future__ import annotations

import time
from collections.abc import Iterator

from loadgen.drive.requests import ScheduledRequest
from loadgen.drive.session import LEAD_NS, Session
from loadgen.record import Record
from loadgen.spec import Pace
from tests.loadgen.kit.running import PROMPT, on_our_loop
from tests.loadgen.kit.servers import GOOD, QUICK, answering, builder_for, serving


@on_our_loop
async def test_a_run_begins_after_its_first_request_was_made() -> None:
    """A trace's first request is due at 0, and its dataset loads its texts for it: it was 7 to 660 ms late."""
    made: list[int] = []

    def schedule() -> Iterator[ScheduledRequest]:
        assert sum(range(2_000_000))  # as long as the texts take to load: some 30 ms
        made.append(time.time_ns())
        for number in range(3):
            yield ScheduledRequest(number, PROMPT, due_s=0.0)

    records: list[Record] = []
    async with serving(answering(GOOD)) as url, Session(QUICK, builder_for(url), max_in_flight=8) as session:
        outcome = await session.phase(schedule(), Pace(open_loop=True), records.append)
    assert [record.index for record in sorted(records, key=lambda record: record.index)] == [0, 1, 2]
    assert len(made) == 1
    assert outcome.start_unix_ns - made[0] >= LEAD_NS - 1_000_000

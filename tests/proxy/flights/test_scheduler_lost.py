"""Streams that another gateway fed until it was lost: they wait in the queue for an engine, and only so long."""

from __future__ import annotations

import asyncio

import pytest

from proxy.errors import Code, GatewayError
from proxy.flights.continuing import LONGEST_WAIT
from proxy.flights.flight import Flight
from proxy.flights.phase import Phase
from proxy.flights.queue.deficit_round_robin import Ticket
from proxy.flights.spec import FlightSpec, Head, Mode
from proxy.wire.openai import decode
from tests.kit.clock import virtual
from tests.proxy.flights.continuing.test_comparison import ROLE, other, say
from tests.proxy.flights.continuing.test_replay import DONE, STOP, Reader
from tests.proxy.flights.test_scheduler import House

LOST = GatewayError(Code.UPSTREAM_TRUNCATED, "lost.")
BODY = b'{"messages":[{"role":"user","content":"x"}],"temperature":0,"stream":true}'


def lost(house: House) -> tuple[Flight, Reader]:
    """A stream of one token that another gateway fed until it was lost."""
    spec = FlightSpec("POST", "/", BODY, Mode.STREAM, "r", key=b"k", api_request=decode("chat", BODY), parts=1)
    flight = house.group.launch(spec)
    reader = Reader(flight)
    flight.follows_node("other", None)
    flight.when_abandoned(house.scheduler._cancel)
    flight.begins(Head())
    flight.frames([ROLE, say("a")])
    house.scheduler.followed(flight, LOST)
    return flight, reader


@virtual
async def test_with_all_engines_full_it_waits_for_one_in_its_turn() -> None:
    house = House(kept=1)
    house.ask()
    earlier, _ = house.ask()
    flight, reader = lost(house)
    later, _ = house.ask()
    assert len(house.scheduler.queue) == 3
    order: list[Flight] = []
    for _ in range(3):
        wire = house.engine.wire
        wire.head()
        wire.body(say("x") + STOP + DONE)
        await house.turn()
        house.engine.dials[-1].set_result(type(wire)())
        await house.turn()
        order += list(house.scheduler._flying)
    assert order == [earlier, flight, later]
    page = house.metrics.render("text/plain")[0].decode()
    waits = [line.split()[-1] for line in page.splitlines() if line.startswith("gateway_place_wait_seconds_count")]
    assert sum(map(float, waits)) == 2, "the time that a stream was served before is no wait"
    house.scheduler.abandon(later)
    await house.scheduler.close()
    assert flight.ended
    assert reader.data


@pytest.mark.parametrize("room", [True, False], ids=["in time", "too late"])
@virtual
async def test_it_is_continued_or_ends_in_the_error_that_says_why(room: bool) -> None:
    house = House(kept=1)
    first, _ = house.ask()
    flight, reader = lost(house)
    await asyncio.sleep(LONGEST_WAIT - 1)
    assert flight.phase is Phase.STREAMING
    if room:
        house.engine.wire.head()
        house.engine.wire.body(say("x") + STOP + DONE)
        await house.turn()
        house.engine.dials[-1].set_result(wire := type(house.engine.wire)())
        await house.turn()
        await asyncio.sleep(2 * LONGEST_WAIT)  # a long prefill is no wait
        wire.head()
        wire.body(other(ROLE + say("ab") + STOP) + DONE)
        assert reader.frames == [ROLE, say("a"), say("b"), STOP, DONE]
    else:
        await asyncio.sleep(1.1)
        assert flight.error is not None
        assert flight.error.code is Code.UPSTREAM_TRUNCATED
        assert flight.error.message == (
            "lost. The stream cannot be continued: no engine had capacity within 30 s."
        )
        house.scheduler.abandon(first)
    await house.turn()
    house.left_nothing()
    await house.scheduler.close()


@virtual
async def test_its_last_reader_that_leaves_takes_it_from_the_queue() -> None:
    house = House(kept=1)
    first, _ = house.ask()
    flight, reader = lost(house)
    reader.subscriber.leave()
    assert flight.phase is Phase.CANCELLED
    assert len(house.scheduler.queue) == 0
    house.scheduler.abandon(first)
    house.left_nothing()
    await house.scheduler.close()


@virtual
async def test_one_that_waits_for_its_place_among_the_continued_waits_only_so_long() -> None:
    house = House(inflight=2)
    first, _ = lost(house)
    second, _ = lost(house)
    assert house.backends.all[0].inflight == 1
    await asyncio.sleep(LONGEST_WAIT + 1)
    assert not first.ended
    assert second.error is not None
    assert second.error.message == "lost. The stream cannot be continued: no engine had capacity within 30 s."
    house.scheduler.abandon(first)
    await house.turn()
    house.left_nothing()
    await house.scheduler.close()


@virtual
async def test_a_full_queue_and_a_queue_that_takes_too_long_are_told_as_why_it_is_not_continued() -> None:
    for limits, words in (
        ({"limit": 1, "ticket": lambda flight: Ticket(owner=b"one")}, "queue"),
        ({"timeout": 5.0}, "within 5 s"),
    ):
        house = House(kept=1, **limits)
        first, _ = house.ask()
        second, _ = house.ask()
        flight, _ = lost(house)
        await asyncio.sleep(5.1)
        assert flight.error is not None
        assert flight.error.code is Code.UPSTREAM_TRUNCATED
        assert flight.error.message.startswith("lost. The stream cannot be continued: ")
        assert words in flight.error.message
        for one in (first, second):
            house.scheduler.abandon(one)
        house.left_nothing()
        await house.scheduler.close()

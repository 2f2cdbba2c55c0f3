"""The clocks of exchanges: every limit is seen to be over, not much too late, by one timer for all."""

from __future__ import annotations

import asyncio

import pytest

from proxy.errors import Code, GatewayError
from proxy.feeder import Feeder, Limits, Watch
from proxy.group import FlightGroup
from proxy.plan import Mode, Plan
from tests.clock import virtual

TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'


class Exchange:
    """A feeder whose flight tells time by the loop's clock."""

    def __init__(self, limits: Limits) -> None:
        self.loop = asyncio.get_running_loop()
        self.group = FlightGroup()
        self.flight = self.group.launch(Plan("POST", "/", b"", Mode.STREAM, "r"))
        self.flight.clock = self.loop.time
        self.ended: asyncio.Future[GatewayError | None] = self.loop.create_future()
        self.watch = Watch(limits, self.loop)
        self.feeder = Feeder(self.flight, limits, self.watch, self.ended.set_result)

    def head(self) -> None:
        self.feeder.head(200, [("content-type", "text/event-stream")])

    def close(self) -> None:
        self.feeder.close()
        self.watch.close()
        self.group.remove(self.flight)


@pytest.mark.parametrize(
    ("limits", "tokens", "code", "due"),
    [
        (Limits(first_token=2, token=5, total=100), 0, Code.UPSTREAM_FIRST_TOKEN_TIMEOUT, 2.0),
        (Limits(first_token=50, token=5, total=100), 1, Code.UPSTREAM_TOKEN_TIMEOUT, 5.0),
        (Limits(first_token=50, token=0, total=9), 1, Code.UPSTREAM_TOTAL_TIMEOUT, 9.0),
        (Limits(first_token=0, token=0, total=3), 0, Code.UPSTREAM_TOTAL_TIMEOUT, 3.0),
        (Limits(first_token=0.05, token=5, total=100), 0, Code.UPSTREAM_FIRST_TOKEN_TIMEOUT, 0.05),
    ],
)
def test_a_limit_is_seen_to_be_over_and_not_much_too_late(
    limits: Limits, tokens: int, code: Code, due: float
) -> None:
    @virtual
    async def passes() -> None:
        exchange = Exchange(limits)
        if tokens:
            exchange.head()
        for _ in range(tokens):
            exchange.feeder.body(TOKEN)
        error = await exchange.ended
        late = exchange.loop.time() - due
        assert error is not None
        assert error.code is code
        assert 0 <= late <= min(1.0, due / 10) + 1e-9
        exchange.close()

    passes()


@virtual
async def test_an_engine_that_is_held_back_is_not_taken_for_a_silent_one() -> None:
    exchange = Exchange(Limits(first_token=2, token=2, total=30))
    exchange.head()
    exchange.feeder.body(TOKEN)
    exchange.feeder.held = True
    error = await exchange.ended
    assert error is not None
    assert error.code is Code.UPSTREAM_TOTAL_TIMEOUT
    exchange.close()


@virtual
async def test_without_limits_and_without_exchanges_no_timer_runs() -> None:
    exchange = Exchange(Limits(first_token=0, token=0, total=0))
    assert len(exchange.watch) == 1
    exchange.close()
    assert len(exchange.watch) == 0
    limited = Exchange(Limits(first_token=1, token=1, total=1))
    limited.feeder.close()
    await asyncio.sleep(5)  # virtual: the timer that was set fires, sees nobody and is not set again
    assert limited.watch._timer is None
    limited.close()


@virtual
async def test_one_read_may_hold_an_event_and_the_front_of_the_next() -> None:
    exchange = Exchange(Limits())
    exchange.head()
    exchange.feeder.body(TOKEN)
    exchange.feeder.body(TOKEN + TOKEN[:9])
    exchange.feeder.body(TOKEN[9:])
    exchange.feeder.body(TOKEN)
    assert exchange.flight.raw_frames() == [TOKEN] * 4
    assert exchange.flight.content_events == 4
    exchange.close()

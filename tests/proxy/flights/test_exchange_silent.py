"""An exchange whose engine is silent: when it moves to another one."""

from __future__ import annotations

import pytest

from proxy.upstream.retry import Budget
from tests.kit.clock import virtual
from tests.kit.trip import Trip
from tests.proxy.flights.test_exchange import answer


@pytest.mark.parametrize("when", ["it connects", "it is over"])
@virtual
async def test_without_a_connection_it_stays_where_it_is_though_others_run(when: str) -> None:
    trip = Trip(engines=3, kept=1, budget=Budget(0, 0))
    trip.exchange.begin()
    trip.exchange.engine_silent()
    assert (trip.flight.backend, trip.inflight) == ("e1", [0, 1, 0])
    if when == "it is over":
        trip.cancel()
    trip.exchange.engine_silent()
    assert (trip.flight.backend, trip.inflight[2], trip.retries()) == ("e1", 0, {"reset": 1})
    if when == "it connects":
        answer(await trip.dialled(1))
    await trip.left_nothing()

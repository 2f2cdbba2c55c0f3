"""Twins that an engine refused together: what it is believed to be unable to do after it answered one alone."""

from __future__ import annotations

import pytest

from tests.kit.clock import virtual
from tests.proxy.flights.test_scheduler import House
from tests.proxy.flights.test_scheduler_twins import answered, body_of, twins


@pytest.mark.parametrize(("status", "body", "few"), [(400, b"{}", False), (422, b"{}", False), (404, b"{}", True)])
@virtual
async def test_one_refused_alone_too_clears_the_engine(status: int, body: bytes, few: bool) -> None:
    house = House(kept=9)
    _, reader = house.ask()
    flights = twins(house, 2)
    await house.turn()
    reader.leave()
    await house.turn()
    (engine,) = house.backends.all
    answered(house, 400, b"{}")
    await house.turn()
    assert engine.few
    answered(house, status, body)
    assert engine.few is few
    await house.turn()
    answered(house, 200, body_of(1))
    assert engine.few is few
    assert all(flight.ended for flight in flights)
    house.left_nothing()
    await house.scheduler.close()

"""Whose rate limits an answer tells: the gateway's where it has some, else the engine's."""

from __future__ import annotations

from typing import Any, cast

import pytest

from proxy.access.ratelimit.limiter import Reservation
from proxy.flights.spec import Head, Mode
from proxy.server.context import RequestContext
from tests.kit.clock import virtual
from tests.kit.gateway_stage import BODY, CHAT, STREAM, Asked, Stage
from tests.kit.wire_end import turns
from tests.proxy.server.test_context_ends import Holds

RATES = (("x-ratelimit-limit-requests", "engine"), ("x-a", "b"))


class Limits:
    """Admits every request, with a reservation where it is on."""

    def __init__(self, on: bool) -> None:
        self.on = on

    async def __call__(self, context: RequestContext, *passed: Any) -> None:
        if self.on:
            context.reserves(lambda: cast(Reservation, Holds()))


@pytest.mark.parametrize("on", [False, True])
@pytest.mark.parametrize("body", [BODY, STREAM])
@virtual
async def test_limits_of_the_engine_are_passed_on_where_there_are_none_here(on: bool, body: bytes) -> None:
    stage, asked = Stage(admission=Limits(on)), Asked(CHAT, body)
    task = stage.handle(asked)
    await turns()
    (flight,) = stage.flights
    if flight.mode is Mode.STREAM:
        flight.head = Head(200, RATES)
        flight.frames([b"data: {}\n\n"])
        flight.land()
    else:
        flight.append_body(b"{}")
        flight.land(Head(200, RATES))
    await task
    assert b"x-a: b\r\n" in asked.sent
    limits = [line for line in asked.sent.split(b"\r\n") if line.startswith(b"x-ratelimit-limit-requests")]
    assert limits == [b"x-ratelimit-limit-requests: " + (b"1" if on else b"engine")]
    stage.end()

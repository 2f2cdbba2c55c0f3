"""What operators are shown of Redis, from what its breakers have met."""

from __future__ import annotations

import asyncio

from proxy.redis.availability import Availability
from proxy.redis.health import RedisState, Use
from proxy.redis.resp import Lost, ReplyError
from tests.kit.clock import virtual

USES: tuple[Use, ...] = ("stores", "rate limits", "look-ups")
FULL = ReplyError("OOM x")
LOGIN = Lost("it refused the login", "WRONGPASS")


def test_without_redis_and_without_trouble() -> None:
    assert RedisState("off").shown() == {"is": "off", "state": "off", "detail": ""}
    assert RedisState("yours").shown() == {"is": "yours", "state": "in use", "detail": ""}
    assert (RedisState("off").line, RedisState("embedded").line) == ("off", "embedded")


async def good() -> None:
    """A probe that succeeds."""


@virtual
async def test_each_trouble_is_shown_with_its_uses_until_it_is_over() -> None:
    state = RedisState("yours")
    breakers = {use: Availability(good, lambda trouble: None) for use in USES}
    for use, breaker in breakers.items():
        state.watch(use, breaker)
        breaker.start()
    assert state.line == "yours"
    breakers["stores"].failed(FULL)
    assert (state.state, state.detail) == ("refuses: OOM", f"stores: {FULL}")
    breakers["rate limits"].failed(FULL)
    assert (state.state, state.detail) == ("refuses: OOM", f"stores and rate limits: {FULL}")
    breakers["look-ups"].failed(LOGIN)
    both = f"stores and rate limits: {FULL}; look-ups: {LOGIN}"
    assert (state.state, state.detail) == ("refuses: OOM, WRONGPASS", both)
    assert [state.refuses(reason) for reason in ("OOM", "WRONGPASS", "NOPERM", "")] == [True, True, False, False]
    breakers["look-ups"].failed(Lost("no connection"))
    assert state.state == "away"
    assert state.line == f"away (stores and rate limits: {FULL}; look-ups: no connection)"
    breakers["look-ups"].failed(Lost("it refused the login", "WRONGPASS"))
    assert state.detail == both, "the latest trouble, though each kind is reported once"
    for breaker in breakers.values():
        await breaker.stop()


@virtual
async def test_a_trouble_that_is_over_is_shown_no_more() -> None:
    state, breaker = RedisState("yours"), Availability(good, lambda trouble: None)
    state.watch("look-ups", breaker)
    breaker.start()
    breaker.failed(Lost("gone"))
    assert state.state == "away"
    await asyncio.sleep(1.0)
    assert (state.state, state.detail, state.line) == ("in use", "", "yours")
    await breaker.stop()

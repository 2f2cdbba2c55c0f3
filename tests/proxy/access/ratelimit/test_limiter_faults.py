"""Limits where something raises half way, where the default hooks are called, and where prices meet ceilings."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import cast

import pytest

from proxy.access.caller import Caller, Rates
from proxy.access.ratelimit.buckets import Claim, Decision, Levels, Limit, Limits, LocalLimits
from proxy.access.ratelimit.limiter import Followers, Limiter
from proxy.access.ratelimit.redis import RedisLimits
from proxy.errors import Code, GatewayError
from proxy.flights.cost import Cost
from proxy.flights.flight import Flight
from proxy.flights.phase import Phase
from proxy.flights.spec import Items
from proxy.wire.frames import Usage
from tests.proxy.access.ratelimit.test_limiter import ALICE, GRANTED, Desk, Memory, at_engine, entered


class Failing(Memory):
    """A Redis side that raises where a permit is made known to it."""

    def __init__(self, *, at_once: bool = False) -> None:
        super().__init__()
        self.at_once = at_once

    def acquire(self, claim: Claim, done: Callable[[Decision | None], None]) -> None:
        super().acquire(claim, done)
        if self.at_once:
            done(None)

    def hold(self, claim: Claim) -> None:
        raise ZeroDivisionError


async def test_what_raises_while_it_is_asked_keeps_no_place() -> None:
    desk = Desk(Failing(at_once=True))
    with pytest.raises(ZeroDivisionError):
        desk.ask()
    assert desk.local.streams == 0


async def test_who_waits_for_a_decision_that_raises_is_told_and_all_goes_back_at_its_end() -> None:
    memory = Failing()
    desk = Desk(memory)
    hold = desk.ask()
    waiting = asyncio.ensure_future(hold.allowed())
    await asyncio.sleep(0)
    done = memory.asked[0][1]
    with pytest.raises(ZeroDivisionError):
        done(GRANTED)
    for wait in (waiting, asyncio.ensure_future(hold.allowed())):
        with pytest.raises(GatewayError) as told:
            await wait
        assert told.value.code is Code.INTERNAL
    done(GRANTED)  # of one that is broken nothing more is taken
    assert (hold.decision, desk.local.streams) == (None, 1)
    hold.close()
    assert memory.given == [(-1, -300, True)]
    assert desk.local.streams == 0


async def test_of_a_client_that_left_before_a_decision_that_raises_nothing_is_kept() -> None:
    memory = Failing()
    desk = Desk(memory)
    desk.ask().close()
    with pytest.raises(ZeroDivisionError):
        memory.asked[0][1](GRANTED)
    assert memory.given == [(-1, -300, True)]
    assert desk.local.streams == 0


async def test_permits_are_named_one_by_one_for_each_process() -> None:
    desk = Desk()
    names = [desk.ask(1, 1).claim.permit for _ in range(2)]
    process, first = names[0].split(":")
    assert re.fullmatch("[0-9a-f]{12}", process)
    assert (first, names[1]) == ("1", f"{process}:2")
    assert Desk().ask().claim.permit != names[0]


async def test_without_hooks_a_limiter_refuses_and_falls_back_all_the_same() -> None:
    memory = Memory()
    limiter = Limiter(LocalLimits(0.0), cast(RedisLimits, memory), default=Rates(rps=1))
    holds = []
    for _ in range(2):
        hold = limiter.ask(Caller(id="a"), lambda: Cost(9, 9))
        assert hold is not None
        memory.asked.pop()[1](None)
        holds.append(hold)
    await holds[0].allowed()
    assert holds[0].limit is None
    with pytest.raises(GatewayError):
        await holds[1].allowed()
    assert holds[1].limit == "requests"


async def test_a_refusal_by_everyone_s_ceiling_is_named_global() -> None:
    refused: list[str] = []
    limiter = Limiter(LocalLimits(0.0), everyone=Limits(streams=1), on_refused=refused.append, clock=lambda: 0.0)
    first, second = (limiter.ask(Caller(id=name), lambda: Cost(9, 9)) for name in "ab")
    assert first is not None
    assert second is not None
    await first.allowed()
    with pytest.raises(GatewayError) as told:
        await second.allowed()
    assert told.value.code is Code.CEILING_REACHED
    assert (refused, second.limit, first.limit) == (["global"], "global.streams", None)
    second.close()
    assert limiter.local.streams == 1


@pytest.mark.parametrize(
    ("own", "everyone", "cost", "tokens"),
    [
        (None, None, Cost(10, 10), 0),
        (100.0, None, Cost(10, 20), 30),
        (100.0, None, Cost(10, 500), 100),
        (100.0, 50.0, Cost(10, 500), 50),
        (50.0, 100.0, Cost(10, 500), 50),
        (None, 100.0, Cost(10, 500), 100),
        (100.0, None, Cost(100, 500), 100),
        (100.0, None, Cost(101, 500), 101),
        (100.0, None, Cost(300, 500), 300),
    ],
)
async def test_a_request_asks_for_its_prompt_and_for_no_more_answer_than_can_ever_pass(
    own: float | None, everyone: float | None, cost: Cost, tokens: int
) -> None:
    asked: list[int] = []

    def estimate() -> Cost:
        asked.append(1)
        return cost

    rates = Rates(streams=9, tokens_per_minute=None if own is None else int(own))
    limiter = Limiter(
        LocalLimits(0.0), everyone=Limits(tokens=Limit(1, everyone) if everyone else None), clock=lambda: 0.0
    )
    hold = limiter.ask(Caller(id="a", rates=rates), estimate)
    assert hold is not None
    assert (hold.claim.tokens, len(asked)) == (tokens, int(bool(own or everyone)))


async def test_a_request_without_tokens_is_not_asked_for_twice() -> None:
    limiter = Limiter(LocalLimits(0.0), default=Rates(streams=2), clock=lambda: 0.0)
    hold = limiter.ask(Caller(id="a"), lambda: Cost(9, 9))
    assert hold is not None
    await hold.allowed()
    decision = hold.decision
    await hold.spends(lambda: Cost(9, 9))
    assert hold.decision is decision
    assert hold.claim.requests == 1


async def test_what_redis_refuses_of_the_tokens_is_charged_nowhere() -> None:
    memory = Memory()
    desk = Desk(memory)
    hold = desk.limiter.ask(ALICE, lambda: Cost(0, 0))
    assert hold is not None
    memory.asked.pop()[1](GRANTED)
    spending = asyncio.ensure_future(hold.spends(lambda: Cost(100, 200)))
    await asyncio.sleep(0)
    assert hold.decision is None
    assert hold.headers() == []
    memory.asked.pop()[1](Decision(("caller", "tokens"), Levels(1, 900, 1), Levels()))
    with pytest.raises(GatewayError):
        await spending
    assert desk.levels() == (1, 0, 1)
    hold.close()
    assert memory.given == [(-1, 0, True)]
    assert desk.levels() == (0, 0, 0)


async def test_what_redis_lets_through_of_the_tokens_is_counted_here_though_it_would_be_over() -> None:
    memory = Memory()
    desk = Desk(memory)
    desk.ask(900, 0)
    memory.asked.pop()[1](GRANTED)
    hold = desk.limiter.ask(ALICE, lambda: Cost(0, 0))
    assert hold is not None
    memory.asked.pop()[1](GRANTED)
    spending = asyncio.ensure_future(hold.spends(lambda: Cost(100, 200)))
    await asyncio.sleep(0)
    memory.asked.pop()[1](GRANTED)
    await spending
    assert desk.levels() == (2, 1200, 2)
    hold.close()
    assert desk.levels() == (1, 900, 1)


async def test_an_answer_of_our_own_costs_a_request_and_may_be_closed_twice() -> None:
    desk = Desk()
    hold = desk.ask()
    hold.close(answered=True)
    hold.close()
    assert desk.levels() == (1, 0, 0)


@pytest.mark.parametrize(("followers", "tokens"), [("generation", 40), ("reader", 100)])
async def test_of_an_array_only_what_it_asked_for_itself_is_paid(followers: Followers, tokens: int) -> None:
    desk = Desk(followers=followers)
    hold = desk.ask()
    flight = desk.flies(hold)
    at_engine(flight)
    flight.enter(Phase.STREAMING)
    flight.usage = Usage(prompt_tokens=100, completion_tokens=0)
    flight.items = Items(3, 1, unpaid=60)
    flight.land()
    hold.close()
    assert desk.levels() == (1, tokens, 0)
    desk.group.remove(flight)


@pytest.mark.parametrize("followers", ["generation", "reader"])
async def test_who_joins_a_stored_answer_pays_a_request(followers: Followers) -> None:
    desk = Desk(followers=followers)
    payer, follower = desk.ask(), desk.ask()
    flight: Flight = desk.flies(payer, stored=True)
    follower.joins(desk.group.attach(flight, usage=True, whole=False, attached=True))
    flight.usage = Usage(prompt_tokens=10, completion_tokens=20)
    flight.land()
    payer.close()
    follower.close()
    assert desk.levels() == (2, 0 if followers == "generation" else 60, 0)
    desk.group.remove(flight)


async def test_a_follower_without_tokens_gives_none_back() -> None:
    memory = Memory()
    desk = Desk(memory)
    payer = desk.ask()
    memory.asked.pop()[1](GRANTED)
    flight = desk.flies(payer)
    hold = desk.limiter.ask(ALICE, lambda: Cost(0, 0))
    assert hold is not None
    memory.asked.pop()[1](GRANTED)
    await hold.allowed()
    hold.joins(desk.group.attach(flight, usage=True, whole=False, attached=True))
    assert memory.given == []
    late = await entered(Desk())
    assert late.headers()[0][0] == "x-ratelimit-limit-requests"
    hold.close()
    payer.close()
    desk.group.remove(flight)


async def test_without_tokens_of_one_s_own_a_request_pays_none() -> None:
    limiter = Limiter(LocalLimits(0.0), everyone=Limits(Limit(1, 5)), clock=lambda: 0.0)
    hold = limiter.ask(Caller(id="a"), lambda: Cost(100, 100))
    assert hold is not None
    assert [name for name, _ in hold.headers()][:1] == ["x-ratelimit-limit-requests"]
    hold.close()
    assert limiter.local.streams == 0

"""What one request has of the limits: taken once, given back once, whatever happens in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from proxy.access.caller import Caller, Rates
from proxy.access.ratelimit.buckets import Claim, Decision, Levels, Limits, LocalLimits
from proxy.access.ratelimit.limiter import Followers, Limiter, Reservation
from proxy.access.ratelimit.redis import RedisLimits
from proxy.errors import Code, GatewayError
from proxy.flights.cost import Cost
from proxy.flights.flight import Flight
from proxy.flights.group import FlightGroup
from proxy.flights.phase import Phase
from proxy.flights.spec import FlightSpec, Head, Mode
from proxy.wire.frames import Usage

ALICE = Caller(id="alice", rates=Rates(rps=1, burst=5, tokens_per_minute=1000, streams=3))
GRANTED = Decision(None, Levels(1, 0, 1), Levels())


class Memory:
    """A Redis that answers when the test says so, and remembers what it was given back."""

    def __init__(self) -> None:
        self.asked: list[tuple[Claim, Callable[[Decision | None], None]]] = []
        self.held: list[str] = []
        self.given: list[tuple[int, float, bool]] = []

    def acquire(self, claim: Claim, done: Callable[[Decision | None], None]) -> None:
        self.asked.append((claim, done))

    def hold(self, claim: Claim) -> None:
        self.held.append(claim.permit)

    def refund(self, claim: Claim, *, requests: int = 0, tokens: float = 0, stream: bool = False) -> None:
        self.given.append((requests, tokens, stream))


class Desk:
    """A limiter with its clock standing still, and Flights to pay for."""

    def __init__(self, memory: Memory | None = None, followers: Followers = "generation") -> None:
        self.refused: list[str] = []
        self.fallbacks = 0
        self.group = FlightGroup()
        self.local = LocalLimits(0.0)
        self.limiter = Limiter(
            self.local,
            cast(RedisLimits | None, memory),
            followers=followers,
            on_refused=self.refused.append,
            on_fallback=self.fell,
            clock=lambda: 0.0,
        )

    def fell(self) -> None:
        self.fallbacks += 1

    def ask(self, prompt: int = 100, completion: int = 200) -> Reservation:
        hold = self.limiter.ask(ALICE, lambda: Cost(prompt, completion))
        assert hold is not None
        return hold

    def levels(self) -> tuple[float, float, int]:
        """As they are, asked without taking."""
        peek = Claim("peek", "alice", *self._bounds(), 0)
        taken = self.local.acquire(peek, 0.0, force=True)
        self.local.refund(peek, 0.0, requests=-1, stream=True)
        return taken.own.requests - 1, taken.own.tokens, taken.own.streams - 1

    def _bounds(self) -> tuple[Limits, Limits]:
        hold = self.limiter.ask(ALICE, lambda: Cost(0, 0))
        assert hold is not None
        hold.close()
        return hold.claim.own, hold.claim.everyone

    def flies(self, hold: Reservation, *, stored: bool = False) -> Flight:
        flight = self.group.launch(FlightSpec("POST", "/", b"", Mode.STREAM, "r", key=b"k"))
        hold.joins(self.group.attach(flight, usage=True, whole=False))
        if stored:
            flight.stored_at = 1.0
            flight.replay_stored(Head(200), b"x", b"x", None)
        return flight


def at_engine(flight: Flight) -> None:
    flight.enter(Phase.CONNECTING)
    flight.enter(Phase.PREFILL)


async def test_a_whole_answer_costs_what_its_usage_says_and_a_request() -> None:
    desk = Desk()
    hold = desk.ask()
    await hold.allowed()
    assert desk.levels() == (1, 300, 1)
    flight = desk.flies(hold)
    at_engine(flight)
    flight.enter(Phase.STREAMING)
    flight.usage = Usage(prompt_tokens=90, completion_tokens=700)
    flight.land()
    assert desk.levels() == (1, 300, 1)  # the client has not read it yet
    hold.close()
    hold.close()
    assert desk.levels() == (1, 790, 0)
    desk.group.remove(flight)


@pytest.mark.parametrize(
    ("at", "left"),
    [("queued", (0, 0, 0)), ("connecting", (0, 0, 0)), ("prefill", (1, 100, 0)), ("streaming", (1, 107, 0))],
)
async def test_leaving_gives_back_what_was_not_used_in_every_phase(
    at: str, left: tuple[float, float, int]
) -> None:
    desk = Desk()
    hold = desk.ask()
    flight = desk.flies(hold)
    if at != "queued":
        flight.enter(Phase.CONNECTING)
    if at in ("prefill", "streaming"):
        flight.enter(Phase.PREFILL)
    if at == "streaming":
        flight.enter(Phase.STREAMING)
        flight.times.first, flight.content_events = 1.0, 7
    flight.cancel()
    hold.close()
    assert desk.levels() == left
    desk.group.remove(flight)


async def test_a_request_that_never_came_to_a_flight_gives_all_back() -> None:
    desk = Desk()
    desk.ask().close()
    assert desk.levels() == (0, 0, 0)


async def test_a_flight_that_the_queue_would_not_take_costs_nothing() -> None:
    desk = Desk()
    hold = desk.ask()
    flight = desk.flies(hold)
    for reader in tuple(flight.subscribers):
        reader.leave()
    hold.close()
    assert desk.levels() == (0, 0, 0)
    assert flight.on_end is None
    desk.group.remove(flight)


async def test_whoever_began_a_generation_pays_for_it_to_its_end_though_it_left() -> None:
    """Else one would begin a generation, join it a second time, and leave the first."""
    desk = Desk()
    hold, follower = desk.ask(), desk.ask()
    flight = desk.flies(hold)
    at_engine(flight)
    follower.joins(desk.group.attach(flight, usage=True, whole=False, attached=True))
    hold.close()
    assert desk.levels() == (2, 300, 1)
    flight.enter(Phase.STREAMING)
    flight.usage = Usage(prompt_tokens=100, completion_tokens=50)
    flight.land()
    assert desk.levels() == (2, 150, 1)
    follower.close()
    assert desk.levels() == (2, 150, 0)
    desk.group.remove(flight)


@pytest.mark.parametrize(("followers", "tokens"), [("generation", 150), ("reader", 300)])
async def test_a_follower_pays_its_request_and_by_setting_its_tokens(followers: Followers, tokens: int) -> None:
    desk = Desk(followers=followers)
    hold, follower = desk.ask(), desk.ask()
    flight = desk.flies(hold)
    at_engine(flight)
    follower.joins(desk.group.attach(flight, usage=True, whole=False, attached=True))
    assert desk.levels() == (2, 300 if followers == "generation" else 600, 2)
    flight.enter(Phase.STREAMING)
    flight.usage = Usage(prompt_tokens=100, completion_tokens=50)
    flight.land()
    hold.close()
    follower.close()
    assert desk.levels() == (2, tokens, 0)
    desk.group.remove(flight)


async def test_a_follower_of_what_reached_no_engine_pays_nothing() -> None:
    desk = Desk()
    hold, follower = desk.ask(), desk.ask()
    flight = desk.flies(hold)
    follower.joins(desk.group.attach(flight, usage=True, whole=False, attached=True))
    flight.fail(GatewayError(Code.QUEUE_TIMEOUT, "too long"))
    hold.close()
    follower.close()
    assert desk.levels() == (0, 0, 0)
    desk.group.remove(flight)


@pytest.mark.parametrize(("followers", "tokens"), [("generation", 0), ("reader", 150)])
async def test_a_hit_costs_a_request_and_by_setting_its_tokens(followers: Followers, tokens: int) -> None:
    desk = Desk(followers=followers)
    hold = desk.ask()
    flight = desk.flies(hold, stored=True)
    flight.usage = Usage(prompt_tokens=100, completion_tokens=50)
    flight.land()
    hold.close()
    assert desk.levels() == (1, tokens, 0)
    desk.group.remove(flight)


async def test_a_guess_at_the_answer_s_length_alone_refuses_nobody_but_a_long_prompt_does() -> None:
    desk = Desk()
    hold = desk.ask(prompt=900, completion=5000)
    await hold.allowed()
    assert hold.claim.tokens == 1000
    hold.close()
    with pytest.raises(GatewayError, match="shorter prompt"):
        await desk.ask(prompt=1001, completion=0).allowed()
    assert desk.refused == ["tokens"]


async def test_a_caller_without_limits_has_no_hold() -> None:
    assert Desk().limiter.ask(Caller(id="x"), lambda: Cost(1, 1)) is None


# With Redis


async def test_what_redis_lets_through_is_counted_here_too_and_given_back_to_both() -> None:
    memory = Memory()
    desk = Desk(memory)
    hold = desk.ask()
    waiting = asyncio.ensure_future(hold.allowed())
    await asyncio.sleep(0)
    assert hold.headers() == []
    memory.asked[0][1](GRANTED)
    await waiting
    assert memory.held == [hold.claim.permit]
    assert hold.headers()[0] == ("x-ratelimit-limit-requests", "5")
    hold.close()
    assert memory.given == [(-1, -300, True)]
    assert desk.local.streams == 0


async def test_a_client_that_left_while_redis_was_asked_gets_its_permit_straight_back() -> None:
    """Complaint: the decrement of a cancelled call was cancelled with it (LiteLLM 28160)."""
    memory = Memory()
    desk = Desk(memory)
    hold = desk.ask()
    waiting = asyncio.ensure_future(hold.allowed())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    hold.close()
    assert memory.given == []
    memory.asked[0][1](GRANTED)
    assert memory.given == [(-1, -300, True)]
    assert desk.local.streams == 0


async def test_cancelled_in_the_turn_in_which_it_was_granted_it_leaks_nothing() -> None:
    memory = Memory()
    desk = Desk(memory)
    hold = desk.ask()
    waiting = asyncio.ensure_future(hold.allowed())
    await asyncio.sleep(0)
    memory.asked[0][1](GRANTED)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    hold.close()
    assert memory.given == [(-1, -300, True)]
    assert desk.local.streams == 0


async def test_where_redis_cannot_tell_this_process_limits_from_what_it_had_let_through() -> None:
    memory = Memory()
    desk = Desk(memory)
    for _ in range(2):
        desk.ask(1, 1)
        memory.asked.pop()[1](GRANTED)
    third, fourth = desk.ask(1, 1), desk.ask(1, 1)
    for _, done in memory.asked:
        done(None)
    await third.allowed()
    with pytest.raises(GatewayError, match="limit 3 requests under way"):
        await fourth.allowed()
    assert desk.fallbacks == 2
    third.close()
    assert memory.given == [(0, 0, True)]  # only the permit: Redis had not charged it


async def test_what_redis_refuses_takes_nothing_here() -> None:
    memory = Memory()
    desk = Desk(memory)
    hold = desk.ask()
    memory.asked[0][1](Decision(("caller", "requests"), Levels(5, 0, 0), Levels()))
    with pytest.raises(GatewayError) as caught:
        await hold.allowed()
    assert (caught.value.status, caught.value.retry_after) == (429, 1)
    hold.close()
    assert (memory.given, memory.held, desk.local.streams) == ([], [], 0)


async def entered(desk: Desk) -> Reservation:
    """Let in by its head: what its tokens cost is not known yet."""
    hold = desk.limiter.ask(ALICE, lambda: Cost(0, 0))
    assert hold is not None
    await hold.allowed()
    return hold


async def test_a_request_let_in_by_its_head_pays_its_tokens_after_it_and_one_request_in_all() -> None:
    desk = Desk()
    hold = await entered(desk)
    assert desk.levels() == (1, 0, 1)
    await hold.spends(lambda: Cost(100, 200))
    assert desk.levels() == (1, 300, 1)
    assert hold.decision is not None
    assert hold.decision.own == Levels(1, 300, 1)
    hold.close()
    assert desk.levels() == (0, 0, 0)


async def test_the_tokens_refused_the_request_and_its_place_go_back() -> None:
    desk = Desk()
    first = desk.ask(prompt=900, completion=0)
    hold = await entered(desk)
    with pytest.raises(GatewayError) as refused:
        await hold.spends(lambda: Cost(200, 0))
    assert refused.value.status == 429
    assert (desk.refused, hold.limit) == (["tokens"], "tokens")
    assert desk.levels() == (2, 900, 2)  # until it is closed
    hold.close()
    assert desk.levels() == (1, 900, 1)
    first.close()


async def test_of_what_the_head_lets_in_the_streams_are_counted_once() -> None:
    desk = Desk()
    holds = [await entered(desk) for _ in range(3)]  # as many as may be under way
    for hold in holds:
        await hold.spends(lambda: Cost(1, 1))
    assert desk.levels()[2] == 3
    for hold in holds:
        hold.close()
    assert desk.levels() == (0, 0, 0)


async def asks_redis(memory: Memory, desk: Desk) -> tuple[Reservation, asyncio.Task[None]]:
    hold = desk.limiter.ask(ALICE, lambda: Cost(0, 0))
    assert hold is not None
    memory.asked.pop()[1](GRANTED)
    await hold.allowed()
    spending = asyncio.ensure_future(hold.spends(lambda: Cost(100, 200)))
    await asyncio.sleep(0)
    return hold, spending


async def test_redis_is_asked_twice_and_the_second_time_for_tokens_alone() -> None:
    memory = Memory()
    desk = Desk(memory)
    hold, spending = await asks_redis(memory, desk)
    claim, done = memory.asked.pop()
    assert (claim.requests, claim.tokens, claim.permit) == (0, 300, memory.held[0])
    done(Decision(None, Levels(1, 300, 1), Levels()))
    await spending
    hold.close()
    assert memory.given == [(-1, -300, True)]
    assert desk.levels() == (0, 0, 0)


async def test_who_leaves_while_redis_is_asked_for_tokens_gets_all_of_them_back() -> None:
    memory = Memory()
    desk = Desk(memory)
    hold, spending = await asks_redis(memory, desk)
    spending.cancel()
    hold.close()
    assert memory.given == [(-1, 0, True)]
    memory.asked.pop()[1](Decision(None, Levels(1, 300, 1), Levels()))
    assert memory.given[1:] == [(0, -300, False)]
    assert desk.levels() == (0, 0, 0)


async def test_redis_gone_between_the_two_questions_nothing_is_given_back_that_it_was_not_charged() -> None:
    memory = Memory()
    desk = Desk(memory)
    hold, spending = await asks_redis(memory, desk)
    memory.asked.pop()[1](None)
    await spending
    assert desk.fallbacks == 1
    assert desk.levels() == (1, 300, 1)
    hold.close()
    assert memory.given == [(0, 0, True)]
    assert desk.levels() == (0, 0, 0)

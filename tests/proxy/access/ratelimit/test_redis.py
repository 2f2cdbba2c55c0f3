"""Limits in a real Redis: the script says what the arithmetic says, permits expire, nobody is held up."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.access.ratelimit.buckets import UNBOUNDED, Claim, Decision, Limit, Limits, LocalLimits
from proxy.access.ratelimit.redis import BATCH, RedisLimits
from proxy.embedded.redis import EmbeddedRedis, server_binary
from proxy.redis.client import RedisClient
from proxy.redis.url import address
from tests.kit.patience import patience
from tests.kit.redis_server import redis_server
from tests.kit.running import pause, until

SLOW = Limit(0.0001, 3)  # nothing leaks while a test runs
BOUNDS = Limits(SLOW, Limit(0.0001, 100), 2)


def claim(permit: str, own: Limits = BOUNDS, everyone: Limits = UNBOUNDED, *, tokens: int = 0) -> Claim:
    return Claim(permit, "a", own, everyone, tokens)


async def ask(shared: RedisLimits, wanted: Claim) -> Decision | None:
    """One decision; where it is granted the permit is held, as the limiter does."""
    told: asyncio.Future[Decision | None] = asyncio.get_running_loop().create_future()
    shared.acquire(wanted, told.set_result)
    decision = await told
    if decision is not None and decision.over is None:
        shared.hold(wanted)
    return decision


@asynccontextmanager
async def shared_limits(path: str, *, timeout: float = 30.0, lease: float = 30.0) -> AsyncIterator[RedisLimits]:
    shared = RedisLimits(f"unix://{path}", timeout=timeout, lease=lease)
    await shared.start()
    try:
        yield shared
    finally:
        await shared.stop()


async def redis_says(path: str, *command: str) -> object:
    link = RedisClient(address(f"unix://{path}"), connect_timeout=30)
    try:
        return await link.call(*command, timeout=30)
    finally:
        await link.close()


async def test_a_decision_says_who_was_over_and_how_full_it_is() -> None:
    async with redis_server() as path, shared_limits(path) as shared:
        first = await ask(shared, claim("1", tokens=60))
        assert first is not None
        assert (first.over, first.own) == (None, (1, 60, 1))
        second = await ask(shared, claim("2", tokens=60))
        assert second is not None
        assert second.over == ("caller", "tokens")
        assert second.own == pytest.approx((1, 60, 1), abs=0.01)
        assert (await ask(shared, claim("3", tokens=1))) is not None
        third = await ask(shared, claim("4"))
        assert third is not None
        assert third.over == ("caller", "streams")


async def test_a_refusal_for_everyone_takes_nothing_of_one_s_own() -> None:
    """Complaint: a call rejected by one limit kept what it had taken of another (LiteLLM 27955)."""
    async with redis_server() as path, shared_limits(path) as shared:
        tight = Limits(streams=1)
        await ask(shared, claim("1", everyone=tight, tokens=10))
        for permit in "234":
            refused = await ask(shared, claim(permit, everyone=tight, tokens=10))
            assert refused is not None
            assert refused.over == ("global", "streams")
            assert refused.own == pytest.approx((1, 10, 1), abs=0.01)


async def test_all_that_is_asked_in_one_turn_is_one_write_and_exact() -> None:
    async with redis_server() as path, shared_limits(path) as one, shared_limits(path) as other:
        bounds = Limits(Limit(0.0001, 50))
        asked = [ask(shared, claim(f"{i}", bounds)) for i, shared in enumerate([one, other] * 100)]
        decisions = await asyncio.gather(*asked)
        assert [d.over for d in decisions if d is not None].count(None) == 50
        assert None not in decisions


steps = st.lists(
    st.tuples(st.sampled_from(["take", "spend", "end", "refund"]), st.integers(0, 60), st.integers(0, 5)),
    max_size=25,
)


@pytest.fixture(scope="module")
def lasting_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One redis-server for all examples of a property; each empties it."""
    home = tmp_path_factory.mktemp("redis")
    words = ("--port", "0", "--unixsocket", f"{home}/s", "--dir", str(home), "--save", "")
    with subprocess.Popen([str(server_binary()), *words], stdout=subprocess.DEVNULL) as process:
        while not (home / "s").exists():
            assert process.poll() is None, "redis-server ended"
        yield f"{home}/s"
        process.kill()


@given(steps=steps, everyone=st.booleans())
def test_the_script_and_the_arithmetic_agree_step_by_step(
    lasting_redis: str, steps: list[tuple[str, int, int]], everyone: bool
) -> None:
    async def play() -> None:
        bounds = Limits(SLOW, Limit(0.0001, 100), 2)
        all_ = Limits(Limit(0.0001, 5), Limit(0.0001, 150), 3) if everyone else Limits()
        await redis_says(lasting_redis, "FLUSHALL")
        async with shared_limits(lasting_redis) as shared:
            local, held = LocalLimits(0.0), []
            for n, (what, tokens, which) in enumerate(steps):
                if what in ("take", "spend"):
                    wanted = Claim(f"{n}", "ab"[which % 2], bounds, all_, tokens, requests=int(what == "take"))
                    here, there = local.acquire(wanted, 0.0), await ask(shared, wanted)
                    assert there is not None
                    assert there.over == here.over
                    assert there.own == pytest.approx(here.own, abs=0.01)
                    if everyone:
                        assert there.everyone == pytest.approx(here.everyone, abs=0.01)
                    held += [wanted] if here.over is None and wanted.requests else []
                elif held:
                    wanted = held.pop(which % len(held))
                    back = what == "refund"
                    local.refund(
                        wanted, 0.0, requests=-back, tokens=-wanted.tokens if back else tokens, stream=True
                    )
                    shared.refund(wanted, requests=-back, tokens=-wanted.tokens if back else tokens, stream=True)

    asyncio.run(play())


async def test_meters_leak_by_redis_own_clock_and_then_are_gone() -> None:
    async with redis_server() as path, shared_limits(path) as shared:
        fast = Limits(Limit(50, 1))
        assert (await ask(shared, claim("1", fast))) is not None
        while (decision := await ask(shared, claim("2", fast))) is None or decision.over is not None:
            pass  # 20 ms
        ttl = await redis_says(path, "PTTL", "gateway:limit:m:a")
        assert isinstance(ttl, int)
        assert ttl == -2 or 0 < ttl <= 1020  # -2: gone already


@pytest.mark.parametrize("value", ["inf", "1e400", "nan", "-inf", "1e300", "-1e300", "x", "99999999999999999999"])
@pytest.mark.parametrize("member", ["r", "t", "at"])
async def test_a_level_that_no_gateway_has_written_is_none(member: str, value: str) -> None:
    async with redis_server() as path, shared_limits(path) as shared:
        await ask(shared, claim("1", tokens=10))
        assert await redis_says(path, "HSET", "gateway:limit:m:a", member, value) == 0  # it is there
        decision = await ask(shared, claim("2", tokens=10))
        assert decision is not None
        assert decision.over is None
        assert 1 <= decision.own.requests <= 2
        assert 10 <= decision.own.tokens <= 20


async def test_a_script_that_redis_has_forgotten_is_sent_again() -> None:
    async with redis_server() as path, shared_limits(path) as shared:
        await ask(shared, claim("1"))
        await redis_says(path, "SCRIPT", "FLUSH")
        decision = await ask(shared, claim("2"))
        assert decision is not None
        assert decision.own == pytest.approx((2, 0, 2), abs=0.01)


async def test_permits_of_a_process_that_crashed_expire_and_those_of_one_that_lives_do_not() -> None:
    """Complaint: a slot whose holder died was taken until Redis was reset (LiteLLM 20256)."""
    bounds = Limits(streams=2)
    async with redis_server() as path, shared_limits(path, lease=2.0) as lives:
        assert (await ask(lives, claim("mine", bounds))) is not None
        async with shared_limits(path, lease=2.0) as crashes:
            assert (await ask(crashes, claim("lost", bounds))) is not None
            refused = await ask(lives, claim("third", bounds))
            assert refused is not None
            assert refused.over == ("caller", "streams")
        while (decision := await ask(lives, claim("third", bounds))) is None or decision.over is not None:
            await pause()
        found = await redis_says(path, "ZRANGE", "gateway:limit:s:a", "0", "-1")
        assert found in ([b"mine", b"third"], [b"third", b"mine"])  # by the deadline, which `mine` renews


async def test_more_permits_than_one_batch_are_all_renewed() -> None:
    bounds = Limits(streams=10_000)
    async with redis_server() as path, shared_limits(path, lease=1.5) as shared:
        many = 2 * BATCH + 5
        await asyncio.gather(*(ask(shared, claim(f"{n}", bounds, bounds)) for n in range(many)))
        first = await redis_says(path, "ZRANGE", "gateway:limit:all:s", "0", "0", "WITHSCORES")
        while await redis_says(path, "ZRANGE", "gateway:limit:all:s", "0", "0", "WITHSCORES") == first:
            await pause()
        assert await redis_says(path, "ZCARD", "gateway:limit:s:a") == many


async def test_a_redis_that_was_emptied_is_told_of_the_permits_that_live() -> None:
    bounds = Limits(streams=1)
    async with redis_server() as path, shared_limits(path, lease=1.5) as shared:
        await ask(shared, claim("lives", bounds))
        await redis_says(path, "FLUSHALL")
        while await redis_says(path, "ZCARD", "gateway:limit:s:a") != 1:
            await pause()
        refused = await ask(shared, claim("next", bounds))
        assert refused is not None
        assert refused.over == ("caller", "streams")


async def test_a_permit_that_ended_is_free_at_once() -> None:
    async with redis_server() as path, shared_limits(path) as shared:
        bounds = Limits(streams=1)
        for n in range(20):
            taken = claim(f"{n}", bounds)
            decision = await ask(shared, taken)
            assert decision is not None
            assert decision.over is None
            shared.refund(taken, stream=True)
        assert await redis_says(path, "EXISTS", "gateway:limit:s:a") in (0, 1)


async def test_a_correction_of_what_was_taken_ends_no_permit() -> None:
    async with redis_server() as path, shared_limits(path) as shared:
        bounds = Limits(streams=1, tokens=Limit(0.0001, 100))
        taken = claim("1", bounds, tokens=10)
        assert await ask(shared, taken) is not None
        shared.refund(taken, tokens=-5)
        refused = await ask(shared, claim("2", bounds))
        assert refused is not None
        assert (refused.over, round(refused.own.tokens)) == (("caller", "streams"), 5)
        shared.refund(taken, stream=True)
        again = await ask(shared, claim("3", bounds))
        assert again is not None
        assert again.over is None


async def test_a_key_of_ours_that_is_something_else_is_no_decision_and_no_outage() -> None:
    told: list[bool] = []
    async with redis_server() as path:
        shared = RedisLimits(f"unix://{path}", timeout=30, on_change=lambda e: told.append(e is not None))
        await shared.start()
        await redis_says(path, "SET", "gateway:limit:m:a", "x")
        assert await ask(shared, claim("1")) is None
        assert await ask(shared, claim("2")) is None
        assert shared.available
        assert told == [True]
        await redis_says(path, "DEL", "gateway:limit:m:a")
        assert await ask(shared, claim("3")) is not None
        await shared.stop()


async def test_a_redis_that_is_full_decides_nothing_and_is_known_from_the_start() -> None:
    full = redis_server("--maxmemory", "1", "--maxmemory-policy", "noeviction")
    async with full as path, shared_limits(path) as shared:
        assert not shared.available
        assert shared.availability.trouble is not None
        assert shared.availability.trouble.reason == "OOM"
        assert await ask(shared, claim("1")) is None
        await redis_says(path, "CONFIG", "SET", "maxmemory", "0")
        await until(lambda: shared.available)
        assert await ask(shared, claim("2")) is not None


async def test_a_frozen_redis_is_waited_for_once_and_found_again() -> None:
    """Complaint: with Redis frozen all requests hung (LiteLLM 35273)."""
    redis = EmbeddedRedis(8)
    url = await redis.start()
    told: list[bool] = []
    shared = RedisLimits(url, timeout=30, on_change=lambda e: told.append(e is not None))
    try:
        await shared.start()
        held = claim("1", Limits(streams=1))
        assert (await ask(shared, held)) is not None
        assert redis.pid is not None
        shared._timeout = 0.1  # for the frozen one only: one that runs may be slow
        os.kill(redis.pid, signal.SIGSTOP)
        async with patience(5):  # 100 ms, and what this machine adds
            assert await asyncio.gather(*(ask(shared, claim(f"{n}")) for n in range(50))) == [None] * 50
        assert not shared.available
        assert shared.availability.pause <= 1.0, "fifty that are lost together are one loss"
        now: list[Decision | None] = []
        shared.acquire(claim("x"), now.append)
        assert now == [None]  # without a turn of the loop
        shared._timeout = 30
        os.kill(redis.pid, signal.SIGCONT)
        await until(lambda: shared.available)
        assert told == [True, False]
        refused = await ask(shared, claim("2", Limits(streams=1)))
        assert refused is not None
        assert refused.over == ("caller", "streams")
    finally:
        with suppress(ProcessLookupError):
            os.kill(redis.pid or 0, signal.SIGCONT)
        await shared.stop()
        await redis.stop()


async def test_without_any_redis_it_starts_and_cannot_tell() -> None:
    async with shared_limits("/nowhere/at/all") as shared:
        assert not shared.available
        assert await ask(shared, claim("1")) is None
        shared.refund(claim("1"), requests=-1, stream=True)
        first = shared.availability.pause
        await until(
            lambda: shared.availability.pause > first
        )  # each look that fails makes the next one wait longer


async def test_fleets_with_a_namespace_each_have_limits_of_their_own() -> None:
    async with redis_server() as path:
        fleets = [RedisLimits(f"unix://{path}", timeout=30.0, namespace=name) for name in ("gateway", "staging")]
        for fleet in fleets:
            await fleet.start()
            for number in range(3):  # streams: two at a time
                decision = await ask(fleet, claim(f"p{number}"))
                assert decision is not None
                assert (decision.over is None) is (number < 2)
        fleets[0].refund(claim("p0"), stream=True)
        taken = await ask(fleets[1], claim("p3"))
        assert taken is not None
        assert taken.over is not None
        keys = await redis_says(path, "KEYS", "*")
        assert isinstance(keys, list)
        assert {key.rpartition(b":limit:")[0] for key in keys} == {b"gateway", b"staging"}
        for fleet in fleets:
            await fleet.stop()

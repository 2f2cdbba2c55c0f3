"""Engines of responses: bounded, by tenant, in Redis where there is one."""

from __future__ import annotations

import pytest

from proxy.redis import Lost, ResponseAffinity, SingleServer, WireError, address, response_affinity
from tests.kit.redis_server import redis_server


def local() -> ResponseAffinity:
    return ResponseAffinity(None, timeout=1.0, namespace="n")


async def test_a_response_is_its_tenants_and_the_last_one_counts() -> None:
    known = local()
    known.put(b"a", "r", "http://one")
    assert await known.get(b"a", "r") == "http://one"
    assert await known.get(b"b", "r") is None
    assert await known.get(b"", "ar") is None
    known.put(b"a", "r", "http://two")
    assert await known.get(b"a", "r") == "http://two"
    await known.close()


async def test_the_response_that_was_needed_longest_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_affinity, "MAX_KNOWN", 2)
    known = local()
    for id in ("1", "2"):
        known.put(b"", id, "e")
    assert await known.get(b"", "1") == "e"
    known.put(b"", "3", "e")
    assert len(known) == 2
    assert [await known.get(b"", id) for id in ("1", "2", "3")] == ["e", None, "e"]


async def test_a_tenant_with_many_responses_forgets_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_affinity, "MAX_KNOWN", 4)
    known = local()
    known.put(b"b", "r", "e")
    for number in range(100):
        known.put(b"a", str(number), "e")
    assert len(known) == 4
    assert await known.get(b"b", "r") == "e"
    assert [await known.get(b"a", id) for id in ("96", "97", "98", "99")] == [None, "e", "e", "e"]


async def test_another_process_finds_it_for_a_day_and_what_else_lies_there_is_none() -> None:
    async with redis_server() as path:
        redis = SingleServer(address(f"unix://{path}"))
        one, two = [ResponseAffinity(redis, timeout=5.0, namespace="n") for _ in range(2)]
        client = redis.client(connect_timeout=5.0)
        one.put(b"a", "r", "http://one")
        assert await one.get(b"a", "unknown") is None  # by the same connection: it is written now
        key = (await client.call("KEYS", "*", timeout=5.0))[0]
        assert key.startswith(b"n:response:")
        assert b"r" not in key.removeprefix(b"n:response:")  # hexadecimal
        assert 86_000 < await client.call("TTL", key, timeout=5.0) <= 86_400
        assert await two.get(b"a", "r") == "http://one"
        assert await two.get(b"b", "r") is None
        await client.call("SET", key, b"\xff" * 5000, timeout=5.0)
        assert await one.get(b"a", "r") == "http://one"  # it knows it itself
        three = ResponseAffinity(redis, timeout=5.0, namespace="n")
        assert await three.get(b"a", "r") is None
        for closing in (one, two, three, client):
            await closing.close()


async def test_a_redis_that_is_away_is_told_and_costs_only_what_others_know() -> None:
    known = ResponseAffinity(SingleServer(address("redis://127.0.0.1:1")), timeout=1.0, namespace="n")
    known.put(b"a", "r", "e")
    assert await known.get(b"a", "r") == "e"
    with pytest.raises(WireError) as raised:
        await known.get(b"a", "other")
    assert isinstance(raised.value, Lost)
    await known.close()

"""The scripts on a real Redis: each reply, each message and each key is as the scripted Redis has it, by which the
model of the fleet is checked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.redis import FLIGHT_SCRIPTS, FlightKeys, FlightScript, address
from proxy.redis.client import RedisClient
from proxy.redis.flight_scripts import APPEND, FETCH, LEAVE, LOOK, QUIT, RELEASE, STORE
from tests.kit.redis_server import redis_server
from tests.kit.scripted_redis import ScriptedRedis

NODES = [b"%016x" % n for n in (1, 2)]
KEYS = FlightKeys("gateway")
KEY = b"k"
ANSWER = b"gateway:" + KEY.hex().encode()
CLAIM = KEYS.claim(KEY)
INTEREST = KEYS.interest(CLAIM)
FENCES = [node + b".%d" % n for node in NODES for n in (1, 2)]
DIGESTS = [b"%032x" % n for n in (1, 2)]
HOUR = 3_600_000

nodes, fences, digests = st.sampled_from(NODES), st.sampled_from(FENCES), st.sampled_from(DIGESTS)
states = st.sampled_from([b"open", b"landed"])
values = st.sampled_from([b"", b"x", b"0" * 16 + b".", b"\xff", *FENCES])


@dataclass(frozen=True)
class Step:
    """One script, or (None) a key that somebody else writes or removes. Its repr is short: examples have many."""

    script: FlightScript | None = field(repr=False)
    keys: tuple[bytes, ...] = field(repr=False)
    words: tuple[bytes | int, ...]


def look(node: bytes, lead: int, fence: bytes, instead: bytes) -> Step:
    return Step(LOOK, (ANSWER, CLAIM, INTEREST), (1, node, HOUR, HOUR, KEYS.inbox, 1, 0, lead, fence, instead))


def append(fence: bytes, offset: int, before: bytes, data: bytes, after: bytes, most: int, state: bytes) -> Step:
    keys = (INTEREST, KEYS.log(CLAIM, fence), KEYS.facts(CLAIM, fence))
    return Step(APPEND, keys, (offset, before, data, after, state, b"ab", b"line", most, HOUR, KEYS.inbox))


def fetch(fence: bytes, node: bytes, offset: int) -> Step:
    keys = (CLAIM, INTEREST, KEYS.log(CLAIM, fence), KEYS.facts(CLAIM, fence))
    return Step(FETCH, keys, (fence, node, offset, HOUR, HOUR, KEYS.inbox + fence[:16], b"join"))


steps: st.SearchStrategy[Step] = st.one_of(
    st.builds(look, nodes, st.integers(0, 1), fences, st.sampled_from([b"", *FENCES])),
    st.builds(
        append,
        fences,
        st.integers(0, 6),
        digests,
        st.binary(max_size=4),
        digests,
        st.sampled_from([5, 99]),
        states,
    ),
    st.builds(fetch, fences, nodes, st.integers(0, 6)),
    st.builds(lambda node: Step(LEAVE, (INTEREST,), (node, KEYS.inbox + NODES[0], b"left")), nodes),
    st.builds(lambda fence: Step(QUIT, (CLAIM, INTEREST, KEYS.facts(CLAIM, fence)), (fence, HOUR)), fences),
    st.builds(
        lambda fence: Step(
            QUIT, (CLAIM, INTEREST, KEYS.facts(CLAIM, fence), KEYS.log(CLAIM, fence)), (fence, HOUR)
        ),
        fences,
    ),
    st.builds(
        lambda fence: Step(RELEASE, (CLAIM, INTEREST, KEYS.facts(CLAIM, fence)), (fence, KEYS.inbox, b"gone")),
        fences,
    ),
    st.builds(
        lambda fence, value, again: Step(STORE, (ANSWER, CLAIM, INTEREST), (value, 3600, again, fence)),
        fences,
        st.binary(max_size=3),
        st.integers(0, 1),
    ),
    st.builds(lambda value: Step(None, (CLAIM,), (value,)), values),  # somebody else writes there
    st.just(Step(None, (ANSWER,), ())),  # an answer expires
)


@pytest.fixture(scope="module")
def path() -> Iterator[str]:
    """One server for all examples."""
    runner = asyncio.Runner()
    server = redis_server()
    yield runner.run(server.__aenter__())
    runner.run(server.__aexit__(None, None, None))
    runner.close()


async def run(path: str, todo: list[Step]) -> None:
    heard: list[tuple[bytes, bytes]] = []
    link = RedisClient(address(f"unix://{path}"), connect_timeout=10.0)
    listener = RedisClient(
        address(f"unix://{path}"),
        connect_timeout=10.0,
        on_push=lambda push: heard.append((push[1], push[2])) if push[0] == b"message" else None,
    )
    model = ScriptedRedis(lambda: 0.0, lambda: 0.0, lambda seconds, then: None)
    inboxes = [KEYS.inbox + node for node in NODES]
    try:
        await listener.call(b"SUBSCRIBE", *inboxes, b"end", timeout=10.0)
        await link.call(b"FLUSHALL", timeout=10.0)
        for known in FLIGHT_SCRIPTS:
            await link.call(b"SCRIPT", b"LOAD", known.text, timeout=10.0)
            model.scripts.add(known.text.encode())
        for step in todo:
            script, keys = step.script, step.keys
            words = [word if isinstance(word, bytes) else b"%d" % word for word in step.words]
            command: list[bytes]
            if script is not None:
                command = [b"EVALSHA", script.sha.encode(), b"%d" % len(keys), *keys, *words]
            else:
                command = [b"SET", *keys, *words, b"PX", b"%d" % HOUR] if words else [b"DEL", *keys]
            reply: Any = await link.call(*command, timeout=10.0)
            expected = model.execute(command)
            if script in (STORE, LEAVE):  # OK or nothing; how many heard it
                continue
            assert (reply if script is not None else None) == (expected if script is not None else None), command
        await link.call(b"PUBLISH", b"end", b"", timeout=10.0)
        while not heard or heard[-1][0] != b"end":  # noqa: ASYNC110 - messages set no event
            await asyncio.sleep(0)
        for inbox in inboxes:  # whose order is that of interest, by time; the model's does not pass
            assert [message for message in heard if message[0] == inbox] == [
                message for message in model.published if message[0] == inbox
            ]
        names = await link.call(b"KEYS", b"*", timeout=10.0)
        assert set(names) == set(model.keys)
        for name, (value, _) in model.keys.items():
            if isinstance(value, bytes):
                assert await link.call(b"GET", name, timeout=10.0) == value
            elif name == INTEREST:
                assert set(await link.call(b"ZRANGE", name, 0, -1, timeout=10.0)) == set(value)
        assert all([await link.call(b"PTTL", name, timeout=10.0) > 0 for name in names]), "everything expires"
    finally:
        await link.close()
        await listener.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(todo=st.lists(steps, min_size=5, max_size=30))
def test_the_scripts_are_what_the_model_runs(path: str, todo: list[Step]) -> None:
    asyncio.run(run(path, todo))

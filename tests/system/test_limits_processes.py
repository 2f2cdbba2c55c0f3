"""Two gateway processes and one Redis: limits are exact while it answers, and each process's own when it does not.

`python -m pytest tests/system/test_limits_processes.py -s` shows the delays.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from proxy.embedded.redis import server_binary
from tests.kit.client import get, post_json, streaming
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.engine_turn import Turn
from tests.kit.redis_server import redis_server
from tests.kit.running import HELLO, HELLO_STREAM, pause, until
from tests.system.test_process import Gateway, proxy

CHAT = "/v1/chat/completions"
BURST = 40
SAMPLED = {"temperature": 1}
RATE = ("--rate-limit-rps", "0.0001", "--rate-limit-burst", str(BURST))

pytestmark = pytest.mark.e2e


@asynccontextmanager
async def two(engine: Engine, redis: str, *flags: str) -> AsyncIterator[tuple[Gateway, Gateway]]:
    given = ("--backend", engine.url, "--redis", redis, "--merge-max", "1", *flags)  # each a request of its own
    async with proxy(*given) as one, proxy(*given) as other:
        yield one, other


@asynccontextmanager
async def bare_redis(home: Path) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """A redis-server that nobody starts again when it is killed."""
    path = home / "s"
    words = ("--port", "0", "--unixsocket", str(path), "--dir", str(home), "--save", "")
    process = await asyncio.create_subprocess_exec(
        str(server_binary()), *words, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        while not path.exists():  # noqa: ASYNC110 - a file's coming sets no event
            await asyncio.sleep(0)
        yield f"unix://{path}", process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def fire(gateway: Gateway, count: int) -> int:
    """So many requests at once; how many passed. The others were told 429."""
    answers = await asyncio.gather(*(post_json(gateway.url, CHAT, HELLO | SAMPLED) for _ in range(count)))
    statuses = Counter(answer.status for answer in answers)
    assert set(statuses) <= {200, 429}, statuses
    return statuses[200]


async def metric(gateway: Gateway, name: str) -> float:
    lines = (await get(gateway.url, "/metrics")).body.decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(name))


async def test_of_many_requests_at_two_processes_at_once_precisely_the_limit_passes(engine: Engine) -> None:
    engine.auto(echo_script())
    async with (
        redis_server() as path,
        two(engine, f"unix://{path}", *RATE, "--redis-timeout-ms", "10000") as (one, other),
    ):
        assert sum(await asyncio.gather(fire(one, 70), fire(other, 70))) == BURST
        assert engine.generations == BURST
        assert sum(await asyncio.gather(fire(one, 5), fire(other, 5))) == 0
        assert await metric(one, "gateway_limit_fallbacks_total") == 0


async def test_streams_of_two_processes_share_their_permits_to_the_last_one(engine: Engine) -> None:
    flags = ("--rate-limit-streams", "6", "--redis-timeout-ms", "10000")
    async with redis_server() as path, two(engine, f"unix://{path}", *flags) as (one, other):
        for _ in range(3):  # whoever ended makes room for as many, no more and no less
            readers = [
                asyncio.ensure_future(post_json(gateway.url, CHAT, HELLO_STREAM | SAMPLED))
                for gateway in (one, other)
                for _ in range(10)
            ]
            turns = [await engine.next_request() for _ in range(6)]
            await until(lambda: sum(reader.done() for reader in readers) == 14)  # noqa: B023 - of this round
            assert {reader.result().status for reader in readers if reader.done()} == {429}
            for turn in turns:
                await turn.send("a")
                await turn.finish()
            answers = await asyncio.gather(*readers)
            assert Counter(answer.status for answer in answers) == {429: 14, 200: 6}
            for gateway in (one, other):  # a permit may be given back after the answer's last byte
                while await metric(gateway, "gateway_limited_requests"):
                    await pause()
        assert engine.generations == 18
        async with streaming(one.url, CHAT, HELLO_STREAM | SAMPLED) as client:
            turn = await engine.next_request()
            await client.abort()
            await turn.cancelled()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_with_redis_gone_in_the_middle_each_process_keeps_its_limit_and_none_waits_long(
    engine: Engine, tmp_path: Path, how: signal.Signals
) -> None:
    """Complaints: with Redis frozen all requests hung (LiteLLM 35273); limits per replica only (GoModel)."""
    engine.auto(echo_script())
    async with (
        bare_redis(tmp_path) as (url, redis),
        two(engine, url, *RATE, "--redis-timeout-ms", "5000") as (one, other),
    ):
        before = await asyncio.gather(fire(one, 12), fire(other, 18))
        assert sum(before) == 30
        os.kill(redis.pid, how)
        began = time.perf_counter()
        after = await asyncio.gather(fire(one, 60), fire(other, 60))
        first = time.perf_counter() - began
        # Each goes on from what it had let through itself: in all at most the limit a process.
        assert [sum(passed) for passed in zip(before, after, strict=True)] == [BURST, BURST]
        assert await fire(one, 5) == 0
        assert [await metric(gateway, "gateway_limits_local") for gateway in (one, other)] == [1, 1]
        assert await metric(one, "gateway_limit_fallbacks_total") == 65
        print(f"{how.name}: 120 requests in {first * 1000:.0f} ms")
        if how is signal.SIGSTOP:
            os.kill(redis.pid, signal.SIGCONT)
            while await metric(one, "gateway_limits_local") or await metric(other, "gateway_limits_local"):
                await pause()
            assert await fire(one, 15) <= BURST - sum(before)


async def test_the_limits_of_workers_are_not_evicted_by_answers(engine: Engine) -> None:
    message = {"role": "assistant", "content": "x" * 200_000}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}

    async def large(turn: Turn) -> None:
        await turn.respond(
            200, {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        )

    engine.auto(large)
    flags = ("--workers", "2", "--redis", "auto", "--redis-memory-mb", "4", "--probe", "off", *RATE)
    async with proxy("--backend", engine.url, *flags) as gateway:
        bodies = [HELLO | {"seed": n} for n in range(2 * BURST)]
        statuses = Counter([(await post_json(gateway.url, CHAT, body)).status for body in bodies])
        assert statuses == {200: BURST, 429: BURST}
        assert (await get(gateway.url, "/-/state")).json()["state_redis"]["is"] == "embedded"

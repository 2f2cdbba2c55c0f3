"""Each function that a traced run of a mixed load calls is made to raise once in it: one answer may fail, with a
typed error; every other one is right, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from zlib import crc32

import pytest

from proxy.upstream.health_checks import HealthChecks
from tests.kit.injection import (
    EXEMPT,
    SETTINGS,
    Injected,
    Problem,
    Tracer,
    engine,
    inject,
    injecting,
    name_of,
    run_round,
    settled,
    traced,
)
from tests.kit.redis_server import redis_server
from tests.kit.running import gateway

SHARDS = 4
BORDER = "upstream.http.connection.Connection.connection_made"
"""The border to the loop: it keeps the transport, and without one there is no connection."""
LEAST = 600  # functions in a trace: with fewer the load has lost something


@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a generator that is closed
@pytest.mark.parametrize("shard", range(SHARDS))
async def test_what_any_function_raises_costs_one_answer_at_most(shard: int) -> None:
    thorough = os.environ.get("HYPOTHESIS_PROFILE") == "deep"
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    problems: list[Problem] = []
    async with redis_server() as path, engine() as one, gateway(one, redis=f"unix://{path}", **SETTINGS) as app:
        calls = await traced(app, 3)
        assert len(calls) >= LEAST
        number = 1000
        for code in sorted(calls, key=name_of):
            name = name_of(code)
            mark = crc32(name.encode())
            if mark % SHARDS != shard or name in EXEMPT:
                continue
            chosen = {1, 1 + calls[code] // 2} if thorough else {1 + mark // SHARDS % calls[code]}
            for at in sorted(chosen):
                number += 1
                problem = await inject(app, number, code, at)
                if problem is not None:
                    problems.append(problem)
        results = await run_round(app.url, number + 1)
        left = await settled(app)
        # Here, where they can be told: what the gateway itself finds at its end follows from them.
        assert [str(problem) for problem in problems] == []
        assert [(group, result) for group, result in results if result] == []
        assert left == {}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a coroutine that was not begun
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
async def test_what_any_function_raises_in_a_health_check_takes_no_engine_down() -> None:
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    async with engine() as one, gateway(one, **SETTINGS) as app:
        checks, (backend,) = HealthChecks(app.backends, timeout=60.0), app.backends.all
        with Tracer() as tracer:
            await checks.check()
        assert len(tracer.calls) >= 30
        for code in sorted((code for code in tracer.calls if name_of(code) != BORDER), key=name_of):
            for at in {1, tracer.calls[code]}:
                with injecting(code, at), suppress(Injected):  # `HealthChecks.run` contains what a check raises
                    await checks.check()
                assert backend.up, f"{name_of(code)} (call {at}): {backend.detail}"
        await checks.check()
        assert backend.up

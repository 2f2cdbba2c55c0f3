"""Each function that a traced run of a mixed load calls is made to raise once in it: one answer may fail, with a
typed error; every other one is right, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
from zlib import crc32

import pytest

from tests.kit.injection import EXEMPT, SETTINGS, Problem, engine, inject, name_of, run_round, settled, traced
from tests.kit.redis_server import redis_server
from tests.kit.running import gateway

SHARDS = 4
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

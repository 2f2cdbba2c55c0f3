"""A Redis that freezes under load: no request fails, none waits longer than a look-up may.

`python -m pytest tests/system/test_frozen.py -s` shows the delays.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time

from proxy.embedded.redis import EmbeddedRedis
from tests.kit.client import get, post_json
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.running import HELLO_STREAM, gateway


async def test_a_redis_that_freezes_under_load_fails_no_request_and_its_delay_is_bounded(engine: Engine) -> None:
    engine.auto(echo_script(tokens=8))
    redis = EmbeddedRedis(8)
    url = await redis.start()
    statuses: list[int] = []
    delays: dict[str, list[float]] = {"before": [], "frozen": []}
    phase = "before"

    async def client(number: int) -> None:
        for n in range(60):
            began = time.perf_counter()
            answer = await post_json(app.url, "/v1/chat/completions", HELLO_STREAM | {"seed": number * 1000 + n})
            delays[phase].append(time.perf_counter() - began)
            statuses.append(answer.status)
            assert answer.events()[-1] == b"data: [DONE]\n\n"
            if len(statuses) == 300:
                freeze()

    def freeze() -> None:
        nonlocal phase
        phase = "frozen"
        assert redis.pid is not None
        os.kill(redis.pid, signal.SIGSTOP)

    try:
        async with gateway(engine, redis=url, redis_timeout_ms=5000) as app:
            await asyncio.gather(*(client(number) for number in range(10)))
            assert app.cache is not None
            assert not app.cache.available
            page = (await get(app.url, "/metrics")).body.decode()
    finally:
        assert redis.pid is not None
        os.kill(redis.pid, signal.SIGCONT)
        await redis.stop()
    assert statuses == [200] * 600
    for name, found in delays.items():
        found.sort()
        p50, p99, most = (found[int(len(found) * share)] * 1000 for share in (0.5, 0.99, 0.99999))
        print(f"{name}: n={len(found)} p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {most:.1f} ms")
    # One round of look-ups is waited out, perhaps one of stores; then nobody asks.
    errors = re.search(r'gateway_cache_operations_total\{op="error"\} (\d+)', page)
    assert errors is not None
    assert 1 <= int(errors[1]) <= 2

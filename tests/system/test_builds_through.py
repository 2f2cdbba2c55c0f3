"""A stored answer through the gateway: served while an engine of its build serves the model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy.app import App
from tests.kit.client import get, post_json
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.redis_server import redis_server
from tests.kit.running import HELLO, gateway, until

CHAT = "/v1/chat/completions"
LINE = b"vllm:num_requests_running 0\nprocess_start_time_seconds %d\n"


@pytest.fixture
async def redis_url() -> AsyncIterator[str]:
    async with redis_server() as path:
        yield f"unix://{path}"


answer = echo_script()


async def asked(app: App, path: str = CHAT, request: dict[str, Any] | None = None) -> str:
    """The verdict of one request, once its answer is stored."""
    got = await post_json(app.url, path, HELLO if request is None else request)
    assert got.status == 200
    await until(lambda: len(app.group) == 0 and not app.embedder)
    return got.head["x-gateway-cache"]


def replace(engine: Engine, *, version: str | None = None, root: str | None = None) -> None:
    engine.version = version or engine.version
    engine.root = root or engine.root


@pytest.mark.parametrize("stream", [True, False])
async def test_weights_put_in_their_place_under_the_same_name_answer_for_themselves(
    engine: Engine, redis_url: str, stream: bool
) -> None:
    engine.auto(answer)
    async with gateway(engine.url, redis=redis_url, refresh_seconds=0.1) as app:
        request = HELLO | {"stream": stream}
        assert [await asked(app, CHAT, request) for _ in range(2)] == ["miss", "hit"]
        (backend,) = app.backends.all
        before = backend.build.digests["m1"]
        replace(engine, root="org/m1-v2")
        await until(lambda: backend.build.digests["m1"] != before)
        assert [await asked(app, CHAT, request) for _ in range(2)] == ["miss", "hit"]
        assert engine.generations == 2
        page = (await get(app.url, "/metrics")).body
        assert b'gateway_cache_operations_total{op="other_build"} 1\n' in page


async def test_a_rolling_restart_of_the_same_build_flushes_nothing(engine: Engine, redis_url: str) -> None:
    engine.auto(answer)
    engine.metrics = LINE % 1
    async with gateway(engine.url, redis=redis_url, refresh_seconds=0.1) as app:
        (backend,) = app.backends.all
        assert await asked(app) == "miss"
        await until(lambda: backend.report is not None)
        epoch = backend.abilities.epoch
        engine.metrics = LINE % 2
        await until(lambda: backend.abilities.epoch == epoch + 1 and backend.build.version is not None)
        assert await asked(app) == "hit"
        assert b"gateway_backend_start_time_seconds" in (await get(app.url, "/metrics")).body


async def test_a_restart_with_another_version_is_seen_though_no_look_found_it_down(
    engine: Engine, redis_url: str
) -> None:
    engine.auto(answer)
    engine.metrics = LINE % 1
    async with gateway(engine.url, redis=redis_url, refresh_seconds=0.1) as app:
        (backend,) = app.backends.all
        assert [await asked(app) for _ in range(2)] == ["miss", "hit"]
        await until(lambda: backend.report is not None)
        replace(engine, version="0.33.0")
        engine.metrics = LINE % 2
        await until(lambda: backend.build.version == "0.33.0")
        assert [await asked(app) for _ in range(2)] == ["miss", "hit"]


async def test_two_fleets_on_one_redis_give_nobody_the_other_s_answers(redis_url: str) -> None:
    async with Engine(answer) as old, Engine(answer) as new:
        replace(new, root="org/m1-v2")
        async with gateway(old.url, redis=redis_url) as one, gateway(new.url, redis=redis_url) as other:
            assert [await asked(one), await asked(other)] == ["miss", "miss"]
            assert await asked(other) == "hit"
            assert (old.generations, new.generations) == (1, 1)


async def test_replicas_and_gateways_that_are_alike_share(redis_url: str) -> None:
    async with (
        Engine(answer) as a,
        Engine(answer) as b,
        gateway(a.url, redis=redis_url) as one,
        gateway(b.url, redis=redis_url) as other,
    ):
        assert [await asked(one), await asked(other)] == ["miss", "hit"]


async def test_a_vector_belongs_to_its_build_too(engine: Engine, redis_url: str) -> None:
    engine.auto(answer)
    async with gateway(engine.url, redis=redis_url, refresh_seconds=0.1) as app:
        request = {"model": "m1", "input": ["a", "b"]}
        path = "/v1/embeddings"
        assert [await asked(app, path, request) for _ in range(2)] == ["miss", "hit"]
        (backend,) = app.backends.all
        before = backend.build.digests["m1"]
        replace(engine, root="org/m1-v2")
        await until(lambda: backend.build.digests["m1"] != before)
        assert [await asked(app, path, request) for _ in range(2)] == ["miss", "hit"]

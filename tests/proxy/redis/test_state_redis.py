"""Limits with a Redis of their own, and gateways with other settings on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proxy.config.settings import Settings
from proxy.errors import SettingsError
from proxy.redis.client import RedisClient
from proxy.redis.url import address
from proxy.resources import prepare
from tests.kit.client import get, post_json
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.redis_server import redis_server
from tests.kit.running import HELLO, gateway, lines, until

CHAT = "/v1/chat/completions"
SHARE = "limits share the redis of answers"


async def stored(path: str) -> set[str]:
    """What kinds of keys there are."""
    link = RedisClient(address(f"unix://{path}"), connect_timeout=5)
    try:
        found = await link.call("KEYS", "gateway:*", timeout=5)
    finally:
        await link.close()
    return {"limits" if b":limit:" in key else "answers" for key in found if b"probe" not in key}


@pytest.mark.parametrize("cache", [True, False])
async def test_limits_are_kept_where_they_are_told_to_be(engine: Engine, tmp_path: Path, cache: bool) -> None:
    engine.auto(echo_script(tokens=3))
    log = tmp_path / "log"
    async with redis_server() as one, redis_server() as other:
        settings: dict[str, Any] = {"redis": f"unix://{one}" if cache else "off", "state_redis": f"unix://{other}"}
        async with gateway(engine, log_to=log, rate_limit_rps=0.001, rate_limit_burst=2, **settings) as app:
            statuses = [(await post_json(app.url, CHAT, HELLO)).status for _ in range(3)]
            await until(lambda: not len(app.group))
            assert statuses == [200, 200, 429]
            state = (await get(app.url, "/-/state")).json()
            assert state["redis"]["state"] == ("in use" if cache else "off")
            assert (state["state_redis"]["is"], state["state_redis"]["state"]) == ("yours", "in use")
            assert await stored(one) == ({"answers"} if cache else set())
            assert await stored(other) == {"limits"}
        async with gateway(engine, rate_limit_rps=0.001, rate_limit_burst=2, **settings) as app:
            assert (await post_json(app.url, CHAT, HELLO)).status == 429, "another process, or a restart"
    assert SHARE not in [line["msg"] for line in lines(log)]


async def test_without_one_of_their_own_the_log_says_what_limits_may_lose(engine: Engine, tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with (
        redis_server() as path,
        gateway(engine, log_to=log, redis=f"unix://{path}", rate_limit_rps=9.0) as app,
    ):
        assert "state_redis" not in (await get(app.url, "/-/state")).json()
    (line,) = [line for line in lines(log) if line["msg"] == SHARE]
    assert (line["level"], "--state-redis" in line["detail"]) == ("info", True)


async def test_a_state_redis_that_is_away_is_shown_and_the_cache_goes_on(engine: Engine, tmp_path: Path) -> None:
    engine.auto(echo_script(tokens=3))
    nowhere = f"unix://{tmp_path}/nowhere"
    async with (
        redis_server() as path,
        gateway(engine, redis=f"unix://{path}", state_redis=nowhere, rate_limit_rps=1000.0) as app,
    ):
        await post_json(app.url, CHAT, HELLO)
        await until(lambda: not len(app.group))
        assert (await post_json(app.url, CHAT, HELLO)).head["x-gateway-cache"] == "hit"
        state = (await get(app.url, "/-/state")).json()
        assert (state["redis"]["state"], state["state_redis"]["state"]) == ("in use", "away")
        assert state["state_redis"]["detail"].startswith("rate limits: no connection")


def test_a_url_that_cannot_be_used_is_refused_by_the_name_of_its_setting() -> None:
    settings = Settings(
        redis="rediss+cluster://:secret@h?ssl_ca_certs=no-such-file", state_redis="redis://:secret@h?colour=blue"
    )
    with pytest.raises(SettingsError) as refused:
        prepare(settings)
    first, second = str(refused.value).splitlines()
    assert first == "redis: ssl_ca_certs = 'no-such-file': No such file or directory"
    assert second.startswith("state_redis: The Redis URL has the option 'colour', which is unknown")
    assert "secret" not in str(refused.value)


async def test_gateways_with_other_limits_on_one_redis_count_together_and_judge_each_by_its_own(
    engine: Engine,
) -> None:
    engine.auto(echo_script(tokens=3))
    async with redis_server() as path:
        settings: dict[str, Any] = {"redis": f"unix://{path}", "rate_limit_rps": 0.001}
        async with (
            gateway(engine, rate_limit_burst=5, **settings) as strict,
            gateway(engine, rate_limit_burst=8, cache_ttl_seconds=1, **settings) as loose,
            gateway(engine, rate_limit_burst=5, redis_namespace="staging", **settings) as apart,
        ):
            assert [(await post_json(loose.url, CHAT, HELLO)).status for _ in range(5)] == [200] * 5
            assert (await post_json(strict.url, CHAT, HELLO)).status == 429
            assert [(await post_json(loose.url, CHAT, HELLO)).status for _ in range(4)] == [200] * 3 + [429]
            assert (await post_json(apart.url, CHAT, HELLO)).status == 200

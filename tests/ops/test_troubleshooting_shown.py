"""The output quoted on the troubleshooting page is real: each line is reproduced here by its fault."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

from proxy.upstream.breaker import State
from tests.kit.client import post_json
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.running import HELLO, gateway, lines, until
from tests.ops.kit import OPS, refusal

PAGE = (OPS / "docs" / "troubleshooting.md").read_text()
CHAT = "/v1/chat/completions"
NOBODY = "127.0.0.1:9"  # discard: nothing listens there


def shown(start: str) -> list[dict[str, Any]]:
    """The JSON lines of the page with this beginning."""
    return [json.loads(line) for line in PAGE.splitlines() if line.startswith(start)]


def untimed(text: str) -> str:
    return re.sub(r"Try again in \S+", "Try again in a moment.", text)


async def test_the_log_s_lines_are_those_of_an_engine_and_a_redis_that_are_away(tmp_path: Path) -> None:
    log = tmp_path / "log"
    away = {"redis": f"redis://{NOBODY}/0", "rate_limit_rps": 1000.0}
    async with gateway(f"http://{NOBODY}", log_to=log, **away) as app:
        for _ in range(2):  # with their retries six failures in a row
            assert (await post_json(app.url, CHAT, HELLO)).json()["error"]["code"] == "upstream_unreachable"
        breaker = app.backends.all[0].breaker  # one caller's failures have the engine checked first
        await until(lambda: breaker.state is State.OPEN)
    logged = lines(log)
    wanted = [line for line in shown('{"level":') if "refused" not in line["detail"]]
    assert {line["msg"] for line in wanted} == {
        "engine down",
        "engine breaker open",
        "redis away",
        "limits are each process's own",
    }
    assert [line for line in wanted if not any(line.items() <= real.items() for real in logged)] == []


async def test_the_refusals_are_those_of_a_gateway_with_such_limits(engine: Engine, tmp_path: Path) -> None:
    engine.auto(echo_script())
    async with gateway(engine, rate_limit_rps=5.0, rate_limit_burst=20) as app:
        answers = await asyncio.gather(*(post_json(app.url, CHAT, HELLO) for _ in range(60)))
    (limited,) = shown('{"error":')
    said = {untimed(answer.body.decode()) for answer in answers if answer.status == 429}
    assert said == {untimed(json.dumps(limited, separators=(",", ":")))}
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[[keys]]\nname = "a"\nsha256 = "{"0" * 64}"\n')
    keys.chmod(0o600)
    async with gateway(engine, max_body_bytes=1024) as app:
        large = await post_json(app.url, CHAT, HELLO | {"user": "x" * 2000})
    async with gateway(engine, api_keys_file=str(keys)) as app:
        keyless = await post_json(app.url, CHAT, HELLO)
    for answer, status in ((large, 413), (keyless, 401)):
        assert answer.status == status
        assert f"`{answer.json()['error']['message']}`" in PAGE


def test_the_setting_that_is_refused_is_refused_in_these_words() -> None:
    (said,) = [line for line in PAGE.splitlines() if line.startswith("proxy: environment ")]
    assert refusal({"GATEWAY_BACKENDS": "gpu-1:8000"}) == said.removeprefix("proxy: ")

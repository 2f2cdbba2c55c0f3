"""What the troubleshooting page says of a Redis that refuses is what a real Redis and a gateway do: each log line,
the states and metrics beside it, and the commands that an ACL user needs."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from proxy.access.ratelimit.buckets import UNBOUNDED, Claim, Decision, Limit, Limits
from proxy.access.ratelimit.redis import RedisLimits
from proxy.redis.cache import Cache
from proxy.redis.client import RedisClient
from proxy.redis.resp import WireError
from proxy.redis.url import address
from tests.kit.client import get, post_json
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.ports import free_port
from tests.kit.redis_server import redis_server
from tests.kit.running import HELLO, gateway, lines, until
from tests.ops.kit import OPS

PAGE = (OPS / "docs" / "troubleshooting.md").read_text()
CHAT = "/v1/chat/completions"
SHOWN = [json.loads(line) for line in PAGE.splitlines() if line.startswith('{"level":') and "it refused" in line]
(ACL,) = re.findall(r"^ACL SETUSER gateway .*$", PAGE, re.MULTILINE)
COMMANDS = re.findall(r"\+(\S+)", ACL)
ENDLESS = ("EVAL", "while true do end", 0)


@dataclass(frozen=True)
class Case:
    """A Redis that refuses: its options, what it is told first, and how the gateway's URL differs."""

    reason: str
    options: tuple[str, ...] = ()
    first: tuple[tuple[str | int, ...], ...] = ()
    login: str = ""
    db: int = 0
    away: bool = True  # look-ups are refused
    limits: bool = True  # limits are refused


CLUSTER = ("--cluster-enabled", "yes", "--port")
FULL = ("--maxmemory", "1", "--maxmemory-policy", "noeviction")
SLOTS = (("CLUSTER", "ADDSLOTS", *range(16384)),)


def user(*rules: str) -> tuple[tuple[str, ...], ...]:
    return (("ACL", "SETUSER", "u", "on", ">p", *rules),)


CASES = {
    "a node of a cluster": Case("CROSSSLOT", CLUSTER, SLOTS),
    "a database of a cluster": Case("ERR", CLUSTER, SLOTS, db=1),
    "a user without look-ups": Case(
        "NOPERM", first=user("~gateway:*", "+@all", "-mget"), login="u:p@", limits=False
    ),
    "a user without keys": Case("NOPERM", first=user("+@all"), login="u:p@"),
    "a user without scripts": Case(
        "NOPERM", first=user("~gateway:*", "+@all", "-@scripting"), login="u:p@", away=False
    ),
    "a full one": Case("OOM", FULL, away=False),
    "a replica": Case("READONLY", ("--replicaof", "127.0.0.1", "1"), away=False),
    "a replica alone": Case(
        "MASTERDOWN", ("--replicaof", "127.0.0.1", "1", "--replica-serve-stale-data", "no"), db=0
    ),
    "a lack of replicas": Case("NOREPLICAS", ("--min-replicas-to-write", "1"), away=False),
    "a password": Case("NOAUTH", ("--requirepass", "secret")),
    "another password": Case("WRONGPASS", ("--requirepass", "secret"), login=":guess@"),
    "a database beyond": Case("ERR", db=99),
}


async def says(path: str, *command: str | int) -> Any:
    link = RedisClient(address(f"unix://{path}"), connect_timeout=5)
    try:
        return await link.call(*command, timeout=5)
    finally:
        await link.close()


def cluster_port() -> int:
    """A free port whose cluster bus, 10000 above, is free too."""
    while True:
        port = free_port()
        with socket.socket() as bus, suppress(OSError, OverflowError):
            bus.bind(("127.0.0.1", port + 10_000))
            return port


@asynccontextmanager
async def refusing(case: Case) -> AsyncIterator[str]:
    """A Redis of this case; gives the URL for the gateway."""
    options = (*case.options, str(cluster_port())) if case.options == CLUSTER else case.options
    async with redis_server(*options) as path:
        for command in case.first:
            await says(path, *command)
        if case.options == CLUSTER:
            while b"cluster_state:ok" not in await says(path, "CLUSTER", "INFO"):
                pass
        yield f"unix://{case.login}{path}?db={case.db}"


@pytest.mark.parametrize("name", CASES)
async def test_a_refusal_is_one_line_a_state_and_a_metric_and_every_request_is_served(
    name: str, engine: Engine, tmp_path: Path
) -> None:
    case, log = CASES[name], tmp_path / "log"
    engine.auto(echo_script())
    limits = {"rate_limit_rps": 1000.0, "rate_limit_streams": 100}
    async with (
        refusing(case) as url,
        gateway(engine, log_to=log, redis=url, redis_timeout_ms=5000, **limits) as app,
    ):
        assert app.redis.startswith(f"refuses: {case.reason} ("), "the banner"
        for _ in range(5):
            assert (await post_json(app.url, CHAT, HELLO)).status == 200
        state = (await get(app.url, "/-/state")).json()["redis"]
        page = (await get(app.url, "/metrics")).body.decode()
    assert (state["is"], state["state"]) == ("yours", f"refuses: {case.reason}")
    assert state["available"] is not case.away
    numbers = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    named = {name for name, value in numbers.items() if "gateway_redis_refusing" in name and float(value)}
    assert named == {f'gateway_redis_refusing{{reason="{case.reason}"}}'}
    assert float(numbers["gateway_cache_available"]) == (not case.away)
    assert float(numbers["gateway_limits_local"]) == case.limits
    assert (float(numbers["gateway_limit_fallbacks_total"]) > 0) is case.limits
    told = [line for line in lines(log) if line["msg"].startswith(("redis", "limits are"))]
    words = [line["msg"] for line in told]
    assert words.count("limits are each process's own") == case.limits
    assert words.count("redis refuses") == (case.away or case.reason != "NOPERM")
    assert len(told) == words.count("redis refuses") + case.limits
    for line in told:
        assert "secret" not in line["detail"]
        assert "guess" not in line["detail"]
        kept = {key: line[key] for key in ("level", "msg", "use", "detail") if key in line}
        if kept["msg"] == "redis refuses" or not (case.away or case.reason != "NOPERM"):
            assert kept in SHOWN, "the page shows it"


def test_the_page_shows_no_line_that_no_case_makes() -> None:
    assert len({json.dumps(line) for line in SHOWN}) == len(SHOWN) == len(CASES)


async def test_a_script_that_blocks_it_is_waited_out(engine: Engine, tmp_path: Path) -> None:
    engine.auto(echo_script())
    log = tmp_path / "log"
    async with (
        redis_server("--lua-time-limit", "1") as path,
        gateway(engine, log_to=log, redis=f"unix://{path}", rate_limit_rps=1000.0) as app,
    ):
        assert app.redis == "yours"
        endless = asyncio.ensure_future(says(path, *ENDLESS))
        cache = app.cache
        assert cache is not None
        await until_busy(path)
        assert (await post_json(app.url, CHAT, HELLO)).status == 200
        assert not cache.available
        assert "BUSY" in (await get(app.url, "/-/state")).json()["redis"]["state"]
        await says(path, "SCRIPT", "KILL")
        with suppress(WireError):
            await endless
        await until(lambda: cache.available)
        assert (await post_json(app.url, CHAT, HELLO)).status == 200
    (line,) = [line for line in lines(log) if line["msg"].startswith("redis")]
    assert (line["msg"], line["detail"][:17]) == ("redis refuses", "it refused (BUSY)"), "it has not settled yet"


async def until_busy(path: str) -> None:
    """Until it answers other clients, with BUSY."""
    while True:
        try:
            await says(path, "PING")
        except WireError as e:
            if e.reason == "BUSY":
                return


async def test_a_server_that_is_no_redis_is_away_with_the_reason(engine: Engine, tmp_path: Path) -> None:
    engine.auto(echo_script())
    log = tmp_path / "log"

    async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_unix_server(web, tmp_path / "web")
    url = f"unix://{tmp_path / 'web'}"
    async with server, gateway(engine, log_to=log, redis=url, redis_timeout_ms=5000) as app:
        assert app.redis == "away (look-ups: a reply that is not RESP: no Redis listens there)"
        assert (await post_json(app.url, CHAT, HELLO)).status == 200
    (line,) = [line for line in lines(log) if line["msg"].startswith("redis")]
    assert (line["msg"], line["detail"]) == ("redis away", "a reply that is not RESP: no Redis listens there")


# -- the ACL user ---------------------------------------------------------------------------------------


async def does_all(path: str) -> bool:
    """Whether a user `gateway` with this password can do all that the gateway does."""
    url = f"unix://gateway:PASSWORD@{path}?db=1&client_name=g"
    cache = Cache(url, timeout=5, ttl=60, max_entry=1000, max_pending=5000)
    limits = RedisLimits(url, timeout=5)
    try:
        if not await cache.ping():
            return False
        await says(f"{path}?db=1", "SET", f"gateway:{'0' * 72}", "an answer")
        try:
            await cache.flush()
        except WireError:
            return False
        await limits.start()
        await says(path, "SCRIPT", "FLUSH")
        decision: asyncio.Future[Decision | None] = asyncio.get_running_loop().create_future()
        bounds = Limits(Limit(1, 10), Limit(1, 10), 5)
        limits.acquire(Claim("p", "a", bounds, UNBOUNDED, 1), decision.set_result)
        return await decision is not None
    finally:
        await limits.stop()
        await cache.stop()


async def test_the_user_of_the_page_can_do_all() -> None:
    async with redis_server() as path:
        await says(path, *ACL.split())
        assert await does_all(path)


@pytest.mark.parametrize("command", COMMANDS)
async def test_each_command_of_the_page_is_needed(command: str) -> None:
    async with redis_server() as path:
        await says(path, *(word for word in ACL.split() if word != f"+{command}"))
        assert not await does_all(path)


async def test_the_key_pattern_of_the_page_is_needed() -> None:
    async with redis_server() as path:
        await says(path, *ACL.replace("~gateway:*", "~other:*").split())
        assert not await does_all(path)

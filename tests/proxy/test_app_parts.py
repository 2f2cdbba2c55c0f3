"""The wiring: which tasks run, what the log hides, and which endpoints and gauges there are."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy import app as wiring
from proxy.access import revocation
from proxy.config.file_watch import Contents
from proxy.config.settings import Settings
from proxy.redis.health import RedisState
from proxy.redis.resp import WireError
from proxy.telemetry import certificates
from proxy.telemetry.log import Log
from tests.kit.engine import Engine
from tests.kit.running import gateway
from tests.proxy.access.test_policy import entry

ALWAYS = ["the watchdog", "the file watch", "the certificate check", "the discovery of engines"]


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({}, []),
        ({"probe": "on"}, ["the probes of engines"]),
        ({"keys": True}, ["the check for expired keys"]),
        ({"config": "c"}, ["the reload of engines"]),
    ],
)
async def test_a_part_that_is_on_has_its_task(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changes: dict[str, Any], more: list[str]
) -> None:
    tasks: list[tuple[str, Any]] = []
    real = cast(Any, wiring).watch

    def watch(settings: Settings, backends: Any, checks: Any, named: list[tuple[str, Any]], *given: Any) -> None:
        tasks.extend(named)
        real(settings, backends, checks, named, *given)

    monkeypatch.setattr(wiring, "watch", watch)
    chosen = dict(changes)
    if chosen.pop("keys", False):
        path = tmp_path / "keys"
        path.write_text(entry("ka", "team-a"))
        path.chmod(0o600)
        chosen["api_keys_file"] = str(path)
    base: dict[str, Any] = {
        "backends": (engine.url,),
        "port": 0,
        "redis": "off",
        "probe": "off",
        "drain_timeout": 0.0,
    }
    settings = Settings(**(base | chosen))
    with (tmp_path / "log").open("wb") as file:
        log = Log(file.fileno())
        async with wiring.running(settings, log, lambda: settings):
            assert [name for name, _ in tasks] == ALWAYS + more
            periods = {name: run.args[0] for name, run in tasks if hasattr(run, "args")}
            assert periods["the certificate check"] == certificates.EVERY
            assert periods.get("the check for expired keys", revocation.EVERY) == revocation.EVERY
        log.close(30)


async def test_secrets_of_the_settings_are_hidden_from_the_log(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden: list[str] = []
    monkeypatch.setattr(Log, "hide", lambda self, secrets: hidden.extend(secrets))
    async with gateway(engine, backend_api_key="k3y"):
        assert "k3y" in hidden


async def test_gauges_and_the_flush_are_there_and_the_page_where_it_is_wanted(engine: Engine) -> None:
    for page in (True, False):
        async with gateway(engine, page=page) as app:
            assert ("/-/cache", "DELETE") in app.routes
            assert any(path == "/" for path, _ in app.routes) is page
            body, _ = app.metrics.render("text/plain")
            for name in (b"gateway_flights ", b"gateway_queue_limit ", b"gateway_client_connections "):
                assert name in body


async def test_redis_is_asked_within_its_time_and_what_it_does_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[Any] = []

    class Cache:
        def __init__(self, url: str, **given: Any) -> None:
            told.append((url, given["timeout"], given["ttl"], given["namespace"]))
            self.on_breaker = given["on_breaker"]
            self.availability = self.accepts = SimpleNamespace(trouble=None)

        async def start(self) -> None:
            told.append("start")

        async def ping(self) -> None:
            told.append("ping")

        async def stop(self) -> None:
            told.append("stop")

    class Metrics:
        cache = None

        def gauge(self, name: str, *given: Any) -> None:
            assert name == "redis_refusing"

        def cache_breaker(self, opened: bool) -> None:
            told.append(("breaker", opened))

    class Events:
        def event(self, level: str, name: str, **more: Any) -> None:
            told.append((level, name, more["use"], more.get("detail")))

    monkeypatch.setattr(wiring, "Cache", Cache)
    settings = Settings(redis_timeout_ms=250, cache_ttl_seconds=9, redis_namespace="n")
    make: Any = wiring._cache
    async with AsyncExitStack() as stack:
        given: tuple[Any, ...] = (settings, Events(), Metrics(), stack, RedisState("yours"))
        assert await make(None, *given) is None
        cache: Any = await make("redis://h", *given)
        cache.on_breaker(WireError("why"))
        cache.on_breaker(None)
    assert told == [
        ("redis://h", 0.25, 9, "n"),
        "start",
        "ping",
        ("breaker", True),
        ("warning", "redis away", "look-ups", "why"),
        ("breaker", False),
        ("info", "redis back", "look-ups", None),
        "stop",
    ]


def test_every_watched_file_is_named_to_the_audit_log() -> None:
    named: list[str] = []
    watched = [SimpleNamespace(name=name, paths=(), load=lambda: lambda: "") for name in ("tls_cert", "deny_file")]
    reloads = SimpleNamespace(watched=lambda: watched)
    wiring._files(cast(Any, reloads), Contents([]), cast(Any, SimpleNamespace(watches=named.append)))
    assert named == ["tls_cert", "deny_file"]

"""The wiring: what each object is given of the settings, by units and by what stands for no limit."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy import app as wiring
from proxy.access.client_ip import TrustedProxies
from proxy.access.identity import Authenticator
from proxy.access.rules import AccessRules
from proxy.app import App, _at, _certificates, _retry_rules, _tls, _watchdog
from proxy.config.settings import Settings
from proxy.flights.watchdog import PATIENCE
from proxy.redis.health import RedisState
from proxy.redis.resp import Lost, ReplyError
from proxy.resources import Prepared
from proxy.server import bind as listeners
from proxy.telemetry.log import Log
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.otel import FLUSH_SECONDS
from proxy.upstream.concurrency import MOST
from tests.kit.certificates import Authority
from tests.kit.engine import Engine
from tests.kit.ports import free_port
from tests.kit.running import gateway, lines


class Given(dict[str, dict[str, Any]]):
    """The keyword arguments that objects of the wiring were made with, by their names; a function's too."""

    def watch(self, monkeypatch: pytest.MonkeyPatch, where: Any, *names: str) -> None:
        for name in names:
            real = getattr(where, name)

            def made(*args: Any, real: Callable[..., Any] = real, name: str = name, **given: Any) -> Any:
                self[name] = given
                return real(*args, **given)

            monkeypatch.setattr(where, name, made)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Given:
    found = Given()
    names = (
        "RequestQueue",
        "Scheduler",
        "StreamLimits",
        "Budget",
        "Listener",
        "Times",
        "Gateway",
        "TicketFactory",
        "descriptor_budget",
        "Watchdog",
    )
    found.watch(monkeypatch, wiring, *names)
    return found


async def test_settings_in_other_units_are_converted(engine: Engine, given: Given) -> None:
    async with gateway(
        engine,
        batch_window_ms=2500.0,
        queue_timeout=7.0,
        queue_limit=9,
        max_batch=3,
        queue_patience=6.0,
        retry_budget=50.0,
        retry_burst=4,
        client_stall_timeout=11.0,
        head_timeout=3.0,
        idle_timeout=620.0,
        merge_max=5,
        max_inflight=2,
        rate_limit_assumed_tokens=77,
        max_headers=30,
        max_head_bytes=30_000,
        max_header_bytes=3_000,
        redis_timeout_ms=100_000,
    ) as app:
        request_queue = given["RequestQueue"]
        assert (request_queue["window"], request_queue["timeout"], request_queue["limit"]) == (2.5, 7.0, 9)
        assert (request_queue["max_batch"], request_queue["patience"]) == (3, 6.0)
        assert given["Scheduler"]["merge_max"] == 5
        times = given["Times"]
        assert (times["head"], times["stall"], times["idle"]) == (3.0, 11.0, 620.0)
        listener = given["Listener"]
        assert (listener["max_header"], listener["max_headers"], listener["max_head"]) == (3_000, 30, 30_000)
        assert listener["proxies"] is None
        assert (given["descriptor_budget"]["inflight"], given["descriptor_budget"]["engines"]) == (2, 1)
        assert given["Watchdog"]["patience"] == 200.0
        assert (app.redis, app.cache, app.admin_url) == ("off", None, "")
        assert app.url == f"http://127.0.0.1:{app.port}"


async def test_nothing_set_is_no_limit(engine: Engine, given: Given) -> None:
    async with gateway(
        engine,
        queue_timeout=0.0,
        client_stall_timeout=0.0,
        redis_timeout_ms=100,
        max_inflight=0,
        deny_answers=False,
        merge_max=6,
        proxy_protocol=True,
        trusted_proxies=("127.0.0.0/8",),
    ):
        assert given["RequestQueue"]["timeout"] == math.inf
        assert given["Times"]["stall"] == math.inf
        assert given["descriptor_budget"]["inflight"] == MOST
        assert given["Watchdog"]["patience"] == PATIENCE
        assert isinstance(given["Listener"]["proxies"], TrustedProxies)
        assert given["Gateway"]["hosts"] is not None


async def test_answers_that_are_checked_are_not_merged(engine: Engine, given: Given, tmp_path: Path) -> None:
    path = tmp_path / "deny"
    path.write_text("x\n")
    async with gateway(engine, deny_file=str(path), deny_answers=True, merge_max=6):
        assert given["Scheduler"]["merge_max"] == 1


async def test_on_a_unix_socket_any_host_may_be_asked_for(engine: Engine, given: Given, tmp_path: Path) -> None:
    async with gateway(engine, listen_unix=str(tmp_path / "s")) as app:
        assert given["Gateway"]["hosts"] is None
        assert app.url == f"unix://{tmp_path / 's'}"


async def test_operators_have_connections_of_their_own_with_the_same_bounds(
    engine: Engine, given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    given.watch(monkeypatch, listeners, "Listener", "Times", "Site")
    port = free_port()
    for stall, told in ((0.0, math.inf), (9.0, 9.0)):
        async with gateway(engine, admin_port=port, client_stall_timeout=stall, head_timeout=4.0) as app:
            assert app.admin_url == f"http://127.0.0.1:{port}"
            assert (given["Times"]["stall"], given["Times"]["head"]) == (told, 4.0)
        assert given["Listener"]["max_connections"] == listeners.MAX_OPERATORS
        assert given["Site"]["handshake"] == 4.0


async def test_an_ipv6_address_is_in_brackets_in_a_url(engine: Engine) -> None:
    port = free_port()
    async with gateway(engine, host="::1", admin_host="::1", admin_port=port) as app:
        assert app.url == f"http://[::1]:{app.port}"
        assert app.admin_url == f"http://[::1]:{port}"


@pytest.mark.parametrize(("drain", "bound"), [(0.0, 0.2), (0.3, 0.3), (9999.0, FLUSH_SECONDS)])
async def test_what_is_traced_has_a_bounded_end(
    monkeypatch: pytest.MonkeyPatch, drain: float, bound: float
) -> None:
    bounds: list[float] = []

    async def close(seconds: float) -> None:
        bounds.append(seconds)

    async def fails(*given: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(wiring, "Otel", lambda log: SimpleNamespace(close=close))
    monkeypatch.setattr(wiring, "Tracing", lambda otel, prompts: None)
    monkeypatch.setattr("proxy.resources.packages", lambda environ: None)
    monkeypatch.setattr(wiring, "children", fails)
    for trace in ("off", "otlp"):
        with pytest.raises(ZeroDivisionError):
            async with gateway("http://h", trace=trace, drain_timeout=drain):
                pass
    assert bounds == [bound]


# -- parts


def log_to(path: Path) -> Log:
    return Log(os.open(path, os.O_WRONLY | os.O_CREAT))


def test_the_rules_of_retries_are_in_seconds() -> None:
    rules = _retry_rules(Settings(retries=3, retry_on="connect,429", retry_backoff_ms=2500.0, retry_max_wait=9.0))
    assert (rules.retries, rules.on, rules.backoff, rules.longest) == (3, frozenset({"connect", "429"}), 2.5, 9.0)


def test_a_place_is_named_with_what_raised_there() -> None:
    with pytest.raises(ValueError, match="base") as caught:
        _retry_rules(cast(Settings, SimpleNamespace(retries=0, retry_on="", retry_backoff_ms=int("x"))))
    assert _at("a turn", caught.value).startswith("a turn (")
    assert _at("a turn", ValueError("x")) == "a turn"


def test_tls_to_engines_is_made_where_an_engine_or_a_file_asks_for_it(tmp_path: Path) -> None:
    log = log_to(tmp_path / "log")
    issued = Authority(tmp_path).issue("localhost")
    plain = Settings(backends=("http://h", "unix:///s"))
    assert _tls(plain, log) is None
    assert _tls(replace(plain, backends=("http://h", "https://h")), log) is not None
    assert _tls(replace(plain, backend_ca=str(issued.cert)), log) is not None
    assert _tls(replace(plain, backend_cert=str(issued.cert), backend_key=str(issued.key)), log) is not None
    assert _tls(replace(plain, backend_insecure=True), log) is None
    context = _tls(replace(plain, backends=("https://h",), backend_insecure=True), log)
    assert context is not None
    assert not context.check_hostname
    log.close(30)
    assert [line["detail"][:17] for line in lines(tmp_path / "log")] == ["backend_insecure:"]


def test_certificates_in_force_are_looked_after(tmp_path: Path) -> None:
    log, metrics = log_to(tmp_path / "log"), Metrics()
    made = Prepared(AccessRules(Authenticator(None, TrustedProxies(()))))
    assert _certificates(made, metrics, log)._expiries == {}
    made = replace(
        made, tls=cast(Any, object()), tls_expires=1e12, backend_cert_expires=2e12, redis_cert_expires=3e12
    )
    assert _certificates(made, metrics, log)._expiries == {"tls_cert": 1e12, "backend_cert": 2e12, "redis": 3e12}
    log.close(30)


async def test_what_the_watchdog_heals_is_counted_and_logged(tmp_path: Path) -> None:
    healed: list[str] = []
    strays: list[Any] = []
    told = SimpleNamespace(healed=healed.append)
    scheduler = SimpleNamespace(metrics=told, strays=strays.append)
    log = log_to(tmp_path / "log")
    loop, settings = asyncio.get_running_loop(), Settings(redis_timeout_ms=1000)
    for embedder, found in (({"flight"}, True), (None, False)):
        dog = _watchdog(settings, cast(Any, scheduler), cast(Any, embedder), log, cast(Any, None), loop)
        cast(Any, dog)._strays()
        among = strays.pop()
        assert (among("flight"), among("other")) == (found, False)
    cast(Any, dog)._on_healed("flight", "a flight")
    log.close(30)
    (line,) = lines(tmp_path / "log")
    assert (healed, line["level"], line["what"], line["detail"]) == (["flight"], "error", "flight", "a flight")


def test_an_app_has_its_url_by_where_it_listens() -> None:
    bare: dict[str, Any] = dict.fromkeys(App.__dataclass_fields__)
    for host, port, url in (
        ("/run/s", 0, "unix:///run/s"),
        ("gateway.sock", 0, "unix://gateway.sock"),
        ("::1", 5, "https://[::1]:5"),
        ("h", 5, "https://h:5"),
    ):
        assert App(**bare | {"host": host, "port": port, "scheme": "https"}).url == url


@asynccontextmanager
async def cached(tmp_path: Path, **changes: Any) -> AsyncIterator[tuple[Any, dict[str, Any]]]:
    """The cache as it is wired, without a Redis."""
    made: dict[str, Any] = {}

    class FakeCache:
        def __init__(self, url: str, **given: Any) -> None:
            made.update(given, url=url, told=[], cache=self)
            self.availability, self.accepts = SimpleNamespace(trouble=None), SimpleNamespace(trouble=None)

        async def start(self) -> None:
            made["told"].append("start")

        async def stop(self) -> None:
            made["told"].append("stop")

        async def ping(self) -> None:
            made["told"].append("ping")

    log, metrics = log_to(tmp_path / "log"), Metrics()
    made["metrics"] = metrics
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wiring, "Cache", FakeCache)
        async with AsyncExitStack() as stack:
            state = RedisState("yours")
            yield await wiring._cache("redis://h", Settings(**changes), log, metrics, stack, state), made
    log.close(30)


async def test_the_cache_is_started_asked_once_and_stopped_and_its_breaker_told_of(tmp_path: Path) -> None:
    async with cached(tmp_path, redis_timeout_ms=2500.0, cache_ttl_seconds=7, redis_namespace="n") as (_, made):
        assert (made["timeout"], made["ttl"], made["namespace"], made["url"]) == (2.5, 7, "n", "redis://h")
        assert made["told"] == ["start", "ping"]
        for trouble in (Lost("no connection"), Lost("login", "WRONGPASS"), None):
            made["on_breaker"](trouble)
        for refusal in (ReplyError("OOM x"), None):
            made["on_stores"](refusal)
            made["cache"].accepts.trouble = refusal
            refusing = {labels["reason"]: n for labels, n in made["metrics"].samples("redis_refusing")}
            assert (refusing["OOM"], sum(refusing.values())) == ((1, 1) if refusal else (0, 0))
    assert made["told"] == ["start", "ping", "stop"]
    assert [(line["level"], line["msg"], line["use"], line.get("detail")) for line in lines(tmp_path / "log")] == [
        ("warning", "redis away", "look-ups", "no connection"),
        ("warning", "redis refuses", "look-ups", "login"),
        ("info", "redis back", "look-ups", None),
        ("warning", "redis refuses", "stores", str(ReplyError("OOM x"))),
        ("info", "redis back", "stores", None),
    ]
    counted = {tuple(labels.values()): n for labels, n in made["metrics"].samples("cache_breaker_changes_total")}
    assert counted == {("open",): 1, ("closed",): 1}
    async with AsyncExitStack() as stack:
        off = RedisState("off")
        assert await wiring._cache(None, Settings(), cast(Any, None), Metrics(), stack, off) is None

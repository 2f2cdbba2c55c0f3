"""Engines as the settings make them, and what is told of each, at a port where nobody listens."""

from __future__ import annotations

import asyncio
import math
import ssl
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy.config.settings import Settings
from proxy.telemetry.log import Log
from proxy.telemetry.metrics import Metrics
from proxy.upstream import fleet as fleet_module
from proxy.upstream.backends import Backend, Lease
from proxy.upstream.breaker import BreakerRules, State
from proxy.upstream.fleet import Fleet
from proxy.upstream.http.pool import MAX_IDLE
from proxy.upstream.load import LoadReport
from proxy.upstream.routing import RoundRobin

A, B, C = (f"http://127.0.0.1:9/{name}" for name in "abc")


class Noted:
    """A log that keeps its events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, dict[str, Any]]] = []

    def event(self, level: str, msg: str, **fields: Any) -> None:
        self.events.append((level, msg, fields))


class House:
    def __init__(self, *urls: str, tls: ssl.SSLContext | None = None, **settings: Any) -> None:
        self.log, self.metrics = Noted(), Metrics()
        self.fleet = Fleet(
            urls,
            Settings(**settings),
            tls=tls,
            api_key="first",
            log=cast(Log, self.log),
            metrics=self.metrics,
            loop=asyncio.get_running_loop(),
        )
        self.all = self.fleet.backends.all

    def gauges(self, name: str) -> dict[str, float]:
        return {labels["backend"]: value for labels, value in self.metrics.samples(f"backend_{name}")}


def shown(backend: Backend) -> str:
    return backend.pool._head


async def test_the_settings_are_the_rules_of_every_engine() -> None:
    house = House(
        A, B, breaker_failures=3, breaker_rate=25, breaker_window=7.0, breaker_seconds=2.0,
        breaker_max_seconds=9.0, routing="round-robin", max_inflight=5, connect_timeout=0.5,
    )  # fmt: skip
    rules = BreakerRules(failures=3, rate=0.25, window=7.0, span=2.0, longest=9.0)
    for engine in house.all:
        assert engine.breaker._rules == rules
        assert (engine.max_inflight, engine.adaptive_limit, engine.pool._max_idle) == (5, None, MAX_IDLE)
        assert engine.pool._connect_timeout == 0.5
        assert engine.pool.reading is house.all[0].pool.reading
    assert isinstance(house.fleet.backends._router, RoundRobin)


@pytest.mark.parametrize(("milliseconds", "seconds"), [(0, math.inf), (250, 0.25)])
async def test_where_no_number_is_set_each_engine_has_a_pacer(milliseconds: int, seconds: float) -> None:
    (engine,) = House(A, max_inflight=0, pace_ttft_ms=milliseconds).all
    assert engine.adaptive_limit is not None
    assert (engine.adaptive_limit._objective, engine.max_inflight) == (seconds, engine.adaptive_limit.limit)


async def test_what_is_not_known_of_an_engine_is_left_out_of_its_gauges() -> None:
    house = House(A, B, max_inflight=4)
    one, other = house.all
    lease = Lease(one, house.fleet.backends)
    one.report = LoadReport(2.0, 3.0, 0.5)
    one.up, other.up = True, None
    assert house.gauges("inflight") == {A: 1, B: 0}
    assert house.gauges("max_inflight") == {A: 4, B: 4}
    assert house.gauges("up") == {A: 1, B: 0}
    assert house.gauges("breaker") == {A: 0, B: 0}
    assert house.gauges("folds") == {}
    names = "requests_running", "requests_waiting", "kv_cache_usage"
    assert [house.gauges(name) for name in names] == [{A: 2.0}, {A: 3.0}, {A: 0.5}]
    house.fleet.backends.change([], [one])
    assert house.gauges("inflight") == {B: 0}
    lease.release()


async def test_engines_that_change_are_told_and_new_ones_asked_before_anybody_waits_for_them() -> None:
    house = House(A, B)
    fleet, before = house.fleet, list(house.all)
    told: list[str] = []
    fleet.backends.subscribe(
        capacity_changed=lambda: told.append("".join(f"{b.name[-1]}{b.up}" for b in fleet.backends.all))
    )
    await fleet.change([A, B])
    assert (told, house.log.events) == ([], [])
    await fleet.change([B, C])
    assert [b.name for b in fleet.backends.all] == [B, C]
    assert fleet.backends.all[0] is before[1]
    assert told[-1] == "bNonecFalse"
    changed = [event for event in house.log.events if event[1] == "engines changed"]
    assert changed == [("info", "engines changed", {"added": C, "removed": A})]
    await fleet.change([C])
    assert house.log.events[-1][2] == {"added": "", "removed": B}


async def test_of_a_removed_engine_nothing_is_kept_but_what_one_of_its_name_has() -> None:
    house = House(A, B)
    fleet, (one, _) = house.fleet, house.all
    lease = Lease(one, fleet.backends)
    house.metrics.upstream_request(A)
    await fleet.change([B])
    assert (fleet._leaving, repr(fleet).endswith("leaving=1>")) == ([one], True)
    await fleet.change([A, B])
    lease.release()
    assert fleet._leaving == []
    assert house.metrics.samples("upstream_requests_total") == [({"backend": A}, 1)]
    assert house.gauges("inflight") == {A: 0, B: 0}
    await fleet.change([B])
    assert house.metrics.samples("upstream_requests_total") == []
    assert house.gauges("inflight") == {B: 0}


async def test_a_new_key_or_context_is_every_engine_s_and_what_is_not_given_stays() -> None:
    first, second = ssl.create_default_context(), ssl.create_default_context()
    house = House("https://127.0.0.1:9/a", "https://127.0.0.1:9/b", tls=first)
    fleet, engines = house.fleet, list(house.all)
    lease = Lease(engines[0], fleet.backends)
    fleet.backends.change([], [engines[0]])
    fleet._leaving.append(engines[0])

    def now() -> set[tuple[bool, str]]:
        return {(engine.pool._tls is first, shown(engine).partition("Bearer ")[2].strip()) for engine in engines}

    assert now() == {(True, "first")}
    fleet.renew(api_key="second")
    assert now() == {(True, "second")}
    fleet.renew(tls=second)
    assert now() == {(False, "second")}
    fleet.renew(api_key="")
    assert now() == {(False, "")}
    assert fleet._make("https://127.0.0.1:9/c").pool._tls is second
    fleet.close()
    assert all(engine.pool._closed for engine in engines)
    lease.release()


async def test_an_engine_that_lists_no_models_and_each_that_is_down_is_a_warning() -> None:
    house = House(A)
    (engine,), fleet = house.all, house.fleet
    fleet.backends.record_health(engine, down="", unlisted="/v1/models lists no model")
    fleet.backends._set(engine, up=False)
    fleet.backends.record_health(engine, down="")
    assert [(level, event) for level, event, _ in house.log.events] == [
        ("warning", "engine up"),
        ("warning", "engine down"),
        ("info", "engine up"),
    ]


async def test_what_becomes_of_an_engine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(A)
    (engine,), fleet = house.all, house.fleet
    woken: list[int] = []
    fleet.on_news(lambda: woken.append(1))
    fleet.backends._set(engine, up=True)
    fleet.backends.record_unreachable(engine, "refused")
    fleet.backends._on_breaker(engine, "it broke")
    fleet.backends._on_breaker(engine, "")
    assert house.log.events == [
        ("info", "engine up", {"backend": A, "detail": ""}),
        ("warning", "engine down", {"backend": A, "detail": "refused"}),
        ("warning", "engine breaker open", {"backend": A, "detail": "it broke"}),
        ("info", "engine breaker closed", {"backend": A, "detail": ""}),
    ]
    changes = {labels["to"]: n for labels, n in house.metrics.samples("backend_breaker_changes_total")}
    assert (woken, changes, engine.breaker.state) == ([1, 1], {"open": 1, "closed": 1}, State.CLOSED)


def test_a_gauge_without_a_value_is_left_out() -> None:
    backend: Any = SimpleNamespace(leaving=False)
    assert fleet_module._reader(backend, lambda one: 3.0)() == 3.0
    with pytest.raises(LookupError):
        fleet_module._reader(backend, lambda one: None)()
    backend.leaving = True
    with pytest.raises(LookupError):
        fleet_module._reader(backend, lambda one: 3.0)()


async def test_one_that_is_added_again_while_its_requests_end_is_the_same_and_they_count() -> None:
    house = House(A, B, max_inflight=2)
    fleet, (one, other) = house.fleet, house.all
    fleet.backends.divide()
    for each in (one, other):
        each.allot(2)
    leases = [Lease(one, fleet.backends) for _ in range(2)]
    one.up, one.few = True, True
    one.breaker.state = State.OPEN
    await fleet.change([B])
    assert fleet.engines == [other, one]
    looks: list[Any] = []
    fleet.backends.subscribe(capacity_changed=lambda: looks.append(one.up))
    await fleet.change([B, A])
    assert (fleet.backends.all, fleet.engines, one.leaving) == ([other, one], [other, one], False)
    assert (one.inflight, one.max_inflight, one.few, looks[-1]) == (2, 2, False, False)
    assert one in fleet.backends._tripped
    for lease in leases:
        lease.release()
    assert (one.inflight, house.gauges("inflight")) == (0, {A: 0, B: 0})
    await fleet.change([B])
    assert fleet.engines == [other]
    await fleet.change([B, A])
    assert fleet.backends.all[1] is not one

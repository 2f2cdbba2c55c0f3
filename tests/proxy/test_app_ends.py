"""The wiring's other end: what is closed, what is told at the start, and who is given Redis, keys and a reload."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from multidict import CIMultiDict

from proxy import app as wiring
from proxy.config.settings import Settings
from proxy.server import bind as listeners
from proxy.server.offload.large import LargeRequests
from proxy.server.page.handlers import Page
from proxy.telemetry.log import Log
from proxy.telemetry.metrics import Metrics
from proxy.upstream.fleet import Fleet
from proxy.upstream.pulse import Pulse
from tests.kit.engine import Engine
from tests.kit.running import gateway, lines
from tests.proxy.access.test_policy import entry
from tests.proxy.test_app_wiring import Given


class Stopped(Exception):
    """The start goes no further."""


async def test_what_was_started_is_closed_at_the_end(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def watch(owner: type, name: str) -> None:
        real = getattr(owner, name)

        def call(self: Any, *given: Any) -> Any:
            told.append(f"{owner.__name__}.{name}")
            return real(self, *given)

        monkeypatch.setattr(owner, name, call)

    for owner, name in (
        (Pulse, "start"),
        (Pulse, "close"),
        (Fleet, "close"),
        (LargeRequests, "close"),
        (Page, "close"),
    ):
        watch(owner, name)
    real = Metrics.watch_loop

    def watch_loop(self: Any, loop: Any) -> Any:
        end = real(self, loop)

        def ends() -> None:
            told.append("watch_loop")
            end()

        return ends

    monkeypatch.setattr(Metrics, "watch_loop", watch_loop)
    async with gateway(engine) as app:
        assert told[:1] == ["Pulse.start"]
        told.clear()
        app.metrics.render("")
    assert told == ["Page.close", "watch_loop", "LargeRequests.close", "Fleet.close", "Pulse.close"]


async def test_the_end_is_given_its_times_and_the_listener_its_backlog(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Given()
    given.watch(monkeypatch, listeners, "Drain", "Site")
    given.watch(monkeypatch, wiring, "descriptor_budget")
    async with gateway(engine, drain_delay=0.01, drain_timeout=0.02, head_timeout=4.0, max_connections=77):
        drain, site = given["Drain"], given["Site"]
        assert (drain["delay"], drain["timeout"]) == (0.01, 0.02)
        assert site["handshake"] == 4.0
        assert site["tls"] is None
        assert given["descriptor_budget"]["clients"] == 77
        assert site["backlog"] > 0


async def test_what_is_odd_about_the_settings_is_told_at_the_start(engine: Engine, tmp_path: Path) -> None:
    async with gateway(engine, backend_api_key="'k'", max_connections=10**8, log_to=tmp_path / "log"):
        pass
    told = [line["detail"] for line in lines(tmp_path / "log") if line["msg"] == "settings"]
    assert ["it is quoted" in words for words in told] == [True, False]
    assert "max_connections" in told[1]


async def test_a_fault_that_is_contained_is_a_line_of_the_log(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = Given()
    given.watch(monkeypatch, wiring, "Gateway", "ExchangeContext")
    async with gateway(engine, log_to=tmp_path / "log"):
        fault = given["Gateway"]["fault"]
        assert fault is given["ExchangeContext"]["fault"]
        fault("a turn", ValueError("odd"))
    (line,) = [line for line in lines(tmp_path / "log") if line["msg"] == "internal error"]
    assert (line["level"], line["where"]) == ("error", "a turn")
    assert "odd" in line["fault"]


@pytest.mark.parametrize(
    ("redis", "shared"), [("auto", None), ("redis://h", "<RedisClient redis://h:6379 None>"), ("off", None)]
)
@pytest.mark.parametrize("keyed", [False, True])
async def test_limits_are_shared_where_the_redis_is_other_processes_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, redis: str, shared: str | None, keyed: bool
) -> None:
    async def children(settings: Settings, *given: object) -> tuple[list[str], str | None, str]:
        return ["http://h"], None if redis == "off" else "redis://h", "words"

    async def no_cache(*given: object) -> None:
        return None

    seen: list[tuple[object, ...]] = []
    asked = SimpleNamespace(remote="10.0.0.1", headers=CIMultiDict(), protocol=None)
    asked.transport = SimpleNamespace(get_extra_info=lambda name: ("10.0.0.1", 5))

    async def admission_for(settings: Settings, redis: Any, *given: object, **more: Any) -> None:
        seen.append((redis and str(redis.client(connect_timeout=1)), more["keyed"], more["identify"](asked).id))
        raise Stopped

    monkeypatch.setattr(wiring, "children", children)
    monkeypatch.setattr(wiring, "_cache", no_cache)
    monkeypatch.setattr(wiring, "admission_for", admission_for)
    path = tmp_path / "keys"
    path.write_text(entry("ka", "team-a"))
    with pytest.raises(Stopped):
        async with gateway("http://h", redis=redis, api_keys_file=str(path) if keyed else ""):
            pass
    assert seen == [(shared, keyed, "10.0.0.1")]


@pytest.mark.parametrize(
    ("reread", "config", "watched"), [(True, "c", True), (False, "c", False), (True, "", False)]
)
async def test_a_settings_file_is_watched_where_there_is_one_and_it_can_be_read_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reread: bool, config: str, watched: bool
) -> None:
    given = Given()
    given.watch(monkeypatch, wiring, "FileReloads")
    settings = Settings(backends=(engine.url,), port=0, redis="off", probe="off", config=config, drain_timeout=0.0)
    with (tmp_path / "log").open("wb") as file:
        log = Log(file.fileno())
        async with wiring.running(settings, log, (lambda: settings) if reread else None):
            assert (given["FileReloads"]["reload"] is not None) is watched
        log.close(30)

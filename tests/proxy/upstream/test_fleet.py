"""Engines that come and go while requests are under way, over loopback: streams end where they began."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path

from proxy.app import App
from proxy.config.settings import Settings
from proxy.telemetry.log import Log
from proxy.upstream.backends import Backends
from proxy.upstream.fleet import Fleet
from proxy.upstream.http.pool import Pool
from tests.kit.client import get, post_json, streaming
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.leaks import settle
from tests.kit.running import HELLO, HELLO_STREAM, gateway, lines, until

CHAT = "/v1/chat/completions"


def fleet_of(app: App) -> Fleet:
    """The fleet that the app's engines tell their changes to."""
    backends: Backends = app.backends
    fleet = getattr(backends._on_change, "__self__", None)
    assert isinstance(fleet, Fleet)
    return fleet


async def test_a_removed_engine_ends_its_streams_and_gets_nothing_new(engine: Engine, tmp_path: Path) -> None:
    async with Engine(echo_script()) as new, gateway(engine, log_to=tmp_path / "log") as app:
        async with streaming(app.url, CHAT, HELLO_STREAM | {"temperature": 1}) as client:
            turn = await engine.next_request()
            await turn.send("a")
            await client.event()
            await fleet_of(app).change([new.url])
            for _ in range(3):
                assert (await post_json(app.url, CHAT, HELLO | {"temperature": 1})).status == 200
            assert (engine.generations, new.generations) == (1, 3)
            await turn.finish(" b")
            assert (await client.read()).events()[-1] == b"data: [DONE]\n\n"
        await engine.until(lambda: engine.open_connections == 0)
        page = (await get(app.url, "/metrics")).body.decode()
        assert f'gateway_backend_up{{backend="{new.url}"}} 1' in page
        assert f'gateway_backend_up{{backend="{engine.url}"}}' not in page
        await fleet_of(app).change([new.url])  # the same: nothing to tell
    changes = [line for line in lines(tmp_path / "log") if line["msg"] == "engines changed"]
    assert [(line["added"], line["removed"]) for line in changes] == [(new.url, engine.url)]


async def test_who_waits_for_a_place_gets_it_at_an_engine_that_is_added(engine: Engine) -> None:
    ask = HELLO_STREAM | {"temperature": 1}
    async with (
        Engine(echo_script()) as new,
        gateway(engine, max_inflight=1) as app,
        streaming(app.url, CHAT, ask) as first,
        streaming(app.url, CHAT, ask) as second,
    ):
        turn = await engine.next_request()
        await until(lambda: len(app.scheduler.queue) == 1)
        await fleet_of(app).change([engine.url, new.url])
        await turn.finish("a")
        for client in (first, second):
            assert (await client.read()).events()[-1] == b"data: [DONE]\n\n"
        assert (engine.generations, new.generations) == (1, 1)


async def test_one_that_is_removed_and_named_again_is_a_new_one() -> None:
    async with Engine(echo_script()) as one, Engine(echo_script()) as two, gateway(one, two) as app:
        before = app.backends.all[0]
        await fleet_of(app).change([two.url])
        await fleet_of(app).change([one.url, two.url])
        after = app.backends.all[-1]
        assert (after.name, after is before, after.up) == (before.name, False, True)


async def test_an_engine_gets_room_for_as_many_kept_connections_as_may_be_in_use() -> None:
    log = Log(2)
    settings = Settings(max_inflight=1000, breaker_failures=1)
    async with gateway("http://127.0.0.1:9", max_inflight=1000) as app:
        fleet = Fleet(
            ["http://127.0.0.1:9"],
            settings,
            tls=None,
            log=log,
            metrics=app.metrics,
            loop=asyncio.get_running_loop(),
        )
        assert fleet.backends.all[0].pool._max_idle == 1000
        assert repr(fleet) == "<Fleet <Backends http://127.0.0.1:9=0/1000!> leaving=0>"
        fleet.close()
    log.close(30)


async def test_engines_that_were_removed_leave_nothing_behind_however_often_they_change(engine: Engine) -> None:
    engine.auto(echo_script())
    async with gateway(engine, load_seconds=0.05) as app:
        fleet = fleet_of(app)
        await post_json(app.url, CHAT, HELLO)
        kept: list[weakref.ref[Pool]] = []
        for n in range(300):
            # Nobody listens at any of them: a refusal each, which is counted under their names.
            await fleet.change([engine.url, f"http://127.0.0.1:9/{n}"])
            made = app.backends.all[-1]
            kept.append(weakref.ref(made.pool))
            app.metrics.upstream_request(made.name)
            app.metrics.upstream_error(made.name, "upstream_unreachable")
            del made
        await fleet.change([engine.url])
        await settle()
        page = (await get(app.url, "/metrics")).body.decode()
        assert "127.0.0.1:9/" not in page
        assert f'gateway_upstream_requests_total{{backend="{engine.url}"}} 1' in page
        app.metrics.upstream_request("http://the.next")
        page = (await get(app.url, "/metrics")).body.decode()
        assert 'backend="http://the.next"' in page, "there is room for its name"
        # A poll of loads that was made meanwhile remembers its engines until the next one.
        await until(lambda: gc.collect() >= 0 and not any(ref() is not None for ref in kept))
        assert (fleet._leaving, app.backends._tripped) == ([], set())


async def test_one_that_is_removed_under_way_is_freed_when_that_has_ended(engine: Engine) -> None:
    async with Engine(echo_script()) as new, gateway(engine, new, routing="round-robin", load_seconds=0) as app:
        fleet = fleet_of(app)
        async with streaming(app.url, CHAT, HELLO_STREAM) as client:
            turn = await engine.next_request()
            await turn.send("a")
            await fleet.change([new.url])
            assert len(fleet._leaving) == 1
            await fleet.change([new.url, engine.url])  # named again: the same one
            await turn.finish("b")
            await client.read()
        await until(lambda: not fleet._leaving)
        page = (await get(app.url, "/metrics")).body.decode()
        assert f'gateway_backend_up{{backend="{engine.url}"}} 1' in page

"""The gauges of the gateway's state, as a scrape of the running gateway has them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.config.vocabulary import PRIORITIES
from proxy.server.gauges import state_gauges
from proxy.telemetry.metrics import Metrics
from tests.kit.client import get, post_json, streaming
from tests.kit.engine import Engine
from tests.kit.running import HELLO, HELLO_STREAM, gateway


async def test_a_scrape_shows_the_flight_its_reader_and_their_connections(engine: Engine) -> None:
    async with gateway(engine) as app, streaming(app.url, "/v1/chat/completions", HELLO_STREAM) as client:
        turn = await engine.next_request()
        await turn.send("a")
        await client.event()
        page = (await get(app.url, "/metrics")).body.decode()
        lines = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
        assert float(lines["gateway_flights"]) == 1
        assert float(lines["gateway_subscribers"]) == 1
        assert float(lines["gateway_queue_depth"]) == 0
        assert float(lines["gateway_client_connections"]) == 2
        assert float(lines["gateway_tasks"]) == len(asyncio.all_tasks())
        assert float(lines["gateway_queue_limit"]) == app.scheduler.queue.limit
        assert float(lines["gateway_start_time_seconds"]) > 1.7e9, "seconds of Unix time"
        await turn.finish()


async def test_an_engines_500_counts_as_its_failure_though_it_is_the_clients_answer(engine: Engine) -> None:
    async with gateway(engine) as app:
        asking = asyncio.create_task(post_json(app.url, "/v1/chat/completions", HELLO))
        await (await engine.next_request()).respond(500, {"error": {"message": "out of memory"}})
        assert (await asking).status == 500
        page = (await get(app.url, "/metrics")).body.decode()
        assert f'gateway_upstream_errors_total{{backend="{engine.url}",code="bad_status"}} 1' in page


class Sized(SimpleNamespace):
    def __len__(self) -> int:
        return int(self.size)


@pytest.mark.parametrize("cached", [None, False, True])
def test_each_gauge_shows_its_own_number(cached: bool | None) -> None:
    metrics = Metrics()
    line = SimpleNamespace(lengths=lambda: [11, 12, 13][: len(PRIORITIES)], owners=5)
    parts: Any = (
        Sized(size=2, subscribers=3),
        Sized(size=4, line=line, limit=6),
        SimpleNamespace(connections=[1] * 7),
        SimpleNamespace(dropped=8),
        None if cached is None else SimpleNamespace(available=cached),
    )
    state_gauges(metrics, *parts)
    one = {
        "flights": 2, "subscribers": 3, "queue_depth": 4, "queue_owners": 5, "queue_limit": 6,
        "client_connections": 7, "log_lines_dropped_total": 8,
    }  # fmt: skip
    assert {name: metrics.samples(name) for name in one} == {name: [({}, n)] for name, n in one.items()}
    waiting = {labels["priority"]: n for labels, n in metrics.samples("queue_waiting")}
    assert waiting == dict(zip(PRIORITIES, line.lengths(), strict=True))
    page = metrics.render("")[0].decode()
    shown = [line for line in page.splitlines() if line.startswith("gateway_cache_available")]
    assert shown == ([] if cached is None else [f"gateway_cache_available {int(cached)}"])

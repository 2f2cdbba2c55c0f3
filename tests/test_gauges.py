"""The gauges of the gateway's state, as a scrape of the running gateway has them."""

from __future__ import annotations

import asyncio

from tests.client import get, post_json, streaming
from tests.engine import Engine
from tests.running import HELLO, HELLO_STREAM, gateway


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

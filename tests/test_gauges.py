"""The gauges of the gateway's state, as a scrape of the running gateway has them."""

from __future__ import annotations

from tests.client import get, streaming
from tests.engine import Engine
from tests.running import HELLO_STREAM, gateway


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
        assert float(lines["gateway_queue_limit"]) == app.scheduler.queue.limit
        assert float(lines["gateway_start_time_seconds"]) > 1.7e9, "seconds of Unix time"
        await turn.finish()

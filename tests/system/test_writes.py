"""How many writes a client's answer takes: what the engine sent at once goes out at once, a hit in one write."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy.embedded.redis import EmbeddedRedis
from proxy.server.respond import SocketPipe
from tests.kit.client import post_json, streaming
from tests.kit.engine import Engine
from tests.kit.running import HELLO_STREAM, gateway, until

CHAT = "/v1/chat/completions"
WITH_USAGE = HELLO_STREAM | {"stream_options": {"include_usage": True}}
BURST = [f" w{n}" for n in range(40)]


@pytest.fixture
async def redis() -> AsyncIterator[str]:
    server = EmbeddedRedis(8)
    yield await server.start()
    await server.stop()


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was written to clients' sockets, each write an entry."""
    seen: list[bytes] = []

    class Seen:
        """A transport whose writes are seen."""

        def __init__(self, transport: asyncio.Transport) -> None:
            self._transport = transport

        def write(self, data: bytes) -> None:
            seen.append(bytes(data))
            self._transport.write(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._transport, name)

    made = SocketPipe.__init__

    def watched(self: SocketPipe, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        self._transport = Seen(self._transport)  # type: ignore[assignment]

    monkeypatch.setattr(SocketPipe, "__init__", watched)
    return seen


async def test_forty_events_in_one_segment_go_out_in_few_writes(engine: Engine, writes: list[bytes]) -> None:
    async with gateway(engine) as app, streaming(app.url, CHAT, HELLO_STREAM) as client:
        turn = await engine.next_request()
        await turn.send("first")
        assert (await client.event()) is not None  # the role
        assert (await client.event()) is not None
        before = len(writes)
        await turn.send(*BURST)
        texts = [event.text for event in [await client.event() for _ in BURST] if event is not None]
        assert texts == BURST
        # One a read of the engine's: the segment may come in two, never in forty.
        assert len(writes) - before <= 4
        await turn.finish()
        await client.read()


async def test_every_reader_of_a_burst_has_it_in_as_few_writes(engine: Engine, writes: list[bytes]) -> None:
    async with (
        gateway(engine) as app,
        streaming(app.url, CHAT, HELLO_STREAM) as one,
        streaming(app.url, CHAT, WITH_USAGE) as other,
    ):
        turn = await engine.next_request()
        await turn.send("first")
        for client in (one, other):
            await client.event()
            await client.event()
        before = len(writes)
        await turn.send(*BURST)
        for client in (one, other):
            assert [event.text for event in [await client.event() for _ in BURST] if event is not None] == BURST
        assert len(writes) - before <= 8
        await turn.finish()
        for client in (one, other):
            await client.read()


async def test_a_hit_is_one_write_of_the_very_bytes_of_the_live_stream_with_and_without_usage(
    engine: Engine, redis: str, writes: list[bytes]
) -> None:
    async with gateway(engine, redis=redis) as app:
        async with (
            streaming(app.url, CHAT, HELLO_STREAM) as plain,
            streaming(app.url, CHAT, WITH_USAGE) as asked,
        ):
            turn = await engine.next_request()
            await turn.send(*BURST)
            await turn.finish()
            first = [await plain.read(), await asked.read()]
        await until(lambda: not len(app.group))
        assert b'"usage":{' in first[1].body
        assert b'"usage":{' not in first[0].body
        for body, seen in zip((HELLO_STREAM, WITH_USAGE), first, strict=True):
            writes.clear()
            hit = await post_json(app.url, CHAT, body)
            assert hit.head["x-gateway-cache"] == "hit"
            assert (hit.raw, hit.body) == (seen.raw, seen.body)
            assert len(writes) == 1
            assert writes[0].startswith(b"HTTP/1.1 200 OK\r\n")
            assert writes[0].endswith(seen.raw)
        assert engine.generations == 1

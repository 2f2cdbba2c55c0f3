"""The last reader leaving cancels the generation at the engine, in every phase."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from proxy.app import App
from tests.kit.certificates import Authority
from tests.kit.client import Connection, request_bytes, streaming
from tests.kit.engine import Engine, full_backlog
from tests.kit.running import HELLO, HELLO_STREAM, gateway, until

CHAT = "/v1/chat/completions"
SAMPLED = {"temperature": 1}


@pytest.mark.parametrize("ask", [HELLO, HELLO_STREAM, HELLO | SAMPLED, HELLO_STREAM | SAMPLED])
async def test_leaving_during_prefill_cancels(engine: Engine, ask: dict[str, Any]) -> None:
    async with gateway(engine) as app, streaming(app.url, CHAT, ask) as client:
        turn = await engine.next_request()
        await client.abort()
        await turn.cancelled()
        await until(lambda: len(app.group) == 0)


@pytest.mark.parametrize("ask", [HELLO_STREAM, HELLO_STREAM | SAMPLED])
async def test_leaving_while_tokens_stream_cancels(engine: Engine, ask: dict[str, Any]) -> None:
    async with gateway(engine) as app, streaming(app.url, CHAT, ask) as client:
        turn = await engine.next_request()
        await turn.send("a")
        await client.event()
        await client.close()
        await turn.cancelled()


async def test_leaving_while_connecting_ends_the_attempt() -> None:
    with full_backlog() as url:
        async with gateway(url) as app, streaming(app.url, CHAT, HELLO_STREAM) as client:
            await until(lambda: app.group.subscribers == 1)
            await client.abort()
            await until(lambda: len(app.group) == 0)


async def test_leaving_the_queue_costs_the_engine_nothing(engine: Engine) -> None:
    async with gateway(engine, max_inflight=1) as app, streaming(app.url, CHAT, HELLO_STREAM) as first:
        turn = await engine.next_request()
        async with streaming(app.url, CHAT, HELLO_STREAM | SAMPLED) as queued:
            await until(lambda: len(app.scheduler.queue) == 1)
            await queued.abort()
            await until(lambda: len(app.scheduler.queue) == 0)
        await turn.finish("a")
        await first.read()
        assert engine.generations == 1


async def test_one_of_two_leaving_cancels_nothing_and_the_second_does(engine: Engine) -> None:
    async with (
        gateway(engine) as app,
        streaming(app.url, CHAT, HELLO_STREAM) as one,
        streaming(app.url, CHAT, HELLO_STREAM) as two,
    ):
        turn = await engine.next_request()
        await until(lambda: app.group.subscribers == 2)
        await one.abort()
        await until(lambda: app.group.subscribers == 1)
        assert not turn.is_cancelled
        await two.abort()
        await turn.cancelled()


async def test_no_one_joins_a_generation_that_is_being_cancelled(engine: Engine) -> None:
    async with gateway(engine) as app:
        async with streaming(app.url, CHAT, HELLO_STREAM) as first:
            turn = await engine.next_request()
            await first.abort()
            await turn.cancelled()
        async with streaming(app.url, CHAT, HELLO_STREAM) as second:
            again = await engine.next_request()
            await again.finish("b")
            assert (await second.read_head())["x-gateway-cache"] == "miss"
            await second.read()


async def test_a_disconnect_in_mid_body_leaves_nothing(engine: Engine) -> None:
    async with gateway(engine) as app, await Connection.open(app.url) as client:
        await client.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\ncontent-type: application/json\r\n"
            b'content-length: 100\r\n\r\n{"model"'
        )
        await client.abort()
    assert engine.generations == 0


# -- a connection that is not being read

BEHIND = request_bytes("GET", "/v1/models") * 1000  # 40 KB: they stop the reading, and fit into a socket's buffer
SOON: dict[str, Any] = {"client_stall_timeout": 0.2}  # looks at its connections every 50 ms

Over = Literal["tcp", "unix", "tls"]


@asynccontextmanager
async def reached(engine: Engine, over: Over, tmp_path: Path) -> AsyncIterator[tuple[App, Connection]]:
    """A gateway, and a connection to it over this transport."""
    changes = dict(SOON)
    path, authority = str(tmp_path / "s"), Authority(tmp_path, "one") if over == "tls" else None
    if authority is not None:
        issued = authority.issue("localhost")
        changes |= {"tls_cert": str(issued.cert), "tls_key": str(issued.key)}
    elif over == "unix":
        changes["listen_unix"] = path
    async with gateway(engine, **changes) as app:
        if over == "unix":
            pair = await asyncio.open_unix_connection(path)
        elif authority is not None:
            context = ssl.create_default_context(cafile=str(authority.pem))
            pair = await asyncio.open_connection("127.0.0.1", app.port, ssl=context, server_hostname="localhost")
        else:
            pair = await asyncio.open_connection("127.0.0.1", app.port)
        yield app, Connection(*pair)


@pytest.mark.parametrize("ask", [HELLO, HELLO_STREAM])
@pytest.mark.parametrize("how", ["fin", "rst", "half"])
@pytest.mark.parametrize("over", ["tcp", "unix", "tls"])
async def test_leaving_behind_requests_that_are_not_read_yet_cancels(
    engine: Engine, over: Over, how: str, ask: dict[str, Any], tmp_path: Path
) -> None:
    async with reached(engine, over, tmp_path) as (app, client):
        await client.send(request_bytes("POST", CHAT, msgspec.json.encode(ask)) + BEHIND)
        turn = await engine.next_request()
        assert not turn.is_cancelled
        if how == "fin":
            client.writer.transport.abort()  # TLS has no other end: `close` waits for the gateway's
        elif how == "half" and client.writer.can_write_eof():
            client.half_close()  # of a connection that is read it is the end, too
        else:
            await client.abort()
        await turn.cancelled()
        await until(lambda: len(app.group) == 0)
        client.writer.transport.abort()


async def test_staying_behind_requests_that_are_not_read_yet_cancels_nothing(engine: Engine) -> None:
    async with gateway(engine, head_timeout=0.2) as app, await Connection.open(app.url) as client:
        await client.send(request_bytes("POST", CHAT, msgspec.json.encode(HELLO_STREAM)) + BEHIND)
        turn = await engine.next_request()
        async with await Connection.open(app.url) as silent:  # is looked at as often, and ended by a look
            assert await silent.at_eof()
        assert not turn.is_cancelled
        await turn.finish("a")
        assert (await client.read()).status == 200
        for _ in range(1000):
            assert (await client.read()).status == 200

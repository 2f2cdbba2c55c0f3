"""Answers that nobody asked for, on connections that are kept: no client gets another one's."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.kit.client import Answer, post_json
from tests.kit.raw_server import Peer, RawServer
from tests.kit.running import gateway

CHAT = "/v1/chat/completions"
QUIET: dict[str, Any] = {"refresh_seconds": 3600.0, "load_seconds": 0.0}


def ask(text: str, *, stream: bool) -> dict[str, Any]:
    return {"model": "m1", "messages": [{"role": "user", "content": text}], "temperature": 1, "stream": stream}


def about(request: bytes) -> tuple[str, str]:
    """The id and the text of a request."""
    head, _, body = request.partition(b"\r\n\r\n")
    names = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    return names["X-Request-Id"], json.loads(body)["messages"][0]["content"]


def answer(request: bytes, *, stream: bool, echoes: bool) -> bytes:
    """As vLLM writes it."""
    id_, text = about(request)
    if not echoes:
        id_ = "of-its-own"
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
    if stream:
        chunk = {"id": f"chatcmpl-{id_}", "choices": [choice | {"delta": {"content": text}}]}
        body = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode()
        kind = "text/event-stream"
    else:
        whole = {
            "id": f"chatcmpl-{id_}",
            "choices": [choice | {"message": {"role": "assistant", "content": text}}],
        }
        body, kind = json.dumps(whole).encode(), "application/json"
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def polls(server: RawServer) -> None:
    """The two of the gateway's first look, then no more of that connection."""
    peer = await server.peer()
    await peer.request()
    await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    await peer.request()
    await peer.send(b'HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 12\r\n\r\n{"data": []}')
    peer.close()


async def exchange(url: str, peer: asyncio.Future[Peer] | Peer, text: str, *, stream: bool, echoes: bool) -> Any:
    asking = asyncio.ensure_future(post_json(url, CHAT, ask(text, stream=stream)))
    there = peer if isinstance(peer, Peer) else await peer
    request = await there.request()
    await there.send(answer(request, stream=stream, echoes=echoes))
    found = await asking
    assert text.encode() in found.body
    return there, request


@pytest.mark.parametrize("step", [0, 1, 7])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_second_answer_that_comes_late_is_not_the_next_client_s(stream: bool, step: int) -> None:
    async with RawServer() as server:
        first = asyncio.ensure_future(polls(server))
        async with gateway(server.url, **QUIET) as app:
            await first
            peer = asyncio.ensure_future(server.peer())
            kept, request = await exchange(app.url, peer, "one", stream=stream, echoes=True)
            asking: asyncio.Future[Answer] = asyncio.ensure_future(
                post_json(app.url, CHAT, ask("two", stream=stream))
            )
            await kept.request()
            await kept.send(answer(request, stream=stream, echoes=True), step)  # the first one's, again
            other = await server.peer()
            await kept.gone()
            again = await other.request()
            assert about(again)[1] == "two"
            await other.send(answer(again, stream=stream, echoes=True))
            found = await asking
            assert found.status == 200
            assert b"two" in found.body
            assert b"one" not in found.body


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_an_engine_that_makes_ids_of_its_own_is_served_on_kept_connections(stream: bool) -> None:
    async with RawServer() as server:
        first = asyncio.ensure_future(polls(server))
        async with gateway(server.url, **QUIET) as app:
            await first
            peer = asyncio.ensure_future(server.peer())
            kept, _ = await exchange(app.url, peer, "one", stream=stream, echoes=False)
            for text in ("two", "three"):
                await exchange(app.url, kept, text, stream=stream, echoes=False)
            assert server.accepted == 2


async def test_an_engine_that_echoes_no_more_is_asked_once_more_and_then_believed() -> None:
    async with RawServer() as server:
        first = asyncio.ensure_future(polls(server))
        async with gateway(server.url, **QUIET) as app:
            await first
            peer = asyncio.ensure_future(server.peer())
            kept, _ = await exchange(app.url, peer, "one", stream=True, echoes=True)
            asking = asyncio.ensure_future(post_json(app.url, CHAT, ask("two", stream=True)))
            await kept.send(answer(await kept.request(), stream=True, echoes=False))
            other = await server.peer()
            await other.send(answer(await other.request(), stream=True, echoes=False))
            assert (await asking).status == 200
            await exchange(app.url, other, "three", stream=True, echoes=False)
            assert server.accepted == 3

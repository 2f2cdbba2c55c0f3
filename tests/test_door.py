"""The listening side: our own loop in place of aiohttp's, what it leans on, that it serves as aiohttp's did."""

from __future__ import annotations

import ast
import asyncio
import hashlib
import inspect
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import StreamReader, web
from aiohttp.web_protocol import RequestHandler

from proxy.door import Door, DoorHandler, at_hand
from tests.client import Connection
from tests.running import until

READ = "2e56"
"""The front of the hash of RequestHandler.start as it was when ours was written after it (aiohttp 3.14.5)."""

ASK = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def answer(request: web.BaseRequest, text: str = "ok", *, keep: bool = True) -> bool:
    assert request.transport is not None
    request.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(text), text.encode()))
    return keep and request.keep_alive


@asynccontextmanager
async def listening(
    handler: Callable[[web.BaseRequest], Awaitable[bool]], **changes: int
) -> AsyncIterator[tuple[str, Door]]:
    door = Door(handler, max_connections=changes.get("max_connections", 100), max_header=8190)
    runner = web.ServerRunner(door, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", door
    finally:
        await runner.cleanup()


async def plainly(request: web.BaseRequest) -> bool:
    return answer(request, request.path)


def names_of_others() -> set[str]:
    """The private names of `self` in DoorHandler that it does not define itself."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(DoorHandler)))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }
    return used - set(vars(DoorHandler))


def test_every_name_of_aiohttp_s_that_it_leans_on_is_there() -> None:
    loop = asyncio.new_event_loop()
    try:

        async def made() -> RequestHandler:
            return RequestHandler(web.Server(plainly), loop=asyncio.get_running_loop())  # type: ignore[arg-type]

        handler = loop.run_until_complete(made())
        missing = sorted(name for name in names_of_others() if not hasattr(handler, name))
    finally:
        loop.close()
    assert missing == [], "aiohttp has changed: read RequestHandler.start again, and DoorHandler.start with it"
    assert {"_buffer", "_buffer_offset"} <= set(StreamReader.__slots__), "aiohttp has changed: see door.at_hand"


def test_aiohttp_s_own_loop_is_the_one_that_ours_was_written_after() -> None:
    source = inspect.getsource(RequestHandler.start)
    found = hashlib.sha256(source.encode()).hexdigest()
    assert found.startswith(READ), (
        "aiohttp's RequestHandler.start has changed: compare it with DoorHandler.start, take over what is new, "
        f"then write {found[:4]!r} here"
    )


async def test_a_connection_serves_one_request_after_another() -> None:
    async with listening(plainly) as (url, _), await Connection.open(url) as connection:
        for path in ("/a", "/b"):
            await connection.send(ASK.replace(b"/ ", path.encode() + b" ", 1))
            assert (await connection.read()).body == path.encode()


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with listening(plainly) as (url, _), await Connection.open(url) as connection:
        paths = [f"/{n}".encode() for n in range(5)]
        await connection.send(b"".join(ASK.replace(b"/ ", path + b" ", 1) for path in paths))
        assert [(await connection.read()).body for _ in paths] == paths


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    ],
)
async def test_a_connection_that_is_to_end_ends_after_its_answer(request_bytes: bytes) -> None:
    async with listening(plainly) as (url, _), await Connection.open(url) as connection:
        await connection.send(request_bytes)
        assert (await connection.read()).status == 200
        assert await connection.reader.read() == b""


async def test_a_body_that_nobody_read_does_not_become_the_next_request() -> None:
    async with listening(plainly) as (url, _), await Connection.open(url) as connection:
        head = b"POST /first HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\n\r\n"
        await connection.send(head + b"x" * 20)
        assert (await connection.read()).body == b"/first"
        await connection.send(b"y" * 20 + ASK)
        assert (await connection.read()).body == b"/"


async def test_a_fault_of_the_handler_closes_the_connection_and_the_next_one_is_served() -> None:
    async def faulty(request: web.BaseRequest) -> bool:
        if request.path == "/fault":
            raise RuntimeError("a fault")
        return answer(request)

    async with listening(faulty) as (url, _):
        async with await Connection.open(url) as connection:
            await connection.send(ASK.replace(b"/ ", b"/fault ", 1))
            assert await connection.reader.read() == b""
        async with await Connection.open(url) as connection:
            await connection.send(ASK)
            assert (await connection.read()).status == 200


async def test_a_client_that_leaves_cancels_its_handler() -> None:
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def waits(request: web.BaseRequest) -> bool:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return True

    async with listening(waits) as (url, _):
        async with await Connection.open(url) as connection:
            await connection.send(ASK)
            await began.wait()
        await cancelled.wait()


async def test_stopping_waits_for_the_answer_under_way() -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    async def slow(request: web.BaseRequest) -> bool:
        began.set()
        await go_on.wait()
        return answer(request)

    async with listening(slow) as (url, door), await Connection.open(url) as connection:
        await connection.send(ASK)
        await began.wait()
        stopping = asyncio.ensure_future(door.shutdown(5.0))
        await until(lambda: all(handler._force_close for handler in door.connections))
        assert not stopping.done()
        go_on.set()
        assert (await connection.read()).body == b"ok"
        await stopping


async def test_a_body_at_hand_is_all_of_it_or_nothing() -> None:
    bodies: list[bytes | None] = []

    async def looks(request: web.BaseRequest) -> bool:
        bodies.append(at_hand(request.content))
        return answer(request)

    async with listening(looks) as (url, _), await Connection.open(url) as connection:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"
        for sent, rest in ((head + b"abcd", b""), (head + b"ab", b"cd"), (ASK, b"")):
            await connection.send(sent)
            await connection.read()
            await connection.send(rest)
    assert bodies == [b"abcd", None, b""]

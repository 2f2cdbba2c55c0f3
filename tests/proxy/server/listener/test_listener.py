"""The listening side: our own loop for each client connection, and what of aiohttp it leans on."""

from __future__ import annotations

import ast
import asyncio
import hashlib
import inspect
import logging
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import StreamReader, web
from aiohttp.web_protocol import RequestHandler

from proxy.server import respond
from proxy.server.listener import request
from proxy.server.listener.listener import ClientConnection, Listener
from proxy.server.listener.request import Request, buffered_body
from tests.kit.client import Answer, Connection, get, request_bytes
from tests.kit.engine_turn import PATIENCE
from tests.kit.patience import patience
from tests.kit.running import until

# -- what it leans on

READ = "aiohttp 3.14.5"
START = "2e565fd40c8e04fb3afb481d5ba52691a61d28396573b4b8a4cf3b168782288e"
"""Of `RequestHandler.start` as it was when `ClientConnection.start` was written to take its place."""
DATA_RECEIVED = "1ee57ebe052e6c80ced26c96e4ccb1223172e1d55afba460353c5e414914d3f6"
"""The same of `RequestHandler.data_received`, and `ClientConnection._feed`."""

ADVICE = f"""
aiohttp {aiohttp.__version__} is not the one that proxy/server/listener/listener.py was written for ({READ}).
What to look at:
 1. `git diff` of aiohttp/web_protocol.py between the two: `RequestHandler.start`, `shutdown`, `connection_lost`,
    `data_received`, `_process_keepalive`. DoorHandler.start must do what the new `start` does, but for the task,
    the response object and the access log; `_feed` what the new `data_received` does, but for websockets.
 2. Run this file and tests/system/test_bad_input.py, tests/system/test_cancel.py, tests/system/test_process.py.
 3. Then write the new version and hashes into READ, START and DATA_RECEIVED here."""


def names_used(source: str, owner: str) -> set[str]:
    """The attributes of `owner` that a source reads, writes or calls."""
    tree = ast.parse(textwrap.dedent(source))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return {node.attr for node in found if ast.unparse(node.value) == owner}


async def refuse_all(request: Request) -> bool:
    return False


async def test_every_name_of_aiohttp_s_that_the_loop_uses_is_there() -> None:
    source = inspect.getsource(ClientConnection)
    listener = Listener(refuse_all, max_connections=1, max_header=8190)
    handler = listener()
    parser = handler._parser
    owners: dict[str, object] = {"self": handler, "manager": listener, "self._parser": parser}
    owners["payload"] = StreamReader(handler, 1)
    missing = [
        f"{owner}.{name}"
        for owner, value in owners.items()
        for name in sorted(names_used(source, owner))
        if not hasattr(value, name)
    ]
    assert missing == [], ADVICE
    # Were a name only ours, its writing would make it: it must be aiohttp's own.
    ours = {name for name in names_used(source, "self") if name not in vars(ClientConnection)}
    assert [name for name in sorted(ours) if not hasattr(RequestHandler, name)] == [], ADVICE
    assert {"_messages", "_waiter", "_task_handler"} <= ours
    used = names_used(inspect.getsource(request), "payload") | names_used(inspect.getsource(request), "content")
    assert {name for name in used if name.startswith("_")} == {
        "_eof", "_exception", "_size", "_buffer", "_buffer_offset",
    }  # fmt: skip
    assert all(hasattr(owners["payload"], name) for name in used), ADVICE


@pytest.mark.parametrize(
    ("replaced", "read"), [(RequestHandler.start, START), (RequestHandler.data_received, DATA_RECEIVED)]
)
def test_aiohttp_s_own_methods_are_those_that_were_read(replaced: Callable[..., object], read: str) -> None:
    source = inspect.getsource(replaced)
    assert hashlib.sha256(source.encode()).hexdigest() == read, ADVICE


@pytest.mark.parametrize("what", ["self._one", "del self._one", "x(self._one.y)", "self._one = self._one()"])
def test_a_name_is_found_however_it_is_used(what: str) -> None:
    assert names_used(f"    async def f(self):\n        {what}\n", "self") == {"_one"}


# -- over loopback

Reply = Callable[[Request], Awaitable[bool]]


async def hello(request: Request) -> bool:
    """Answers with its path, and leaves the body where it is."""
    sent, _ = respond.write(request, 200, (), request.path.encode())
    return sent.keep_alive


@asynccontextmanager
async def serving(handler: Reply = hello, **changes: Any) -> AsyncIterator[tuple[str, Listener]]:
    """A door on a free port, and what remains of it once it has closed: nothing."""
    listener = Listener(handler, **({"max_connections": 10, "max_header": 8190} | changes))
    runner = web.ServerRunner(listener, shutdown_timeout=PATIENCE)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", listener
    finally:
        await runner.cleanup()
    assert listener.connections == []


class Records(logging.Handler):
    def __init__(self, records: list[object]) -> None:
        super().__init__()
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)


@asynccontextmanager
async def faults() -> AsyncIterator[list[object]]:
    """Records of handlers that raised, and exceptions of callbacks and tasks of this loop. Other loops, and
    destructors, log when the garbage of earlier tests is collected: at any time."""
    found: list[object] = []
    loop, logger, handler = asyncio.get_running_loop(), logging.getLogger("aiohttp.server"), Records(found)
    loop.set_exception_handler(lambda _, context: found.append(context.get("exception") or context["message"]))
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        loop.set_exception_handler(None)


def error_of(answer: Answer) -> tuple[int, str]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert answer.head["connection"] == "close"
    return answer.status, error["code"]


async def test_a_connection_serves_one_request_after_the_other() -> None:
    async with serving() as (url, listener), await Connection.open(url) as client:
        for path in ("/one", "/two", "/three"):
            await client.request("POST", path, b"{}")
            assert (await client.read()).body == path.encode()
        assert (len(listener.connections), listener.requests_count) == (1, 3)


@pytest.mark.parametrize("step", [None, 7], ids=["at once", "in pieces"])
async def test_requests_sent_together_are_answered_in_their_order(step: int | None) -> None:
    paths = [f"/{n}" for n in range(30)]  # more than aiohttp takes in before it stops reading
    async with serving() as (url, _), await Connection.open(url) as client:
        data = b"".join(request_bytes("POST", path, b'{"n": 1}') for path in paths)
        await client.send(data, step=step)
        assert [(await client.read()).body.decode() for _ in paths] == paths


async def test_a_body_that_nobody_read_is_taken_and_the_next_request_is_served() -> None:
    async with serving() as (url, _), await Connection.open(url) as client:
        await client.send(b"POST /one HTTP/1.1\r\nHost: localhost\r\ncontent-length: 300000\r\n\r\n")
        assert (await client.read()).body == b"/one"  # before its body has come
        await client.send(b"x" * 300_000 + request_bytes("GET", "/two"))
        assert (await client.read()).body == b"/two"


async def test_a_body_that_never_ends_is_waited_for_a_while_only() -> None:
    async with serving(lingering=0.02) as (url, _), await Connection.open(url) as client:
        await client.send(b"POST /one HTTP/1.1\r\nHost: localhost\r\ncontent-length: 10\r\n\r\nx")
        assert (await client.read()).body == b"/one"
        assert await client.at_eof()


@pytest.mark.parametrize("rest", [b"no chunk\r\n", b"2\r\nabcd\r\n", b"ffffffffffffffffffff\r\n"])
async def test_a_body_whose_chunks_cannot_be_read_ends_the_connection_and_nothing_else(
    rest: bytes,
) -> None:
    async with faults() as found, serving() as (url, listener):
        async with await Connection.open(url) as client:
            await client.send(b"POST /one HTTP/1.1\r\nHost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
            assert (await client.read()).body == b"/one"
            await client.send(rest + request_bytes("GET", "/two"))
            async with patience(PATIENCE):
                left = await client.reader.read()
            assert b"/two" not in left
        await until(lambda: not listener.connections)
        assert (await get(url, "/three")).body == b"/three"
    assert found == []


@pytest.mark.parametrize(
    "head",
    [b"GET /one HTTP/1.0\r\n\r\n", b"GET /one HTTP/1.1\r\nHost: localhost\r\nconnection: close\r\n\r\n"],
    ids=["1.0", "close"],
)
async def test_a_client_that_wants_no_more_is_closed_after_its_answer(head: bytes) -> None:
    async with serving() as (url, _), await Connection.open(url) as client:
        await client.send(head)
        answer = await client.read()
        assert (answer.body, answer.head["connection"]) == (b"/one", "close")
        assert await client.at_eof()


OFFERS = {
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    "websocket": b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
    "twice": b"Connection: Upgrade, Upgrade\r\nUpgrade: h2c\r\n",
    "odd case": b"cOnNeCtIoN: uPgRaDe\r\nuPgRaDe: TLS/1.0\r\n",
}
BODIES = {
    "none": (b"", b""),
    "length": (b"Content-Length: 4\r\n", b"a\r\n\r"),
    "chunks": (b"Transfer-Encoding: chunked\r\n", b"4\r\n\r\n\r\n\r\n0\r\nx: upgrade\r\n\r\n"),
}


@pytest.mark.parametrize("step", [None, 1, 7, 64])
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("offer", OFFERS)
async def test_an_offer_to_upgrade_swallows_no_request_and_shifts_no_answer(
    offer: str, body: str, step: int | None
) -> None:
    head, content = BODIES[body]
    asks = [
        b"POST /%d HTTP/1.1\r\nHost: g\r\n%b%b\r\n%b" % (n, OFFERS[offer] if n % 3 else b"", head, content)
        for n in range(9)
    ]
    async with serving() as (url, _), await Connection.open(url) as client:
        sending = asyncio.ensure_future(client.send(b"".join(asks), step=step))
        answers = [(await client.read()).body for _ in asks]
        await sending
        await client.request("GET", "/after")
        assert (await client.read()).body == b"/after"
    assert answers == [b"/%d" % n for n in range(9)]


async def test_more_pipelined_offers_than_are_read_ahead_are_all_answered() -> None:
    """The parser pauses at 32 requests that wait: just there an offer must not swallow what follows it."""
    asks = [b"GET /%d HTTP/1.1\r\nHost: g\r\n%b\r\n" % (n, OFFERS["h2c"]) for n in range(200)]
    async with serving() as (url, _), await Connection.open(url) as client:
        await client.send(b"".join(asks))
        assert [(await client.read()).body for _ in asks] == [b"/%d" % n for n in range(200)]


async def test_pipelined_requests_are_read_ahead_within_a_bound() -> None:
    most = 0
    handlers: list[Listener] = []

    async def slow(request: Request) -> bool:
        nonlocal most
        for handler in handlers[0].connections:
            most = max(most, len(handler._messages))
        await asyncio.sleep(0)
        return await hello(request)

    asks = [b"GET /%d HTTP/1.1\r\nHost: g\r\n\r\n" % n for n in range(1000)]
    async with serving(slow) as (url, listener), await Connection.open(url) as client:
        handlers.append(listener)
        sending = asyncio.ensure_future(client.send(b"".join(asks)))
        assert [(await client.read()).body for _ in asks] == [b"/%d" % n for n in range(1000)]
        await sending
    assert 1 < most <= 32


async def test_a_fault_of_the_handler_ends_its_connection_is_logged_and_the_server_lives() -> None:
    async def fails(request: Request) -> bool:
        if request.path == "/fault":
            raise ZeroDivisionError("a fault of ours")
        return await hello(request)

    async with (
        faults() as found,
        serving(fails) as (url, _),
        await Connection.open(url) as other,
        await Connection.open(url) as client,
    ):
        await client.request("GET", "/fault")
        assert await client.at_eof()
        await other.request("GET", "/one")
        assert (await other.read()).body == b"/one"
    (record,) = found
    assert isinstance(record, logging.LogRecord)
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ZeroDivisionError)


async def test_a_fault_before_the_handler_ends_its_connection_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = ZeroDivisionError("a fault of ours")

    def fails(message: object) -> None:
        raise error

    async with faults() as found, serving() as (url, _):
        async with await Connection.open(url) as client:
            monkeypatch.setattr("proxy.server.listener.listener.read_head", fails)
            await client.request("GET", "/one")
            assert await client.at_eof()
        monkeypatch.undo()
        async with await Connection.open(url) as client:
            await client.request("GET", "/one")
            assert (await client.read()).body == b"/one"
    assert found == [error]


@pytest.mark.parametrize("how", ["abort", "close", "half_close"])
async def test_a_client_that_leaves_in_mid_answer_cancels_its_handler(
    how: str,
) -> None:
    cancelled = asyncio.Event()

    async def endless(request: Request) -> bool:
        respond.write(request, 200, (), b"")
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return True

    async with faults() as found, serving(endless) as (url, listener), await Connection.open(url) as client:
        await client.request("GET", "/")
        await client.read_head()
        left = getattr(client, how)()
        if inspect.isawaitable(left):
            await left
        async with patience(PATIENCE):
            await cancelled.wait()
        await until(lambda: not listener.connections)
    assert found == []


async def test_a_handler_that_finds_its_client_gone_is_no_fault() -> None:
    async def gone(request: Request) -> bool:
        raise ConnectionResetError("the client took nothing for too long")

    async with faults() as found, serving(gone) as (url, _), await Connection.open(url) as client:
        await client.request("GET", "/")
        assert await client.at_eof()
    assert found == []


async def test_closing_waits_for_the_answer_under_way() -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def slow(request: Request) -> bool:
        asked.set()
        await go.wait()
        return await hello(request)

    listener = Listener(slow, max_connections=10, max_header=8190)
    runner = web.ServerRunner(listener, shutdown_timeout=6 * PATIENCE)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with await Connection.open(url) as idle, await Connection.open(url) as client:
        await client.request("GET", "/one")
        await asked.wait()
        closing = asyncio.ensure_future(runner.cleanup())
        await until(lambda: any(each._handler_waiter is not None for each in listener.connections))
        assert not closing.done()
        go.set()
        assert (await client.read()).body == b"/one"
        assert await client.at_eof()
        assert await idle.at_eof()
        async with patience(PATIENCE):  # and no longer than for that
            await closing


async def test_closing_does_not_wait_for_ever() -> None:
    asked = asyncio.Event()

    async def endless(request: Request) -> bool:
        asked.set()
        await asyncio.get_running_loop().create_future()
        return True

    listener = Listener(endless, max_connections=10, max_header=8190)
    server = await asyncio.get_running_loop().create_server(listener, "127.0.0.1", 0)
    async with await Connection.open(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
        await client.request("GET", "/one")
        await asked.wait()
        server.close()
        await listener.shutdown(0.01)
        assert await client.at_eof()
    await server.wait_closed()


@pytest.mark.parametrize(
    ("data", "refusal"),
    [
        (b"\x16\x03\x01garbage\r\n\r\n", (400, "invalid_value")),
        (b"GET / HTTP/1.1\r\nno header\r\n\r\n", (400, "invalid_value")),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\ncontent-length: x\r\n\r\n", (400, "invalid_value")),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nx: " + b"y" * 2000 + b"\r\n\r\n", (431, "headers_too_large")),
        (b"GET /" + b"y" * 2000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", (431, "headers_too_large")),
    ],
    ids=["tls", "header", "length", "long header", "long line"],
)
async def test_what_cannot_be_read_is_refused_in_shape_after_what_was_asked_before(
    data: bytes, refusal: tuple[int, str]
) -> None:
    async with serving(max_header=1024) as (url, _), await Connection.open(url) as client:
        await client.send(request_bytes("GET", "/one"))
        assert (await client.read()).body == b"/one"
        await client.send(data)
        assert error_of(await client.read()) == refusal
        assert await client.at_eof()


async def test_one_connection_too_many_is_told_so_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first one is not idle for long, however slow the machine is.
    monkeypatch.setattr("proxy.server.listener.connection_limit.GRACE_SECONDS", 600.0)
    refused: list[int] = []
    async with (
        serving(max_connections=1, on_refused=lambda: refused.append(1)) as (url, _),
        await Connection.open(url) as first,
    ):
        await first.request("GET", "/one")
        assert (await first.read()).body == b"/one"
        async with await Connection.open(url) as second:
            assert error_of(await second.read()) == (503, "queue_full")
    assert refused == [1]


def test_what_a_body_at_hand_is_taken_out_of_is_there() -> None:
    assert {"_buffer", "_buffer_offset", "_eof", "_size"} <= set(StreamReader.__slots__), (
        "aiohttp has changed: see request.at_hand"
    )


async def test_a_body_at_hand_is_all_of_it_or_nothing() -> None:
    bodies: list[bytes | None] = []

    async def looks(request: Request) -> bool:
        bodies.append(buffered_body(request.content))
        return await hello(request)

    async with serving(looks) as (url, _), await Connection.open(url) as connection:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"
        bare = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        for sent, rest in ((head + b"abcd", b""), (head + b"ab", b"cd"), (bare, b"")):
            await connection.send(sent)
            await connection.read()
            await connection.send(rest)
    assert bodies == [b"abcd", None, b""]

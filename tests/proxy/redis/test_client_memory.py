"""The way to a Redis over transports in memory: when it connects, what it sends where, and how it ends."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

import pytest

from proxy.redis.client import MAX_PENDING, MAX_REPLY, RedisClient
from proxy.redis.resp import Bounds, Login, Lost, ReplyError, RespConnection, pack
from proxy.redis.url import RedisAddress, address, files_of
from tests.kit.clock import virtual
from tests.kit.resp_kit import HELLO_REPLY, Transport

UNIX = RedisAddress(Login(), path="/a")


class Server:
    """Takes connections of the running loop, or fails as told; None: it never answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fails: BaseException | None = None
        self.hangs = False
        self.asked: list[Any] = []
        self.wires: list[tuple[RespConnection, Transport]] = []
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "create_unix_connection", self.unix, raising=False)
        monkeypatch.setattr(loop, "create_connection", self.tcp, raising=False)

    async def unix(self, make: Callable[[], RespConnection], path: str) -> None:
        self.asked.append(path)
        await self._take(make)

    async def tcp(self, make: Callable[[], RespConnection], host: str, port: int, *, ssl: Any) -> None:
        self.asked.append((host, port, ssl))
        await self._take(make)

    async def _take(self, make: Callable[[], RespConnection]) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        if self.fails is not None:
            raise self.fails
        wire, transport = make(), Transport()
        self.wires.append((wire, transport))
        wire.connection_made(transport)
        wire.data_received(HELLO_REPLY)


def link_to(where: RedisAddress = UNIX, **more: Any) -> RedisClient:
    return RedisClient(where, connect_timeout=5.0, **more)


async def turns() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


@virtual
async def test_a_lost_connection_is_replaced_though_nobody_was_told_of_its_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda _, context: None)
    server, link, replies = Server(monkeypatch), link_to(), list[Any]()
    link.send((b"GET", b"k"), 1.0, replies.append)
    await turns()
    ((wire, _),) = server.wires
    with monkeypatch.context() as patch:
        patch.setattr(wire, "_on_lost", lambda wire: 1 // 0)
        wire.connection_lost(None)
    link.send((b"GET", b"k"), 1.0, replies.append)
    await turns()
    server.wires[1][0].data_received(b"+a\r\n")
    assert [str(reply) for reply in replies[:1]] == ["it closed the connection"]
    assert replies[1:] == [b"a"]
    server.wires[1][0].connection_lost(None)


@virtual
async def test_one_connection_serves_until_it_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    server, link = Server(monkeypatch), link_to()
    assert (link.pending, "None" in repr(link)) == (0, True)
    replies: list[Any] = []
    for _ in range(2):
        link.send((b"GET", b"k"), 1.0, replies.append)
    size = len(pack((b"GET", b"k")))
    assert link.pending == 2 * size
    await turns()
    ((wire, transport),) = server.wires
    assert (server.asked, link._opening) == (["/a"], {})
    assert transport.written[1:] == [pack((b"GET", b"k")) * 2]
    wire.data_received(b"+a\r\n")
    wire.connection_lost(None)
    assert (replies[0], str(replies[1]), link.pending) == (b"a", "it closed the connection", 0)
    link.renew(RedisAddress(Login(), "h", 7))
    link.send((b"GET", b"k"), 1.0, replies.append)
    await turns()
    assert server.asked == ["/a", ("h", 7, None)]
    wire.lose(Lost("too late"))
    assert link.pending == size, "an old loss is none of the new connection"
    server.wires[1][0].connection_lost(None)


@virtual
async def test_a_future_has_the_reply_or_the_error_and_may_have_left(monkeypatch: pytest.MonkeyPatch) -> None:
    server, link = Server(monkeypatch), link_to()
    left, fine, refused = (link.call(b"GET", b"k", timeout=1.0) for _ in range(3))
    left.cancel()
    await turns()
    server.wires[0][0].data_received(b"+a\r\n+b\r\n-ERR no\r\n")
    assert await fine == b"b"
    with pytest.raises(ReplyError):
        await refused
    assert left.cancelled()
    server.wires[0][0].connection_lost(None)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(2, "No such file"), "no connection (No such file)"),
        (OSError("odd"), "no connection (OSError)"),
        (ValueError("odd"), "no connection (ValueError)"),
        (ssl.SSLCertVerificationError(1, "x"), "its certificate is not trusted (self-signed)"),
    ],
)
@virtual
async def test_a_connection_that_cannot_be_made_is_told_and_the_next_command_tries_again(
    monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    server, link = Server(monkeypatch), link_to()
    if isinstance(error, ssl.SSLCertVerificationError):
        error.verify_message = "self-signed"
    server.fails = error
    for _ in range(2):
        with pytest.raises(Lost) as caught:
            await link.call(b"PING", timeout=1.0)
        assert str(caught.value) == said
    assert len(server.asked) == 2
    await turns()
    assert link._opening == {}


@virtual
async def test_one_that_never_comes_is_given_up_and_nothing_is_left_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    server, link = Server(monkeypatch), link_to()
    server.hangs = True
    with pytest.raises(Lost, match="no connection within 100 ms"):
        await link.call(b"PING", timeout=0.1)
    await turns()
    assert link._opening == {}
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("state", ["unused", "opening", "open"])
@virtual
async def test_the_end_leaves_nothing_and_takes_no_more(monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    server, link = Server(monkeypatch), link_to()
    server.hangs = state == "opening"
    replies: list[Any] = []
    if state != "unused":
        link.send((b"GET", b"k"), 9.0, replies.append)
        await turns()
    closing = asyncio.ensure_future(link.close())
    await turns()
    if state == "open":
        assert not closing.done(), "the socket is still there"
        server.wires[0][0].connection_lost(None)
    await closing
    link.send((b"GET", b"k"), 9.0, replies.append)
    assert [str(reply) for reply in replies] == ["the gateway is shutting down"] * (1 + (state != "unused"))
    assert len(server.asked) == (state != "unused")
    assert asyncio.all_tasks() == {asyncio.current_task()}


@virtual
async def test_its_bounds_and_pushes_are_those_that_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    server, pushed = Server(monkeypatch), list[Any]()
    for link, bounds in (
        (link_to(on_push=pushed.append, max_pending=9, max_reply=8), Bounds(5.0, 9, 8)),
        (link_to(), Bounds(5.0, MAX_PENDING, MAX_REPLY)),
    ):
        assert link._bounds == bounds
        link.send((b"GET", b"too large for nine"), 1.0, lambda reply: None)
        await turns()
        wire = server.wires[-1][0]
        wire.data_received(b">1\r\n+x\r\n")
        wire.connection_lost(None)
    assert pushed == [[b"x"]]


def test_the_files_of_a_url_are_those_it_names() -> None:
    url = "rediss://h?ssl_ca_certs=a&ssl_certfile=b%20c&db=1&ssl_keyfile=d&ssl_keyfile=e"
    assert files_of(url) == {"ssl_ca_certs": "a", "ssl_certfile": "b c", "ssl_keyfile": "d"}
    assert files_of("redis://h") == {}
    assert address("redis://") == RedisAddress(Login())
    assert address("redis://h?socket_timeout=3&retry_on_timeout=yes") == RedisAddress(Login(), "h")

"""The way to a real Redis: URLs, login, TLS, databases, loss and return."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import SettingsError
from proxy.redis.client import RedisClient
from proxy.redis.resp import Login, Lost, ReplyError
from proxy.redis.url import RedisAddress, address
from tests.kit.missing import REDIS_WITH_TLS, lacking
from tests.kit.ports import free_port
from tests.kit.raw_server import RawServer
from tests.kit.redis_server import Certificate, redis_server, server_with_tls, tls_end

SECONDS = 10.0  # a loaded machine is slow


@asynccontextmanager
async def linked(url: str, **changes: Any) -> AsyncIterator[RedisClient]:
    link = RedisClient(address(url), **({"connect_timeout": SECONDS} | changes))
    try:
        yield link
    finally:
        await link.close()


async def ask(link: RedisClient, *command: bytes | str | int) -> Any:
    return await link.call(*command, timeout=SECONDS)


@pytest.fixture
async def path() -> AsyncIterator[str]:
    async with redis_server() as path:
        yield path


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate.make(tmp_path_factory.mktemp("tls"))


# -- where it is


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h", RedisAddress(Login(), "h")),
        ("redis://h:7/3", RedisAddress(Login(db=3), "h", 7)),
        ("redis://u:p%40@h", RedisAddress(Login("u", "p@"), "h")),
        ("redis://:p@h?db=2&client_name=gw&protocol=2", RedisAddress(Login(None, "p", 2, "gw", 2), "h")),
        ("redis://[::1]:7", RedisAddress(Login(), "::1", 7)),
        ("unix:///a/b?db=1", RedisAddress(Login(db=1), path="/a/b")),
        ("unix://:p@/a/b?socket_timeout=3", RedisAddress(Login(None, "p"), path="/a/b")),
    ],
)
def test_a_url_is_read_as_redis_py_reads_it(url: str, expected: RedisAddress) -> None:
    assert address(url) == expected


def test_an_address_says_where_and_not_how_to_get_in() -> None:
    for url in ("redis://user:secret@h:1/2", "unix://user:secret@/a", "redis://h?password=secret"):
        where = address(url)
        assert "secret" not in f"{where} {where!r} {RedisClient(where, connect_timeout=1.0)!r}"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://:secret@h", "expected redis://HOST"),
        ("redis://:secret@h?db=x", "Invalid Redis URL"),
        ("redis://:secret@h:notaport", "Invalid Redis URL"),
        ("redis://:secret@h?colour=blue", "'colour', which is unknown"),
        ("redis://:secret@h?protocol=4", "must be 2 or 3"),
        ("rediss://:secret@h?ssl_cert_reqs=perhaps", "Invalid Redis URL"),
        ("rediss://:secret@h?ssl_ca_certs=no-such-file", "No such file"),
        ("rediss://:secret@h?ssl_nonsense=1", "Invalid Redis URL"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_secrets(url: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as caught:
        address(url)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@given(st.text(max_size=40))
def test_whatever_the_url_it_is_an_address_or_a_settings_error(text: str) -> None:
    try:
        assert isinstance(address(text), RedisAddress)
    except SettingsError:
        pass


# -- logging in


async def test_password_user_database_and_name_reach_the_server() -> None:
    user = ("--user", "app", "on", ">pw", "~*", "+@all")
    async with redis_server("--requirepass", "open@sesame", *user) as path:
        for login in (":open%40sesame", "app:pw"):
            for protocol in (2, 3):
                url = f"unix://{login}@{path}?db=3&client_name=gw&protocol={protocol}"
                async with linked(url) as link:
                    assert await ask(link, "SET", "k", login) == b"OK"
                    info = await ask(link, "CLIENT", "LIST")
                    assert b"name=gw " in info
                    assert b" db=3 " in info
        async with linked(f"unix://app:pw@{path}") as link:
            assert await ask(link, "GET", "k") is None  # another database


@pytest.mark.parametrize("login", ["", ":wrong", "nobody:wrong"])
@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_wrong_password_is_told_without_being_repeated(login: str, protocol: int) -> None:
    async with (
        redis_server("--requirepass", "secret") as path,
        linked(f"unix://{login}@{path}?protocol={protocol}") as link,
    ):
        with pytest.raises((Lost, ReplyError), match=r"\((NOAUTH|WRONGPASS)\)") as caught:
            await ask(link, "PING")
        assert "wrong" not in str(caught.value)


@pytest.mark.parametrize("own", [True, False], ids=["its own TLS", "a TLS end in front"])
async def test_tls_with_a_certificate_that_holds_and_one_that_does_not(
    certificate: Certificate, own: bool
) -> None:
    ca = f"ssl_ca_certs={certificate.cert}"
    async with tls_redis(certificate, own=own) as port:
        async with linked(f"rediss://:pw@localhost:{port}/1?{ca}") as link:
            assert await ask(link, "SET", "k", b"x" * 3_000_000) == b"OK"
            assert await ask(link, "GET", "k") == b"x" * 3_000_000
        async with linked(f"rediss://:pw@127.0.0.1:{port}?ssl_cert_reqs=none") as link:
            assert await ask(link, "PING") == b"PONG"
        async with linked(f"rediss://:pw@localhost:{port}") as link:
            with pytest.raises(Lost, match=r"certificate is not trusted \(self.signed certificate\)"):
                await ask(link, "PING")
        async with linked(f"redis://:pw@localhost:{port}") as link:  # no TLS where TLS is spoken
            with pytest.raises(Lost, match="; a Redis with TLS needs rediss://"):
                await ask(link, "PING")


async def test_tls_where_none_is_spoken_is_told_as_the_likely_cause() -> None:
    port = free_port()
    async with redis_server("--port", str(port), "--bind", "127.0.0.1"):
        client = RedisClient(address(f"rediss://127.0.0.1:{port}"), connect_timeout=0.3)
        with pytest.raises(
            Lost, match=r"no connection (within 300 ms|\(.*\)); a Redis without TLS needs redis://"
        ):
            await ask(client, "PING")
        await client.close()


@pytest.mark.parametrize("url", ["redis://127.0.0.1", "rediss://127.0.0.1"])
async def test_a_refused_connection_says_nothing_of_tls(url: str) -> None:
    async with linked(f"{url}:{free_port()}") as link:
        with pytest.raises(Lost, match=r"^no connection \([^;]*$"):
            await ask(link, "PING")


async def test_a_server_that_cuts_the_handshake_is_told_as_one_without_tls() -> None:
    async with RawServer() as server, linked(f"rediss://127.0.0.1:{server.port}") as link:
        reply = link.call("PING", timeout=SECONDS)
        (await server.peer()).writer.write(b"-ERR Protocol error\r\n")
        with pytest.raises(Lost, match=r"no connection \(.*\); a Redis without TLS needs redis://"):
            await reply


@asynccontextmanager
async def tls_redis(certificate: Certificate, *, own: bool) -> AsyncIterator[int]:
    if not own:
        async with redis_server("--requirepass", "pw") as path, tls_end(path, certificate) as port:
            yield port
        return
    binary = server_with_tls()
    if binary is None:
        lacking("a redis-server with TLS", REDIS_WITH_TLS)
    port = free_port()
    files = ["--tls-cert-file", str(certificate.cert), "--tls-key-file", str(certificate.key)]
    listen = ["--tls-port", str(port), "--tls-auth-clients", "no", "--bind", "127.0.0.1"]
    async with redis_server("--requirepass", "pw", *listen, *files, binary=binary):
        yield port


# -- loss and return


async def test_a_killed_connection_is_replaced_and_only_what_was_under_way_is_lost(path: str) -> None:
    async with linked(f"unix://{path}") as link, linked(f"unix://{path}") as other:
        first = await ask(link, "CLIENT", "ID")
        blocked = link.call("BLPOP", "nothing", 0, timeout=SECONDS)
        await ask(other, "CLIENT", "KILL", "ID", first)
        with pytest.raises(Lost, match="closed the connection"):
            await blocked
        assert await ask(link, "CLIENT", "ID") > first


async def test_after_a_timeout_the_late_reply_meets_nobody(path: str) -> None:
    async with linked(f"unix://{path}") as link, linked(f"unix://{path}") as other:
        await ask(link, "PING")  # the connection is open: else its time counts too
        with pytest.raises(Lost, match="no answer within 20 ms"):
            await link.call("BLPOP", "late", 0, timeout=0.02)
        await ask(other, "RPUSH", "late", "v")
        assert await ask(link, "ECHO", "mine") == b"mine"


async def test_where_nobody_listens_every_command_is_told_and_a_later_one_finds_the_server(tmp_path: Path) -> None:
    async with linked(f"unix://{tmp_path}/none") as link:
        told = await asyncio.gather(*(ask(link, "PING") for _ in range(3)), return_exceptions=True)
        assert [str(error) for error in told] == ["no connection (No such file or directory)"] * 3
        async with redis_server() as path:
            os.symlink(path, tmp_path / "none")
            assert await ask(link, "PING") == b"PONG"


async def test_closing_while_it_connects_or_waits_leaves_nothing(path: str) -> None:
    for asked_before in (False, True):
        link = RedisClient(address(f"unix://{path}"), connect_timeout=SECONDS)
        if asked_before:
            await ask(link, "PING")
        waiting = link.call("BLPOP", "nothing", 0, timeout=SECONDS)
        await link.close()
        for future in (waiting, link.call("PING", timeout=SECONDS)):
            with pytest.raises(Lost, match="shutting down"):
                await future


# -- commands


async def test_thousands_under_way_keep_their_order_while_some_leave(path: str) -> None:
    async with linked(f"unix://{path}") as link:
        futures = [link.call("ECHO", n, timeout=SECONDS) for n in range(3000)]
        for future in futures[::3]:
            future.cancel()
        kept = [n for n in range(3000) if n % 3]
        assert await asyncio.gather(*(futures[n] for n in kept)) == [b"%d" % n for n in kept]
        assert link.pending == 0


async def test_scripts_run_by_their_hash_and_an_unknown_one_is_a_refusal(path: str) -> None:
    async with linked(f"unix://{path}") as link:
        with pytest.raises(ReplyError) as caught:
            await ask(link, "EVALSHA", "0" * 40, 0)
        assert caught.value.code == "NOSCRIPT"
        sha = await ask(link, "SCRIPT", "LOAD", "return {KEYS[1], redis.error_reply('WRONG in here'), 7}")
        name, error, number = await ask(link, "EVALSHA", sha, 1, "k")
        assert (name, error.code, number) == (b"k", "WRONG", 7)


async def test_messages_are_pushed_beside_replies(path: str) -> None:
    pushed: asyncio.Queue[list[Any]] = asyncio.Queue()
    async with linked(f"unix://{path}", on_push=pushed.put_nowait) as link, linked(f"unix://{path}") as other:
        assert await ask(link, "SUBSCRIBE", "a", "b") == [b"subscribe", b"b", 2]
        assert await ask(other, "PUBLISH", "b", "hello") == 1
        while (push := await pushed.get())[0] != b"message":
            pass
        assert push == [b"message", b"b", b"hello"]
        assert await ask(link, "ECHO", "x") == b"x"


async def test_streams_have_room_for_large_replies(path: str) -> None:
    async with linked(f"unix://{path}") as link:
        for n in range(8):
            await ask(link, "XADD", "s", "*", "v", bytes([n]) * 1_000_000)
        entries = await ask(link, "XRANGE", "s", "-", "+")
        assert [value[1] for _, value in entries] == [bytes([n]) * 1_000_000 for n in range(8)]

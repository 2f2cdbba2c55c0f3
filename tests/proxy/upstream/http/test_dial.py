"""How an engine is reached: TLS that holds, Unix sockets, names with many addresses, clear words for the rest."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.errors import Code, GatewayError, SettingsError
from proxy.upstream.http.dial import (
    KEEPALIVE_IDLE,
    OURS,
    ConnectionRefused,
    Endpoint,
    address_of,
    dial,
    tls_context,
)
from proxy.upstream.http.pool import Pool
from tests.kit.certificates import Authority, Issued, encrypt, server_context
from tests.kit.client import post_json
from tests.kit.engine import full_backlog
from tests.kit.raw_server import RawServer
from tests.kit.reference import Ours, Reference, Upstream
from tests.kit.running import HELLO, gateway, lines
from tests.kit.taker import Taker

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="session")
def localhost(authority: Authority) -> Issued:
    return authority.issue("localhost")


def named(server: RawServer) -> str:
    return server.url.replace("127.0.0.1", "localhost")


async def answered(server: RawServer, upstream: Upstream) -> GatewayError | None:
    """One exchange that the server answers, if it comes to that; how it ended."""
    taker = Taker()
    task = asyncio.create_task(upstream.exchange("GET", "/", b"", taker))
    serving = asyncio.create_task(_serve(server))
    await task
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    await upstream.close()
    return await taker.ended()


async def _serve(server: RawServer) -> None:
    peer = await server.peer()
    await peer.request()
    await peer.send(ANSWER)


@pytest.mark.parametrize("kind", [Ours, Reference])
async def test_an_engine_whose_authority_is_given_is_trusted(
    kind: Callable[..., Upstream], authority: Authority, localhost: Issued
) -> None:
    async with RawServer(tls=server_context(localhost)) as server:
        assert await answered(server, kind(named(server), tls=tls_context(ca=str(authority.pem)))) is None


async def test_tls_names_the_host_and_speaks_http_1_1(authority: Authority, localhost: Issued) -> None:
    context, names = server_context(localhost), []
    context.sni_callback = lambda _, name, __: names.append(name)
    async with RawServer(tls=context) as server:
        pool = pool_of(named(server), tls=tls_context(ca=str(authority.pem)))
        connection = await pool.connect()
        assert connection._transport is not None
        tls = connection._transport.get_extra_info("ssl_object")
        assert (names, tls.selected_alpn_protocol()) == (["localhost"], "http/1.1")
        pool.close()


@pytest.mark.parametrize("kind", [Ours, Reference])
@pytest.mark.parametrize(
    ("host", "days", "trusted", "why"),
    [
        ("other.example", 1, True, "not valid for 'localhost'"),
        ("localhost", -1, True, "has expired"),
        ("localhost", 1, False, "unable to get local issuer"),
    ],
)
async def test_a_certificate_that_does_not_hold_is_a_502_that_says_why(
    kind: Callable[..., Upstream], authority: Authority, host: str, days: int, trusted: bool, why: str
) -> None:
    tls = tls_context(ca=str(authority.pem)) if trusted else tls_context()
    async with RawServer(tls=server_context(authority.issue(host, days=days))) as server:
        error = await answered(server, kind(named(server), tls=tls))
        assert error is not None
        assert error.code is Code.UPSTREAM_UNREACHABLE
        assert why in error.message


async def test_a_self_signed_certificate_is_refused_unless_it_is_given_or_insecure(tmp_path: Path) -> None:
    own = Authority(tmp_path, "localhost")
    context = server_context(Issued(own.pem, own._key))
    async with RawServer(tls=context) as server:
        error = await answered(server, Ours(named(server), tls=tls_context()))
        assert error is not None
        assert "self-signed certificate" in error.message
        assert await answered(server, Ours(named(server), tls=tls_context(insecure=True))) is None


async def test_a_client_certificate_is_shown_and_without_it_the_engine_hangs_up(
    authority: Authority, localhost: Issued
) -> None:
    mine = authority.issue("gateway")
    context = server_context(localhost, clients_of=authority.pem)
    async with RawServer(tls=context) as server:
        shown = tls_context(ca=str(authority.pem), cert=str(mine.cert), key=str(mine.key))
        assert await answered(server, Ours(named(server), tls=shown)) is None
        error = await answered(server, Ours(named(server), tls=tls_context(ca=str(authority.pem))))
        assert error is not None
        assert error.code is Code.UPSTREAM_UNREACHABLE


async def test_plain_http_where_tls_was_meant_is_told() -> None:
    async with RawServer() as server:
        url = server.url.replace("http:", "https:")
        task = asyncio.create_task(pool_of(url, tls=tls_context(insecure=True)).connect())
        peer = await server.peer()
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        with pytest.raises(GatewayError, match="TLS failed") as caught:
            await task
        assert caught.value.code is Code.UPSTREAM_UNREACHABLE


async def test_an_untrusted_engine_is_a_502_and_a_line_in_the_log(localhost: Issued, tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with RawServer(tls=server_context(localhost)) as server, gateway(named(server), log_to=log) as app:
        answer = await post_json(app.url, "/v1/chat/completions", HELLO)
        assert answer.status == 502
        assert "its certificate is not trusted" in answer.json()["error"]["message"]
    down = [line for line in lines(log) if line.get("msg") == "engine down"]
    assert "certificate is not trusted: unable to get local issuer" in down[0]["detail"]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"ca": "gone.pem"}, "backend_ca = 'gone.pem': No such file"),
    ({"ca": __file__}, "backend_ca = "),
    ({"cert": "gone.pem"}, "backend_cert = 'gone.pem': No such file"),
    ({"key": "a.key"}, "backend_key needs backend_cert"),
    ({"ca": "a.pem", "insecure": True}, "give one"),
]


@pytest.mark.parametrize(("given", "said"), WRONG)
def test_tls_settings_that_cannot_be_used_are_told(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        tls_context(**given)
    assert said in str(caught.value)


def test_keys_that_do_not_fit_or_are_locked_are_told(authority: Authority, localhost: Issued) -> None:
    other = authority.issue("gateway")
    for key, said in (
        (other.key, "mismatch"),
        (encrypt(localhost.key), "encrypted"),
        (Path("no"), "no such"),
    ):
        with pytest.raises(SettingsError, match="backend_key") as caught:
            tls_context(cert=str(localhost.cert), key=str(key))
        assert said in str(caught.value).lower()


@pytest.mark.parametrize("kind", [Ours, Reference])
async def test_a_unix_socket_is_as_good_as_a_port(kind: Callable[..., Upstream], tmp_path: Path) -> None:
    async with RawServer(path=str(tmp_path / "s")) as server:
        assert await answered(server, kind(server.url)) is None


async def test_an_engine_on_a_unix_socket_serves_the_gateway(tmp_path: Path) -> None:
    async with RawServer(path=str(tmp_path / "s")) as server:

        async def serve() -> None:
            for status in (b"200 OK", b"200 OK", b"418 X"):  # its health, its models, the request
                peer = await server.peer()
                request = await peer.request()
                assert b"\r\nHost: localhost\r\n" in request
                await peer.send(b"HTTP/1.1 %b\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}" % status)

        serving = asyncio.create_task(serve())
        async with gateway(server.url, refresh_seconds=1000) as app:
            assert (await post_json(app.url, "/v1/responses", {})).status == 418
        await serving


async def test_a_unix_socket_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(GatewayError, match="no Unix socket at its path") as caught:
        await pool_of(f"unix://{tmp_path}/gone").connect()
    assert caught.value.code is Code.UPSTREAM_UNREACHABLE


@pytest.mark.parametrize("kind", [Ours, Reference])
async def test_an_engine_on_ipv6_is_reached(kind: Callable[..., Upstream]) -> None:
    async with RawServer(host="::1") as server:
        assert await answered(server, kind(server.url)) is None


async def test_a_name_with_a_dead_address_first_reaches_the_living_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """uvloop's and asyncio's own connect would wait for the first address until the time was up."""
    with full_backlog() as dead:
        port = int(dead.rpartition(":")[2])
        async with RawServer() as server:
            loop = asyncio.get_running_loop()

            async def found(*args: object, **more: object) -> list[Any]:
                return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", p)) for p in (port, server.port)]

            monkeypatch.setattr(loop, "getaddrinfo", found)
            pool = pool_of("http://engines.example")
            assert (await pool.connect()).usable
            pool.close()


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 64 + ".example"])
async def test_a_name_that_is_none_is_told_as_such(host: str) -> None:
    with pytest.raises(GatewayError, match="no such host") as caught:
        await pool_of(f"http://{host}:1").connect()
    assert caught.value.code is Code.UPSTREAM_UNREACHABLE


async def test_a_connection_does_not_delay_and_notices_a_machine_that_vanished() -> None:
    async with RawServer() as server:
        pool = pool_of(server.url)
        connection = await pool.connect()
        assert connection._transport is not None
        sock = connection._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == KEEPALIVE_IDLE
        pool.close()


async def test_a_handshake_that_does_not_come_runs_into_the_connect_timeout() -> None:
    async with RawServer() as server:
        url = server.url.replace("http:", "https:")
        timeout = 0.05
        while not server.accepted:  # on a busy machine the time may be over before the connection is made
            with pytest.raises(GatewayError, match=f"after {timeout:g} s") as caught:
                await pool_of(url, tls=tls_context(insecure=True), connect_timeout=timeout).connect()
            assert caught.value.code is Code.UPSTREAM_CONNECT_TIMEOUT
            timeout *= 2
        await (await server.peer()).gone()


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://a", Endpoint("a", "", "a", 80)),
        ("https://a:8443/base", Endpoint("a:8443", "/base", "a", 8443, tls=True)),
        ("http://[::1]:8000", Endpoint("[::1]:8000", "", "::1", 8000)),
        ("unix:///run/vllm.sock", Endpoint("localhost", "", path="/run/vllm.sock")),
        ("http+unix://%2Frun%2Fa%20b/base", Endpoint("localhost", "/base", path="/run/a b")),
    ],
)
def test_where_an_engine_listens_is_read_from_its_url(url: str, address: Endpoint) -> None:
    assert address_of(url) == address


def pool_of(url: str, *, tls: ssl.SSLContext | None = None, connect_timeout: float = 5.0) -> Pool:
    return Pool(url, connect_timeout=connect_timeout, loop=asyncio.get_running_loop(), tls=tls)


@pytest.mark.parametrize("code", sorted(OURS))
async def test_what_this_machine_lacks_is_our_own_error(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    async def short(*args: object, **more: object) -> socket.socket:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("proxy.upstream.http.dial.start_connection", short)
    with pytest.raises(GatewayError) as caught:
        await dialled("http://127.0.0.1:9")
    assert (caught.value.code, caught.value.retry_after) == (Code.LOCAL_RESOURCES, 1)
    assert os.strerror(code) in caught.value.message


@pytest.mark.parametrize(("code", "ours"), [(errno.EAGAIN, False), (errno.EMFILE, True), (errno.ENOENT, False)])
async def test_a_unix_socket_s_full_listener_is_the_engine_s(
    monkeypatch: pytest.MonkeyPatch, code: int, ours: bool
) -> None:
    async def short(*args: object, **more: object) -> object:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("proxy.upstream.http.dial._unix", short)
    with pytest.raises(GatewayError) as caught:
        await dialled("unix:///no/such")
    assert (caught.value.code is Code.LOCAL_RESOURCES) is ours
    assert isinstance(caught.value, ConnectionRefused) is (code == errno.ENOENT)


async def test_a_name_that_cannot_be_looked_up_for_want_of_descriptors_is_our_own_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    used: list[int] = []

    async def unknown(*args: object, **more: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(loop, "getaddrinfo", unknown, raising=False)
    with pytest.raises(GatewayError) as caught:
        await dialled("http://engine.test:1")
    assert caught.value.code is Code.UPSTREAM_UNREACHABLE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")), hard))
        with contextlib.suppress(OSError):
            for _ in range(64):
                used.append(os.open("/dev/null", os.O_RDONLY))
        with pytest.raises(GatewayError) as caught:
            await dialled("http://engine.test:1")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in used:
            os.close(fd)
    assert caught.value.code is Code.LOCAL_RESOURCES


async def test_where_nobody_listens_that_is_said_as_a_kind_of_its_own() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefused) as caught:
            await dialled(f"http://127.0.0.1:{sock.getsockname()[1]}")
    assert caught.value.code is Code.UPSTREAM_UNREACHABLE


async def dialled(url: str) -> asyncio.Protocol:
    loop = asyncio.get_running_loop()
    return await dial(address_of(url), asyncio.Protocol, loop=loop, tls=None, timeout=5.0)

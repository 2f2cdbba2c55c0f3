"""How an engine is reached, decision by decision: what a URL means, what an error says, options of a socket."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy.errors import Code, GatewayError, SettingsError
from proxy.upstream.http import dial as module
from proxy.upstream.http.dial import (
    HAPPY_EYEBALLS_SECONDS,
    KEEPALIVE_COUNT,
    KEEPALIVE_IDLE,
    KEEPALIVE_INTERVAL,
    ConnectionRefused,
    Endpoint,
    _shortage,
    _tune,
    _why,
    address_of,
    dial,
    tls_context,
)

TCP = Endpoint("h:1", "", "h", 1)
TLS = Endpoint("h:1", "", "h", 1, tls=True)
UNIX = Endpoint("localhost", "", path="/s")


@pytest.mark.parametrize(
    ("url", "address", "shown"),
    [
        ("https://a", Endpoint("a", "", "a", 443, tls=True), "a"),
        ("http://u:p@x@a:81/b/c//", Endpoint("a:81", "/b/c", "a", 81), "a:81"),
        ("http://A.lan/", Endpoint("A.lan", "", "a.lan", 80), "A.lan"),
        ("unix:///run/s/", Endpoint("localhost", "", path="/run/s/"), "/run/s/"),
        ("http+unix://%2Fs/", Endpoint("localhost", "", path="/s"), "/s"),
    ],
)
def test_where_an_engine_listens(url: str, address: Endpoint, shown: str) -> None:
    assert address_of(url) == address
    assert str(address) == shown


def verification(message: str) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "x")
    error.verify_message = message
    return error


@pytest.mark.parametrize(
    ("error", "address", "words"),
    [
        (socket.gaierror(socket.EAI_NONAME, "unknown"), TCP, "there is no host of that name (unknown)"),
        (UnicodeError("label too long"), TCP, "there is no host of that name (label too long)"),
        (verification("it has expired."), TLS, "its certificate is not trusted: it has expired"),
        (ssl.SSLError(1, "wrong version"), TLS, "no TLS with it (wrong version)"),
        (FileNotFoundError(errno.ENOENT, "No such file"), UNIX, "there is no Unix socket at its path"),
        (FileNotFoundError(errno.ENOENT, "No such file"), TCP, "No such file"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Refused"), UNIX, "Refused"),
        (OSError("in words"), TCP, "in words"),
        (OSError(), TCP, "OSError"),
    ],
)
def test_what_was_wrong_is_said_in_words(error: OSError | UnicodeError, address: Endpoint, words: str) -> None:
    assert _why(error, address) == words
    reason = ssl.SSLError(1, "text")
    reason.reason = "WRONG_VERSION"
    assert _why(reason, TLS) == "no TLS with it (WRONG_VERSION)"


@pytest.mark.parametrize(
    ("error", "address", "lacks"),
    [
        (OSError(errno.EMFILE, "too many"), TCP, "too many"),
        (OSError(errno.EAGAIN, "again"), TCP, "again"),
        (OSError(errno.EAGAIN, "again"), UNIX, ""),
        (OSError(errno.EMFILE, "too many"), UNIX, "too many"),
        (OSError(errno.ECONNRESET, "reset"), TCP, ""),
        (UnicodeError("x"), TCP, ""),
        (socket.gaierror(socket.EAI_MEMORY, "no memory"), TCP, "no memory"),
        (socket.gaierror(socket.EAI_NONAME, "unknown"), TCP, ""),
    ],
)
def test_what_this_machine_lacks(error: OSError | UnicodeError, address: Endpoint, lacks: str) -> None:
    assert _shortage(error, address) == lacks


@pytest.mark.parametrize(("code", "lacks"), [(errno.EMFILE, "no more"), (errno.EACCES, "")])
def test_a_name_that_could_not_be_asked_for_is_a_shortage_where_no_socket_can_be_made(
    monkeypatch: pytest.MonkeyPatch, code: int, lacks: str
) -> None:
    def fails() -> None:
        raise OSError(code, "no more")

    monkeypatch.setattr(socket, "socket", fails)
    assert _shortage(socket.gaierror(socket.EAI_AGAIN, "again"), TCP) == lacks


@pytest.mark.parametrize("missing", ["", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"])
def test_a_socket_s_options_as_far_as_the_system_has_them(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    kept = {"TCP_KEEPIDLE": KEEPALIVE_IDLE, "TCP_KEEPINTVL": KEEPALIVE_INTERVAL, "TCP_KEEPCNT": KEEPALIVE_COUNT}
    kept.pop(missing, None)
    wanted = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    wanted += [(socket.IPPROTO_TCP, getattr(socket, name), value) for name, value in kept.items()]
    if missing:
        monkeypatch.delattr(socket, missing)
    told: list[tuple[int, int, int]] = []
    _tune(cast(socket.socket, SimpleNamespace(setsockopt=lambda *option: told.append(option))))
    assert told == wanted


class Loop:
    """A loop that notes how it is asked to connect."""

    def __init__(self, fails: BaseException | None = None) -> None:
        self.told: list[Any] = []
        self.fails = fails

    async def getaddrinfo(self, host: str, port: int, *, type: int) -> list[Any]:
        self.told.append((host, port, type))
        return ["found"]

    async def create_connection(self, make: Any, **more: Any) -> tuple[None, Any]:
        self.told.append((more["ssl"], more["server_hostname"]))
        if self.fails is not None:
            raise self.fails
        return None, make()

    async def create_unix_connection(self, make: Any, path: str) -> tuple[None, Any]:
        self.told.append(path)
        return None, make()


@pytest.mark.parametrize("address", [TCP, TLS, UNIX])
async def test_how_a_connection_is_made(monkeypatch: pytest.MonkeyPatch, address: Endpoint) -> None:
    loop, tls = Loop(), ssl.create_default_context()
    started: list[Any] = []
    sock = SimpleNamespace(setsockopt=lambda *option: None)

    async def start(found: Any, **more: Any) -> Any:
        started.append((found, more))
        return sock

    monkeypatch.setattr(module, "start_connection", start)
    made = await dial(address, lambda: cast(Any, "made"), loop=cast(Any, loop), tls=tls, timeout=1.0)
    assert made == "made"
    if address is UNIX:
        assert (loop.told, started) == (["/s"], [])
        return
    assert loop.told == [("h", 1, socket.SOCK_STREAM), (tls, "h") if address.tls else (None, None)]
    more = {"happy_eyeballs_delay": HAPPY_EYEBALLS_SECONDS, "interleave": 1, "loop": loop}
    assert started == [(["found"], more)]


@pytest.mark.parametrize(
    ("error", "code", "refused"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "no"), Code.UPSTREAM_UNREACHABLE, True),
        (FileNotFoundError(errno.ENOENT, "no"), Code.UPSTREAM_UNREACHABLE, True),
        (ConnectionResetError(errno.ECONNRESET, "no"), Code.UPSTREAM_UNREACHABLE, False),
        (socket.gaierror(errno.ENOENT, "no"), Code.UPSTREAM_UNREACHABLE, False),
        (UnicodeError("no"), Code.UPSTREAM_UNREACHABLE, False),
        (OSError(errno.EMFILE, "no"), Code.LOCAL_RESOURCES, False),
        (TimeoutError(), Code.UPSTREAM_CONNECT_TIMEOUT, False),
    ],
)
async def test_a_connection_that_cannot_be_made_is_told_and_its_socket_closed(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: Code, refused: bool
) -> None:
    closed: list[int] = []

    async def start(found: Any, **more: Any) -> Any:
        return SimpleNamespace(setsockopt=lambda *option: None, close=lambda: closed.append(1))

    monkeypatch.setattr(module, "start_connection", start)
    with pytest.raises(GatewayError) as caught:
        await dial(TCP, asyncio.Protocol, loop=cast(Any, Loop(error)), tls=None, timeout=1.5)
    assert (caught.value.code, isinstance(caught.value, ConnectionRefused), closed) == (code, refused, [1])
    assert ("within 1.5 s" in caught.value.message) is (code is Code.UPSTREAM_CONNECT_TIMEOUT)


def test_a_context_trusts_what_is_given_and_asks_for_the_name() -> None:
    usual, insecure = tls_context(), tls_context(insecure=True)
    assert (usual.check_hostname, usual.verify_mode) == (True, ssl.CERT_REQUIRED)
    assert (insecure.check_hostname, insecure.verify_mode) == (False, ssl.CERT_NONE)
    with pytest.raises(SettingsError, match=r"backend_cert = .gone\.pem"):
        tls_context(cert="gone.pem", key="gone.key")
    with pytest.raises(SettingsError, match="backend_ca"):
        tls_context(ca="gone.pem", cert="gone.pem")

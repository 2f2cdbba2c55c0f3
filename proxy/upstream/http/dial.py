"""How an engine is connected to: its URL, name look-up, Unix sockets, TLS, socket options."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar
from urllib.parse import unquote, urlsplit

from aiohappyeyeballs import start_connection

from proxy.config import no_password, pair_problem, shown_path
from proxy.errors import Code, GatewayError, SettingsError

P = TypeVar("P", bound=asyncio.Protocol)

HAPPY_EYEBALLS_SECONDS: Final = 0.25  # RFC 8305 5: before the next address is tried in parallel
KEEPALIVE_IDLE: Final = 30  # seconds of silence before the kernel's first keep-alive probe
KEEPALIVE_INTERVAL: Final = 10
KEEPALIVE_COUNT: Final = 3  # a machine that vanished during a long prefill is noticed within a minute

OURS: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, errno.EAGAIN}
)
"""errno of TCP connects: this machine has no descriptor, buffer, memory or port left; not the engine's fault."""
NO_TLS: Final = "WRONG_VERSION_NUMBER"
"""OpenSSL's name for bytes that are not TLS, such as an answer in plain HTTP."""
NO_LISTENER: Final = frozenset({errno.ECONNREFUSED, errno.ENOENT})


class ConnectionRefused(GatewayError):
    """Nothing listens at an engine's address."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of an engine."""

    authority: str  # for the Host header
    base: str  # prefix of every path, without a trailing slash
    host: str = ""
    port: int = 0
    path: str = ""  # of a Unix socket
    tls: bool = False

    def __str__(self) -> str:
        return self.path or self.authority


def address_of(url: str) -> Endpoint:
    """Read a URL as `config.values.backend_urls` writes it: http, https, unix:///socket,
    http+unix://%2Fsocket/base."""
    parts = urlsplit(url)
    base = parts.path.rstrip("/")
    if parts.scheme == "unix":
        return Endpoint("localhost", "", path=parts.path)
    if parts.scheme == "http+unix":
        return Endpoint("localhost", base, path=unquote(parts.netloc))
    tls = parts.scheme == "https"
    return Endpoint(
        parts.netloc.rpartition("@")[2], base, parts.hostname or "", parts.port or (443 if tls else 80), tls=tls
    )


async def dial(
    address: Endpoint,
    make: Callable[[], P],
    *,
    loop: asyncio.AbstractEventLoop,
    tls: ssl.SSLContext | None,
    timeout: float,
) -> P:
    """A new connection, after its handshake. `timeout` covers all of it. Raises GatewayError 502, 503 or 504."""
    try:
        async with asyncio.timeout(timeout):
            return await (_unix(address, make, loop) if address.path else _tcp(address, make, loop, tls))
    except TimeoutError:
        raise GatewayError(
            Code.UPSTREAM_CONNECT_TIMEOUT, f"Connecting to the engine timed out after {timeout:g} s."
        ) from None
    except (OSError, UnicodeError) as e:  # refused, unreachable, no such host, no such socket, TLS
        shortage = _shortage(e, address)
        if shortage:
            raise short_of(shortage) from None
        if isinstance(e, OSError) and e.errno in NO_LISTENER and not isinstance(e, socket.gaierror):
            raise ConnectionRefused(Code.UPSTREAM_UNREACHABLE, unreachable(_why(e, address)).message) from None
        raise unreachable(_why(e, address)) from None


def unreachable(why: str) -> GatewayError:
    return GatewayError(Code.UPSTREAM_UNREACHABLE, f"The engine could not be reached: {why}.")


def short_of(what: str) -> GatewayError:
    """A shortage of this machine, not an engine's fault."""
    return GatewayError(
        Code.LOCAL_RESOURCES,
        f"The gateway lacks resources for a connection to an engine ({what}); try again shortly.",
        retry_after=1,
    )


async def _unix(address: Endpoint, make: Callable[[], P], loop: asyncio.AbstractEventLoop) -> P:
    _, protocol = await loop.create_unix_connection(make, address.path)
    return protocol


async def _tcp(
    address: Endpoint, make: Callable[[], P], loop: asyncio.AbstractEventLoop, tls: ssl.SSLContext | None
) -> P:
    """uvloop's create_connection tries the addresses of a name one after another and would wait for a dead one.
    Here they are tried in parallel (Happy Eyeballs) by aiohttp's library."""
    addresses = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    sock = await start_connection(addresses, happy_eyeballs_delay=HAPPY_EYEBALLS_SECONDS, interleave=1, loop=loop)
    try:
        _tune(sock)
        name = address.host if address.tls else None
        _, protocol = await loop.create_connection(
            make, sock=sock, ssl=tls if address.tls else None, server_hostname=name
        )
    except BaseException:
        sock.close()
        raise
    return protocol


def _shortage(e: OSError | UnicodeError, address: Endpoint) -> str:
    """The resource that this machine lacks; empty where that is not the cause. On a Unix socket EAGAIN means
    that the listener's backlog is full; getaddrinfo does not say why it failed, so a socket is tried."""
    if isinstance(e, socket.gaierror):
        if e.errno == socket.EAI_MEMORY:
            return _words(e)
        try:
            socket.socket().close()
        except OSError as own:
            return _words(own) if own.errno in OURS else ""
        return ""
    if isinstance(e, UnicodeError) or e.errno not in OURS or (address.path and e.errno == errno.EAGAIN):
        return ""
    return _words(e)


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (  # some have other names on macOS
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL),
        ("TCP_KEEPCNT", KEEPALIVE_COUNT),
    ):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _why(e: OSError | UnicodeError, address: Endpoint) -> str:
    """The reason, for a client and the log, without addresses that the operator did not configure."""
    if isinstance(e, socket.gaierror | UnicodeError):
        return f"no such host ({_words(e)})"
    if isinstance(e, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {e.verify_message.rstrip('.')}"
    if isinstance(e, ssl.SSLError):
        return f"TLS failed ({_words(e)})"
    if isinstance(e, FileNotFoundError) and address.path:
        return "there is no Unix socket at its path"
    return _words(e)


def _words(e: Exception) -> str:
    return str(getattr(e, "reason", None) or getattr(e, "strerror", None) or str(e) or type(e).__name__)


def tls_context(*, ca: str = "", cert: str = "", key: str = "", insecure: bool = False) -> ssl.SSLContext:
    """The TLS context for https:// engines. `ca` (PEM) replaces the system's trusted certificates; `cert` and
    `key` (PEM; `cert` may hold both) are the client certificate. Raises SettingsError."""
    if insecure and ca:
        raise SettingsError("backend_insecure trusts any certificate, so backend_ca has no effect: give one")
    if key and not cert:
        raise SettingsError("backend_key needs backend_cert, its certificate")
    try:
        context = ssl.create_default_context(cafile=ca or None)
    except OSError as e:
        raise _unusable("backend_ca", ca, "one or more certificates in PEM form", e) from None
    if cert:
        try:
            context.load_cert_chain(cert, key or None, password=no_password("backend_key"))
        except OSError as e:
            raise SettingsError(pair_problem(("backend_cert", cert), ("backend_key", key), e)) from None
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context


def _unusable(name: str, path: str, right: str, e: OSError) -> SettingsError:
    return SettingsError(f"{name} = {shown_path(path)}: {_words(e)}: must be a file of {right}")

"""Owns how an engine is reached: its URL read, names looked up, Unix sockets, TLS, the socket's options.
Must not know requests, pools of connections or answers.
Called by the pool in upstream, and by the app, which makes the TLS context once."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn, TypeVar
from urllib.parse import unquote, urlsplit

from aiohappyeyeballs import start_connection

from proxy.config import shown_path
from proxy.errors import Code, GatewayError, SettingsError

P = TypeVar("P", bound=asyncio.Protocol)

HAPPY_EYEBALLS_SECONDS: Final = 0.25  # RFC 8305 5: before the next address is tried beside the first
KEEPALIVE_IDLE: Final = 30  # seconds of silence before the kernel asks whether the engine's machine is there
KEEPALIVE_INTERVAL: Final = 10
KEEPALIVE_COUNT: Final = 3  # so a machine that vanished in a long prefill is noticed within a minute

OURS: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, errno.EAGAIN}
)
"""Of connecting by TCP: this machine has no descriptor, buffer, memory or port left. No engine is to blame."""
NO_LISTENER: Final = frozenset({errno.ECONNREFUSED, errno.ENOENT})


class ConnectionRefused(GatewayError):
    """Nobody listens at an engine's address."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an engine listens."""

    authority: str  # for the Host header
    base: str  # before every path, without a slash at its end
    host: str = ""
    port: int = 0
    path: str = ""  # of a Unix socket
    tls: bool = False

    def __str__(self) -> str:
        return self.path or self.authority


def address_of(url: str) -> Endpoint:
    """Of a URL as `config_values.backend_urls` writes it: http, https, unix:///socket, http+unix://%2Fsocket/base."""
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
    """A new connection, its handshake done. `timeout` is for all of it. Raises GatewayError 502, 503 or 504."""
    try:
        async with asyncio.timeout(timeout):
            return await (_unix(address, make, loop) if address.path else _tcp(address, make, loop, tls))
    except TimeoutError:
        raise GatewayError(
            Code.UPSTREAM_CONNECT_TIMEOUT, f"The engine did not take the connection within {timeout:g} s."
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
    """Of this machine, no engine's fault."""
    return GatewayError(
        Code.LOCAL_RESOURCES,
        f"The gateway is short of what a connection to an engine takes ({what}); try again shortly.",
        retry_after=1,
    )


async def _unix(address: Endpoint, make: Callable[[], P], loop: asyncio.AbstractEventLoop) -> P:
    _, protocol = await loop.create_unix_connection(make, address.path)
    return protocol


async def _tcp(
    address: Endpoint, make: Callable[[], P], loop: asyncio.AbstractEventLoop, tls: ssl.SSLContext | None
) -> P:
    """uvloop's create_connection tries a name's addresses one after another and would wait for a dead one: so
    they are tried as aiohttp's client does, by its own library."""
    found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    sock = await start_connection(found, happy_eyeballs_delay=HAPPY_EYEBALLS_SECONDS, interleave=1, loop=loop)
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
    """What this machine lacks; empty where the fault is not ours. A Unix socket says EAGAIN where its listener's
    queue is full, and a name server's library says no more than that it could not ask."""
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
    for option, value in (  # macOS has other names for some
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL),
        ("TCP_KEEPCNT", KEEPALIVE_COUNT),
    ):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _why(e: OSError | UnicodeError, address: Endpoint) -> str:
    """What was wrong, for a client and the log: no address of ours that the operator did not write."""
    if isinstance(e, socket.gaierror | UnicodeError):
        return f"there is no host of that name ({_words(e)})"
    if isinstance(e, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {e.verify_message.rstrip('.')}"
    if isinstance(e, ssl.SSLError):
        return f"no TLS with it ({_words(e)})"
    if isinstance(e, FileNotFoundError) and address.path:
        return "there is no Unix socket at its path"
    return _words(e)


def _words(e: Exception) -> str:
    return str(getattr(e, "reason", None) or getattr(e, "strerror", None) or str(e) or type(e).__name__)


def tls_context(*, ca: str = "", cert: str = "", key: str = "", insecure: bool = False) -> ssl.SSLContext:
    """For engines at https:// URLs. With a `ca` (PEM) only that one is trusted, else the system's; `cert` and
    `key` (PEM; `cert` may hold both) are shown to the engine. Raises SettingsError."""
    if insecure and ca:
        raise SettingsError("backend_insecure trusts any certificate, so backend_ca would do nothing: give one")
    if key and not cert:
        raise SettingsError("backend_key is given without backend_cert, the certificate that it is for")
    try:
        context = ssl.create_default_context(cafile=ca or None)
    except OSError as e:
        raise _unusable("backend_ca", ca, "one or more certificates in PEM form", e) from None
    if cert:
        right = "a certificate and its unencrypted private key, in PEM form"
        try:
            context.load_cert_chain(cert, key or None, password=_encrypted)
        except OSError as e:
            name = "backend_key" if key and _opens(cert) else "backend_cert"
            raise _unusable(name, key if name == "backend_key" else cert, right, e) from None
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context


def _encrypted() -> NoReturn:
    """Asked for a password OpenSSL would read the terminal: a server has none."""
    raise SettingsError("backend_key is encrypted: give it without a password (openssl pkey -in KEY -out PLAIN)")


def _opens(path: str) -> bool:
    try:
        with open(path, "rb"):
            return True
    except OSError:
        return False


def _unusable(name: str, path: str, right: str, e: OSError) -> SettingsError:
    return SettingsError(f"{name} = {shown_path(path)}: {_words(e)}: must be a file of {right}")

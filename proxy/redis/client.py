"""A client of one Redis: its address, the login, and a new connection when the last one is lost. When to leave
an unavailable Redis alone is decided by `Availability`, not here."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from proxy.errors import SettingsError
from proxy.redis.resp import NO_TLS, Bounds, Done, Login, Lost, RespConnection, WireError, Word

MAX_PENDING: Final = 16 << 20
MAX_REPLY: Final = 256 << 20

_OURS: Final = frozenset({"username", "password", "host", "port", "path", "db", "client_name", "protocol"})
_FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_MEANINGLESS: Final = frozenset(
    {  # redis-py's pool and timeouts; here the settings bound them
        "socket_timeout",
        "socket_connect_timeout",
        "socket_read_size",
        "socket_keepalive",
        "retry_on_timeout",
        "max_connections",
        "health_check_interval",
        "timeout",
        "legacy_responses",
    }
)


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """The address of a Redis, and the login there."""

    login: Login
    host: str = "localhost"
    port: int = 6379
    path: str | None = None  # of a Unix socket, in place of host and port
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        return (
            f"unix://{self.path}"
            if self.path
            else f"{'rediss' if self.tls else 'redis'}://{self.host}:{self.port}"
        )


def address(url: str) -> RedisAddress:
    """The address in a redis://, rediss:// or unix:// URL, as redis-py reads it: user, password, database,
    `client_name`, `protocol`, `ssl_*`. Raises SettingsError, whose text holds no secret of the URL."""
    # Imported here: without a Redis it costs no start-up time.
    from redis.asyncio.connection import SSLConnection, parse_url
    from redis.exceptions import RedisError

    try:
        options: dict[str, Any] = dict(parse_url(url))
        tls = options.pop("connection_class", None) is SSLConnection
        secure = {name: options.pop(name) for name in tuple(options) if name.startswith("ssl_")}
        unknown = sorted(options.keys() - _OURS - _MEANINGLESS)
        if unknown:
            raise SettingsError(
                f"The Redis URL has the option {unknown[0][:40]!r}, which is unknown; known are db, "
                "client_name, protocol and the ssl_ options of redis-py."
            )
        if options.get("protocol", 3) not in (2, 3):
            raise SettingsError("The Redis URL's protocol must be 2 or 3.")
        context = SSLConnection(**secure).ssl_context.get() if tls else None
    except (ValueError, TypeError, RedisError, OSError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else type(e).__name__
        raise SettingsError(
            f"Invalid Redis URL ({reason}); expected redis://HOST:6379/0, "
            "rediss://HOST:6380/0?ssl_ca_certs=FILE or unix:///PATH."
        ) from None
    login = Login(
        options.get("username"),
        options.get("password"),
        int(options.get("db") or 0),
        options.get("client_name"),
        options.get("protocol", 3),
    )
    return RedisAddress(
        login, options.get("host") or "localhost", options.get("port") or 6379, options.get("path"), context
    )


def files_of(url: str) -> dict[str, str]:
    """The files that a Redis URL names, by option."""
    query = parse_qs(urlsplit(url).query)
    return {name: query[name][0] for name in _FILES if name in query}


class RedisClient:
    """Commands to one Redis over one connection, which is opened on first use and again after each loss.

    Replies come in the order of the commands, so a blocking command (XREAD BLOCK) delays all behind it, and so
    does a large one while it is written: give such commands their own client. No command is sent twice: whether a
    lost one was carried out is not known.
    """

    def __init__(
        self,
        where: RedisAddress,
        *,
        connect_timeout: float,
        max_pending: int = MAX_PENDING,
        max_reply: int = MAX_REPLY,
        on_push: Callable[[list[Any]], None] = lambda push: None,
    ) -> None:
        self._where = where
        self._bounds = Bounds(connect_timeout, max_pending, max_reply)
        self._on_push = on_push
        self._wire: RespConnection | None = None
        self._opening: dict[RespConnection, asyncio.Task[None]] = {}
        self._closed = False

    def __repr__(self) -> str:
        return f"<RedisClient {self._where} {self._wire!r}>"

    def renew(self, where: RedisAddress) -> None:
        """Use this address for connections from now on."""
        self._where = where

    @property
    def pending(self) -> int:
        """Bytes of commands without a reply yet."""
        return self._wire.pending if self._wire is not None else 0

    def send(self, command: Sequence[Word], timeout: float, done: Done) -> None:
        """Send a command; `done` is called once, with the reply or a WireError, within `timeout` seconds. An
        error inside an array reply stays there, as a ReplyError. Raises ValueError for a command without
        exactly one reply (MONITOR)."""
        if self._closed:
            done(Lost("the gateway is shutting down"))
            return
        wire = self._wire if self._wire is not None else self._dial()
        wire.send(command, timeout, done)

    def call(self, *command: Word, timeout: float) -> asyncio.Future[Any]:
        """`send` as a future, which raises the WireError."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def done(reply: Any) -> None:
            if future.done():
                return  # cancelled
            if isinstance(reply, WireError):
                future.set_exception(reply)
            else:
                future.set_result(reply)

        self.send(command, timeout, done)
        return future

    async def close(self) -> None:
        """Close; commands in flight get a Lost."""
        self._closed = True
        wire = self._wire
        tasks = tuple(self._opening.values())
        if wire is not None:
            wire.lose(Lost("the gateway is shutting down"))
        await asyncio.gather(*tasks, return_exceptions=True)
        if wire is not None and wire.opened:
            await wire.closed

    def _dial(self) -> RespConnection:
        loop = asyncio.get_running_loop()
        where = self._where
        wire = RespConnection(
            loop,
            where.login,
            self._bounds,
            on_push=self._on_push,
            on_lost=self._lost,
            tls=None if where.path is not None else where.tls is not None,
        )
        self._wire = wire
        task = loop.create_task(self._open(wire, loop))
        self._opening[wire] = task
        task.add_done_callback(lambda _: self._opening.pop(wire, None))
        return wire

    async def _open(self, wire: RespConnection, loop: asyncio.AbstractEventLoop) -> None:
        where = self._where
        try:
            if where.path is not None:
                await loop.create_unix_connection(lambda: wire, where.path)
            else:
                await loop.create_connection(lambda: wire, where.host, where.port, ssl=where.tls)
        except ssl.SSLCertVerificationError as e:
            wire.lose(Lost(f"its certificate is not trusted ({e.verify_message})"))
        except (OSError, ValueError) as e:
            reason = e.strerror if isinstance(e, OSError) and e.strerror else type(e).__name__
            cut = isinstance(e, ssl.SSLError | ConnectionResetError) and where.tls is not None
            wire.lose(Lost(f"no connection ({reason}){f'; {NO_TLS}' if cut else ''}"))

    def _lost(self, wire: RespConnection) -> None:
        if self._wire is wire:
            self._wire = None
        task = self._opening.get(wire)
        if task is not None:
            task.cancel()  # no effect where this is that task

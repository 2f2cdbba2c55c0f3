"""A client of one Redis server: the login, and a new connection when the last one is lost. When to leave an
unavailable Redis alone is decided by `Availability`, not here."""

from __future__ import annotations

import asyncio
import ssl
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from proxy.redis.resp import NO_TLS, Bounds, Done, Lost, RespConnection, WireError, Word
from proxy.redis.url import RedisAddress

MAX_PENDING: Final = 16 << 20
MAX_REPLY: Final = 256 << 20


class Client(ABC):
    """Commands to Redis, to one server or to the masters of a Cluster."""

    @property
    @abstractmethod
    def pending(self) -> int:
        """Bytes of commands without a reply yet."""

    @abstractmethod
    def send(self, command: Sequence[Word], timeout: float, done: Done, *, now: bool = False) -> None:
        """Send a command; `done` is called once, with the reply or a WireError, within `timeout` seconds. An
        error inside an array reply stays there, as a ReplyError. `now`: write it at once, where one server has all
        keys, and not at the end of this event loop iteration. Raises ValueError for a command without exactly one
        reply (MONITOR)."""

    @abstractmethod
    async def close(self) -> None:
        """Close; commands in flight get a Lost."""

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


class RedisClient(Client):
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
        find: Callable[[], Awaitable[RedisAddress]] | None = None,
    ) -> None:
        """`find`: gives the address of each new connection, in place of `where`; raises WireError."""
        self._where = where
        self._find = find
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

    def leave(self, why: WireError) -> None:
        """Give the present connection up: its commands get `why`, and the next command opens a new one."""
        if self._wire is not None:
            self._wire.lose(why)

    @property
    def pending(self) -> int:
        return self._wire.pending if self._wire is not None else 0

    def send(self, command: Sequence[Word], timeout: float, done: Done, *, now: bool = False) -> None:
        if self._closed:
            done(Lost("the gateway is shutting down"))
            return
        wire = self._wire
        if wire is None or wire.lost is not None:
            wire = self._dial()
        wire.send(command, timeout, done)
        if now:
            wire.flush()

    async def close(self) -> None:
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
        try:
            where = self._where if self._find is None else await self._find()
            if where.path is not None:
                await loop.create_unix_connection(lambda: wire, where.path)
            else:
                await loop.create_connection(lambda: wire, where.host, where.port, ssl=where.tls)
        except WireError as e:
            wire.lose(e)
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

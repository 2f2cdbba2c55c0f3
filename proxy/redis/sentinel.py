"""A Redis behind Sentinels: they say which server is the master, and redis-py asks them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final
from weakref import WeakSet

from proxy.redis.client import MAX_PENDING, RedisClient
from proxy.redis.deployment import Deployment, OnServer
from proxy.redis.resp import Lost
from proxy.redis.url import RedisAddress, RedisUrl
from proxy.telemetry import raised

EVERY: Final = 1.0
"""Seconds between two questions: so long a master that was replaced, and does not know yet, is written to."""
ASK_SECONDS: Final = 1.0  # for each Sentinel
START_SECONDS: Final = 2.0  # how long start-up waits for the first answer


class Sentinels(Deployment):
    """One master at a time. The Sentinels are asked each second who it is; when it is another one, connections to
    the old one are given up.

    While they do not answer the last known master is used; while they know of none, there is none.
    """

    def __init__(self, url: RedisUrl, *, on_server: OnServer = lambda change, server, detail: None) -> None:
        self._url = url
        self._on_server = on_server
        self._master: tuple[str, int] | None = None
        self._trouble = "the Sentinels have not answered yet"
        self._clients: WeakSet[RedisClient] = WeakSet()
        self._asked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Sentinels {self._url} master={self._master}>"

    def client(self, *, connect_timeout: float, max_pending: int = MAX_PENDING) -> RedisClient:
        client = RedisClient(
            self._url.address, connect_timeout=connect_timeout, max_pending=max_pending, find=self._find
        )
        self._clients.add(client)
        return client

    def subscriber(self, on_push: Callable[[list[Any]], None], *, connect_timeout: float) -> RedisClient:
        client = RedisClient(self._url.address, connect_timeout=connect_timeout, on_push=on_push, find=self._find)
        self._clients.add(client)
        return client

    def masters(self, *, connect_timeout: float) -> list[RedisClient]:
        return [self.client(connect_timeout=connect_timeout)]

    def renew(self, url: RedisUrl) -> None:
        self._url = url
        for client in self._clients:
            client.renew(url.address)

    async def start(self) -> None:
        """Find the master; where that takes long, it goes on in the background."""
        self._task = asyncio.create_task(self._run())
        with suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                await self._asked.wait()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def servers(self) -> list[str]:
        return [] if self._master is None else [_name(self._master)]

    async def _find(self) -> RedisAddress:
        if self._master is None:
            raise Lost(self._trouble)
        return replace(self._url.address, host=self._master[0], port=self._master[1])

    async def _run(self) -> None:
        from redis.asyncio.retry import Retry
        from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
        from redis.backoff import NoBackoff
        from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

        options: dict[str, Any] = {
            "socket_timeout": ASK_SECONDS,
            "socket_connect_timeout": ASK_SECONDS,
            "retry": Retry(NoBackoff(), 0),
        }
        tls = {name: value for name, value in self._url.options.items() if name.startswith("ssl")}
        sentinel = Sentinel(  # type: ignore[no-untyped-call]
            self._url.hosts, sentinel_kwargs=options | tls | self._url.sentinel_login
        )
        try:
            while True:
                try:
                    self._found(await sentinel.discover_master(self._url.service))
                except MasterNotFoundError as e:
                    answered = "Error" not in str(e)
                    self._lost(
                        f"the Sentinels know no master of the name {self._url.service!r}"
                        if answered
                        else "no Sentinel answers"
                    )
                except (AuthenticationError, NoPermissionError):
                    self._lost(
                        "the Sentinels refuse the login; sentinel_username and sentinel_password are for it"
                    )
                except (RedisError, OSError, TimeoutError, ValueError):
                    self._lost("no Sentinel answers")
                except Exception as e:  # noqa: BLE001 - without this task no failover would be noticed
                    raised("the question to the Sentinels", e)
                self._asked.set()
                await asyncio.sleep(EVERY)
        finally:
            await sentinel.aclose()

    def _found(self, place: tuple[str, int]) -> None:
        master = (str(place[0]), int(place[1]))
        old, self._master = self._master, master
        if old == master:
            return
        for client in self._clients:
            client.leave(Lost("the Sentinels have made another server the master"))
        if old is not None:
            self._on_server("removed", _name(old), "")
            self._on_server("added", _name(master), "")

    def _lost(self, why: str) -> None:
        self._trouble = why


def _name(place: tuple[str, int]) -> str:
    host, port = place
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

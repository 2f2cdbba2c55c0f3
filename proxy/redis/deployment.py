"""How a Redis is run, behind one interface: a `Deployment` makes the clients of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal
from weakref import WeakSet

from proxy.redis.client import MAX_PENDING, Client, RedisClient
from proxy.redis.resp import WireError
from proxy.redis.url import RedisAddress, RedisUrl, read_url

Change = Literal["away", "back", "added", "removed"]
OnServer = Callable[[Change, str, str], None]
"""Called with what has become of one server of several, its name, and what is wrong where it is away."""

_NONE: Final[Mapping[str, WireError]] = {}


class Deployment(ABC):
    """One Redis as operators run it. Its clients share what is known of its servers."""

    sharded = False
    """Keys are spread over several masters, so a script may only name keys with one hash tag."""

    @abstractmethod
    def client(self, *, connect_timeout: float, max_pending: int = MAX_PENDING) -> Client:
        """A client with connections of its own. Whoever has it closes it."""

    @abstractmethod
    def subscriber(self, on_push: Callable[[list[Any]], None], *, connect_timeout: float) -> RedisClient:
        """A client for subscriptions, whose push messages `on_push` gets. Whoever has it closes it."""

    @abstractmethod
    def masters(self, *, connect_timeout: float) -> list[RedisClient]:
        """A new client for each master, for commands without a key (SCAN). Whoever has them closes them."""

    @abstractmethod
    def renew(self, url: RedisUrl) -> None:
        """Use this login and these certificates for new connections."""

    @abstractmethod
    async def start(self) -> None:
        """Find the servers, and follow them from now on."""

    @abstractmethod
    async def close(self) -> None:
        """Stop following them."""

    @property
    def servers(self) -> list[str]:
        """The masters in use, where there may be several or another one later; else empty."""
        return []

    @property
    def troubles(self) -> Mapping[str, WireError]:
        """What is wrong with single servers now."""
        return _NONE


class SingleServer(Deployment):
    """One server at an address that does not change."""

    def __init__(self, where: RedisAddress) -> None:
        self._where = where
        self._clients: WeakSet[RedisClient] = WeakSet()

    def __repr__(self) -> str:
        return f"<SingleServer {self._where}>"

    def client(self, *, connect_timeout: float, max_pending: int = MAX_PENDING) -> RedisClient:
        client = RedisClient(self._where, connect_timeout=connect_timeout, max_pending=max_pending)
        self._clients.add(client)
        return client

    def subscriber(self, on_push: Callable[[list[Any]], None], *, connect_timeout: float) -> RedisClient:
        client = RedisClient(self._where, connect_timeout=connect_timeout, on_push=on_push)
        self._clients.add(client)
        return client

    def masters(self, *, connect_timeout: float) -> list[RedisClient]:
        return [self.client(connect_timeout=connect_timeout)]

    async def start(self) -> None:
        """There is nothing to find."""

    async def close(self) -> None:
        """There is nothing to stop."""

    def renew(self, url: RedisUrl) -> None:
        self._where = url.address
        for client in self._clients:
            client.renew(url.address)


def deployment_of(
    url: str,
    *,
    timeout: float,
    namespace: str,
    on_server: OnServer,
) -> Deployment:
    """The deployment that a URL names, not started yet. `timeout`: seconds for a probe of one server; `namespace`:
    the prefix of the keys of probes; `on_server`: called when a server of several comes, goes or fails.

    Raises SettingsError.
    """
    read = read_url(url)
    if read.kind == "server":
        return SingleServer(read.address)
    # Imported here: without them one server costs less start-up time.
    if read.kind == "cluster":
        from proxy.redis.cluster import Cluster

        return Cluster(read, timeout=timeout, namespace=namespace, on_server=on_server)
    from proxy.redis.sentinel import Sentinels

    return Sentinels(read, on_server=on_server)

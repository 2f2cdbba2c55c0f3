"""Which engine keeps a response, by the response's id and its tenant: bounded in this process, and in a Redis that
other processes share. A Redis that fails costs what other processes have written there."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from typing import Any, Final

from proxy.redis.client import Client
from proxy.redis.deployment import Deployment

MAX_KNOWN: Final = 16_384  # responses in this process; about 4 MB
KEPT_SECONDS: Final = 86_400  # in Redis
_NONE: Final[OrderedDict[bytes, str]] = OrderedDict()
LONGEST: Final = 2048  # characters of an engine's name that is read from Redis


class ResponseAffinity:
    """`redis`: None where no other process has the same one."""

    def __init__(self, redis: Deployment | None, *, timeout: float, namespace: str) -> None:
        self._known: dict[bytes, OrderedDict[bytes, str]] = {}  # by tenant
        self._count = 0
        self._client: Client | None = None if redis is None else redis.client(connect_timeout=timeout)
        self._timeout = timeout
        self._prefix = namespace.encode() + b":response:"

    def __repr__(self) -> str:
        return f"<ResponseAffinity {self._count} shared={self._client is not None}>"

    def __len__(self) -> int:
        return self._count

    def put(self, tenant: bytes, id: str, engine: str) -> None:
        """The engine of this name keeps this tenant's response."""
        key = _key(tenant, id)
        if self._known.get(tenant, _NONE).get(key) == engine:
            return
        self._keep(tenant, key, engine)
        if self._client is not None:
            self._client.send([b"SET", self._prefix + key, engine, b"EX", KEPT_SECONDS], self._timeout, _ignore)

    async def get(self, tenant: bytes, id: str) -> str | None:
        """The name of the engine that keeps this tenant's response; None: not known. Raises WireError where Redis
        does not say."""
        key = _key(tenant, id)
        engine = self._known.get(tenant, _NONE).get(key)
        if engine is not None:
            self._known[tenant].move_to_end(key)
            return engine
        if self._client is None:
            return None
        # MGET and SET: the commands that the cache needs too, so the ACL user needs no others.
        reply = await self._client.call(b"MGET", self._prefix + key, timeout=self._timeout)
        value = reply[0] if isinstance(reply, list) and len(reply) == 1 else None
        if not isinstance(value, bytes) or len(value) > LONGEST:
            return None
        engine = value.decode("utf-8", "replace")
        self._keep(tenant, key, engine)
        return engine

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    def _keep(self, tenant: bytes, key: bytes, engine: str) -> None:
        """Of too many places the tenant with most loses its oldest one."""
        places = self._known.setdefault(tenant, OrderedDict())
        self._count += key not in places
        places[key] = engine
        places.move_to_end(key)
        if self._count > MAX_KNOWN:
            self._count -= 1
            most = max(self._known, key=lambda each: len(self._known[each]))
            self._known[most].popitem(last=False)
            if not self._known[most]:
                del self._known[most]


def _key(tenant: bytes, id: str) -> bytes:
    """A name that tells neither."""
    digest = blake2b(b"%d:%b" % (len(tenant), tenant), digest_size=16)
    digest.update(id.encode("utf-8", "surrogateescape"))
    return digest.hexdigest().encode()


def _ignore(reply: Any) -> None:
    """This process knows the place, whatever Redis replied."""

"""Which master serves which slot of a Redis Cluster, by CLUSTER SLOTS (https://redis.io/commands/cluster-slots)."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

from proxy.redis.client import RedisClient
from proxy.redis.resp import Lost, ReplyError, WireError
from proxy.redis.url import RedisUrl

SLOTS: Final = 16384
HostPort = tuple[str, int]
"""Host and port of a server."""
Owners = list[HostPort | None]
"""The master of each slot; None: no master serves it."""


async def read_slots(url: RedisUrl, besides: Iterable[HostPort], timeout: float) -> Owners:
    """Ask the seeds of the URL and the servers `besides`, in random order, until one knows masters for all slots;
    else the answer with the most. `timeout`: seconds for each of them. Raises WireError."""
    places = list(dict.fromkeys((*url.hosts, *besides)))
    random.shuffle(places)  # gateways that start together do not all ask the same one
    best: Owners | None = None
    problem: WireError = Lost("no server of the Redis Cluster answers")
    for place in places:
        client = RedisClient(replace(url.address, host=place[0], port=place[1]), connect_timeout=timeout)
        try:
            owners = _owners(await client.call("CLUSTER", "SLOTS", timeout=timeout), place[0])
        except WireError as e:
            problem = _explained(e) if e.reason else problem
            continue
        finally:
            await client.close()
        if best is None or owners.count(None) < best.count(None):
            best = owners
        if None not in best:
            return best
    if best is None:
        raise problem
    return best


def _owners(reply: Any, asked: str) -> Owners:
    """What a reply says. A server that does not know its own address leaves it out: it is the one asked."""
    owners: Owners = [None] * SLOTS
    try:
        for start, end, (host, port, *_), *_ in reply:
            name = asked if host in (None, b"", b"?") else host.decode()
            if not (0 <= start <= end < SLOTS and 0 < port < 65536):
                raise ValueError("no slots, or no port")
            owners[start : end + 1] = [(name, port)] * (end + 1 - start)
    except (TypeError, ValueError, AttributeError):
        raise Lost("an invalid reply to CLUSTER SLOTS") from None
    return owners


def _explained(e: WireError) -> WireError:
    if isinstance(e, ReplyError) and "cluster support disabled" in e.text:
        return Lost("it is no Redis Cluster: write redis:// in place of redis+cluster://", e.reason)
    return Lost(str(e), e.reason)

"""Which master serves which slot of a Redis Cluster, asked by redis-py."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Final

from proxy.redis.address import RedisUrl
from proxy.redis.refusal import ADVICE
from proxy.redis.resp import Lost, WireError

SLOTS: Final = 16384
Place = tuple[str, int]
"""Host and port of a server."""

_NO_CLUSTER: Final = "cluster support disabled"


async def read_slots(url: RedisUrl, besides: Iterable[Place], timeout: float) -> list[Place | None]:
    """The master of each slot, None for a slot that no master serves, by the first server that answers: of the
    seeds of the URL and those `besides`, in random order. `timeout`: seconds for each. Raises WireError."""
    # Imported here: without a Cluster it costs no start-up time.
    from redis.asyncio.cluster import ClusterNode, RedisCluster
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import RedisClusterException, RedisError
    from redis.maint_notifications import MaintNotificationsConfig

    cluster = RedisCluster(
        startup_nodes=[ClusterNode(host, port) for host, port in dict.fromkeys((*url.hosts, *besides))],
        require_full_coverage=False,
        dynamic_startup_nodes=False,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), 0),
        driver_info=None,
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
        **url.options,
    )
    nodes = cluster.nodes_manager
    try:
        await nodes.initialize()
        return _masters(nodes.slots_cache)
    except (RedisClusterException, RedisError, OSError, TimeoutError, ValueError) as e:
        raise _explained(e) from None
    finally:
        for nodes_of in ("nodes_cache", "startup_nodes"):
            with suppress(RedisError, OSError):
                await nodes.aclose(nodes_of)


def _masters(slots: dict[int, list[Any]]) -> list[Place | None]:
    masters: list[Place | None] = [None] * SLOTS
    for slot, servers in slots.items():
        if servers:
            masters[slot] = servers[0].host, int(servers[0].port)
    return masters


def _explained(e: BaseException) -> WireError:
    """What redis-py has met, which is the cause of what it raises."""
    from redis.exceptions import AuthenticationError, NoPermissionError

    for cause in _causes(e):
        if isinstance(cause, AuthenticationError):
            reason = "NOAUTH" if "required" in str(cause) else "WRONGPASS"
            return Lost(f"it refused the login ({reason}): {ADVICE[reason]}", reason)
        if isinstance(cause, NoPermissionError):
            return Lost(f"it refused (NOPERM cluster): {ADVICE['NOPERM']}", "NOPERM")
        if _NO_CLUSTER in str(cause):
            return Lost("it is no Redis Cluster: write redis:// in place of redis+cluster://", "ERR")
    return Lost("no server of the Redis Cluster answers")


def _causes(e: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = e
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__

"""A Redis Cluster over TLS with a private authority, and one certificate replaced by another while it runs."""

from __future__ import annotations

from pathlib import Path

from proxy.access.ratelimit.buckets import Limits
from proxy.redis.url import read_url
from tests.kit.missing import REDIS_WITH_TLS, lacking
from tests.kit.redis_fleet import RedisCluster, redis_cluster
from tests.kit.redis_server import Certificate, server_with_tls
from tests.kit.redis_users import SLOW, claim, keys, users


def binary() -> Path:
    found = server_with_tls()
    if found is None:
        lacking("a redis-server with TLS", REDIS_WITH_TLS)
    return found


def tls_url(cluster: RedisCluster, options: str) -> str:
    hosts = ",".join(f"127.0.0.1:{node.tls_port}" for node in cluster.masters)
    return f"rediss+cluster://{hosts}?{options}"


async def test_every_connection_trusts_the_private_authority_alone(tmp_path: Path) -> None:
    certificate = Certificate.make(tmp_path)
    async with redis_cluster(binary=binary(), certificate=certificate) as cluster:
        url = tls_url(cluster, f"ssl_ca_certs={certificate.cert}")
        async with users(url) as one:
            assert one.deployment.servers == sorted(f"127.0.0.1:{node.tls_port}" for node in cluster.masters)
            stored = keys(30)
            await one.store(stored)
            assert await one.hits(stored) == 30
            assert await one.ask(claim("p", own=Limits(SLOW), everyone=Limits(SLOW))) is not None
            one.deployment.renew(read_url(url))
            assert await one.hits(stored) == 30
        async with users(tls_url(cluster, ""), timeout=1.0) as stranger:
            assert stranger.deployment.servers == []
            assert stranger.told["look-ups"] == ["no server of the Redis Cluster answers"]


async def test_a_plain_client_of_a_tls_port_is_refused_within_its_time(tmp_path: Path) -> None:
    certificate = Certificate.make(tmp_path)
    async with redis_cluster(binary=binary(), certificate=certificate) as cluster:
        plain = tls_url(cluster, "").replace("rediss", "redis").rstrip("?")
        async with users(plain, timeout=0.5) as one:
            assert await one.hits(keys(3)) == 0
            assert len(one.told["look-ups"]) == 1

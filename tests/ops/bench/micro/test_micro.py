"""The micro benchmarks use real formats: all parsers agree, and a look-up accepts the stored answer."""

from __future__ import annotations

import pytest

from ops.bench.micro.listener import measure
from ops.bench.micro.parsers import events
from ops.bench.micro.redis_lookup import frames
from proxy.redis.cache import Stored
from proxy.wire import ChunkCheck
from proxy.wire.sse import chunk


async def test_all_parsers_return_the_same_bytes() -> None:
    assert len(events()) == 8


async def test_each_part_of_the_listener_takes_time_and_ours_fewer_calls_than_aiohttps() -> None:
    aiohttps, ours, *parts = (await measure(rounds=1)).values()
    assert all(times[0] > 0 for times, _ in (aiohttps, ours, *parts))
    assert all(count >= 1 for _, count in parts)
    assert parts[0][1] < ours[1] < aiohttps[1] / 2


@pytest.mark.parametrize("size", [200, 31_000])
def test_the_stored_stream_is_one_that_a_look_up_returns(size: int) -> None:
    stream = frames(size)
    assert abs(sum(map(len, stream)) - size) < 300
    assert Stored("stream", 1.0, b"".join(map(chunk, stream))).sound(ChunkCheck())

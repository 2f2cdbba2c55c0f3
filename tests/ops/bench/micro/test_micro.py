"""The micro benchmarks use real formats: all parsers agree, and a look-up accepts the stored answer."""

from __future__ import annotations

import pytest

from ops.bench.micro.parsers import events
from ops.bench.micro.redis_lookup import frames
from proxy.redis.cache import Stored
from proxy.wire import ChunkCheck
from proxy.wire.sse import chunk


async def test_all_parsers_return_the_same_bytes() -> None:
    assert len(events()) == 8


@pytest.mark.parametrize("size", [200, 31_000])
def test_the_stored_stream_is_one_that_a_look_up_returns(size: int) -> None:
    stream = frames(size)
    assert abs(sum(map(len, stream)) - size) < 300
    assert Stored("stream", 1.0, b"".join(map(chunk, stream))).sound(ChunkCheck())

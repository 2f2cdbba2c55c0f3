"""`python -m ops.bench.micro.rooms`: which room a source file belongs to."""

from __future__ import annotations

import pytest

from ops.bench.micro.rooms import Tracer, room_of


@pytest.mark.parametrize(
    ("path", "room"),
    [
        ("/srv/proxy/server/listener/head.py", "proxy/server"),
        ("/srv/proxy/app.py", "proxy"),
        ("/proxy/gateway/proxy/wire/sse.py", "proxy/wire"),
        ("/lib/site-packages/aiohttp/streams.py", "aiohttp"),
        ("/lib/site-packages/yarl/_url.py", "aiohttp"),
        ("/srv/ops/bench/client.py", ""),
        ("/lib/python3.11/asyncio/runners.py", ""),
    ],
)
def test_a_file_is_of_its_innermost_room(path: str, room: str) -> None:
    assert room_of(path) == room


def test_calls_and_bytecodes_are_summed_by_room_for_each_request() -> None:
    tracer = Tracer()
    for number, name in enumerate(("wire/a.py", "wire/b.py", "app.py"), 1):
        tracer.calls[f"/srv/proxy/{name}"] = 4
        tracer.bytecodes[f"/srv/proxy/{name}"] = 10 * number
    assert tracer.by_room(2) == {"proxy/wire": (4.0, 15.0), "proxy": (2.0, 15.0)}

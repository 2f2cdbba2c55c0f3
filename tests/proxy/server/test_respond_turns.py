"""Between two slices the other requests have a turn of the event loop, and no time passes."""

from __future__ import annotations

import asyncio

from proxy.server import respond
from tests.kit.clock import virtual
from tests.proxy.server.test_respond_streams import Client


@virtual
async def test_a_client_that_takes_all_at_once_leaves_a_turn_between_slices_and_no_more() -> None:
    loop, client = asyncio.get_running_loop(), Client()
    seen: list[int] = []

    async def others() -> None:
        while len(seen) < 3:
            seen.append(len(client.writes))
            await asyncio.sleep(0)

    task = asyncio.ensure_future(others())
    await asyncio.sleep(0)
    await respond.write_rest(client.request, iter([b"a", b"b", b"c"]), client.taken)
    await task
    assert seen == [0, 1, 2]
    assert loop.time() == 0.0

"""What a connection keeps of one request for the next: nothing of its head, and a place in the parser's queue."""

from __future__ import annotations

import pytest

from tests.kit.clock import virtual
from tests.kit.wire_end import client, connected, door_of, turns
from tests.proxy.server.listener.test_listener_connection import GET, MOST, POST, head_of


@virtual
async def test_a_head_that_came_in_two_reads_with_a_long_body_is_not_counted_to_the_next_one() -> None:
    async with client(max_head=MOST) as (handler, wire):
        head = POST % (1000, b"x: " + b"y" * 200 + b"\r\n")
        handler.data_received(head[:-5])
        assert handler._head == len(head) - 5
        handler.data_received(head[-5:] + b"x" * 1000)
        assert handler._head == 0
        await turns(20)
        following = head_of(MOST - 2)
        for at in range(0, len(following), 100):
            handler.data_received(following[at : at + 100])
        await turns(20)
        assert (wire.written.count(b" 200 OK"), b" 431 " in wire.written) == (2, False)


@pytest.mark.parametrize("at_once", [1, 20, 50])
@virtual
async def test_a_connection_serves_more_requests_than_the_parser_queues(at_once: int) -> None:
    async with client() as (handler, wire):
        for _ in range(100 // at_once):
            handler.data_received(GET * at_once)
            await turns(3 * at_once)
        assert wire.written.count(b" 200 OK") == 100
        assert not wire.paused


@virtual
async def test_the_limit_s_timer_is_cancelled_with_the_listener() -> None:
    listener = door_of(max_connections=1)
    handlers = [connected(listener)[0] for _ in range(3)]
    timer = listener.limit._timer
    assert timer is not None
    for handler in handlers:
        handler.connection_lost(None)
    await listener.shutdown(0)
    assert timer.cancelled()
    await turns()

"""One body to a client's bytes, and what is left where a part of a long answer was written."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy.flights.flight import SLICE_BYTES
from proxy.flights.spec import Head, Mode
from proxy.server import respond
from tests.kit.clock import virtual
from tests.kit.wire_end import turns
from tests.proxy.server.test_respond_streams import ERROR, RATE, Client, flight_of, reads


def test_a_stream_that_was_folded_is_one_json_body_whatever_its_head_says() -> None:
    flight = flight_of()
    flight.folded = b"{}"
    json = ("content-type", "application/json")
    assert respond.json_response(flight) == (200, [json], b"{}")
    flight.head = Head(201, (("content-type", "text/event-stream"), RATE, ("x-a", "b")))
    assert respond.json_response(flight) == (200, [json, RATE, ("x-a", "b")], b"{}")
    assert respond.json_response(flight, limited=True) == (200, [json, ("x-a", "b")], b"{}")


@pytest.mark.parametrize(("given", "kept"), [({}, True), ({"keep": True}, True), ({"keep": False}, False)])
def test_a_connection_is_kept_unless_that_is_said(given: dict[str, Any], kept: bool) -> None:
    client = Client()
    sent, _ = respond.write(client.request, 200, (), b"x", **given)
    assert (sent.keep_alive, b"connection: close" in client.sent) == (kept, not kept)


@virtual
async def test_a_private_log_is_dropped_once_its_slow_reader_has_it() -> None:
    flight, client = flight_of(key=None), Client()
    reader = reads(flight)
    flight.frames([b"data: " + b"x" * (3 * SLICE_BYTES) + b"\n\n"])
    writing = asyncio.ensure_future(respond.stream(client.request, reader, (), client.taken))
    await turns(20)
    assert (flight.log, flight.size, reader.cursor) == ([], 0, 0)
    flight.land()
    await writing


@virtual
async def test_the_end_of_a_cut_answer_finds_its_client_gone() -> None:
    flight, client = flight_of(Mode.RAW), Client()
    reader = reads(flight)
    flight.start(Head())
    writing = asyncio.ensure_future(respond.stream(client.request, reader, (), client.taken))
    await turns()
    client.transport = None
    flight.fail(ERROR)
    sent = await writing
    assert (sent.keep_alive, client.closed) == (False, False)

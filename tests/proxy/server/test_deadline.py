"""A request that is ended early: with its error, with an honest end of what has begun, or by the connection."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy.errors import Code, GatewayError
from proxy.flights.flight import Flight, Subscriber
from proxy.flights.resuming import Numbered
from proxy.flights.spec import FlightSpec, Mode
from proxy.server.context import RequestContext
from proxy.server.deadline import end_early, run_with_deadline
from proxy.server.respond import Sent, SocketPipe
from proxy.wire import chunk
from tests.kit.clock import virtual
from tests.proxy.server.test_respond_streams import Client

ERROR = GatewayError(Code.DEADLINE_EXCEEDED, "over")


class Pipe:
    """Not a socket's."""

    head = b""

    def write(self, data: bytes | memoryview) -> bool:
        return True


def call_of(
    *, mode: Mode = Mode.STREAM, pipe: bool = True, begun: bool = True
) -> tuple[RequestContext, Subscriber, Client]:
    client = Client()
    reader = Subscriber(Flight(FlightSpec("POST", "/", b"", mode, "r")))
    if pipe:
        reader.pipe = SocketPipe(client.request, b"head")
        if begun:
            reader.pipe.write(b"1\r\na\r\n")
    one = RequestContext(client.request, "id")
    one.reader = reader
    return one, reader, client


def test_where_nothing_has_gone_out_it_is_the_error() -> None:
    bare = RequestContext(Client().request, "id")
    unbegun, unread = call_of(begun=False)[0], call_of(pipe=False)[0]
    for one in (bare, unbegun, unread):
        with pytest.raises(GatewayError, match="over"):
            end_early(one, ERROR)
        assert one.error is None
        assert one.reader is None or one.reader.pipe is None  # nothing more is written


def test_a_stream_that_has_begun_ends_with_the_error_and_is_closed() -> None:
    one, reader, client = call_of()
    sent = end_early(one, ERROR)
    assert client.sent.endswith(b"0\r\n\r\n")
    assert b'"code":"deadline_exceeded"' in client.sent
    assert b"[DONE]" not in client.sent
    assert (sent, one.status, one.bytes_out, one.error) == (
        Sent(200, False, len(client.sent)),
        200,
        len(client.sent),
        "deadline_exceeded",
    )
    assert (reader.done, reader.pipe) == (True, None)


def test_the_error_of_a_numbered_stream_has_its_number() -> None:
    one, reader, client = call_of(begun=False)
    assert reader.pipe is not None
    reader.pipe = Numbered(reader.pipe, 4, ())
    with pytest.raises(GatewayError, match="over"):  # its head is not out
        end_early(one, ERROR)
    one, reader, client = call_of(begun=False)
    assert reader.pipe is not None
    reader.pipe = Numbered(reader.pipe, 4, ())
    reader.pipe.write(chunk(b"data: a\n\n"))
    sent = end_early(one, ERROR)
    assert sent == Sent(200, False, len(client.sent))
    assert client.sent.count(b"HTTP/1.1") == client.sent.count(b"head") - 1 == 0
    assert b"id: 6\n" in client.sent
    assert client.sent.endswith(b"0\r\n\r\n")


def test_a_stream_that_has_its_end_is_given_no_other() -> None:
    one, reader, client = call_of()
    reader.done = True
    before = client.sent
    assert end_early(one, ERROR) == Sent(200, False, len(before))
    assert client.sent == before


@pytest.mark.parametrize("case", ["chunk", "raw", "body", "other pipe", "answered"])
def test_what_has_no_honest_end_is_cut(case: str) -> None:
    one, reader, client = call_of(mode=Mode.RAW if case == "raw" else Mode.STREAM)
    if case == "chunk":
        reader.offset = 1
    elif case == "body":
        one.reader = None
        one.status = 200
    elif case == "other pipe":
        reader.pipe = Pipe()
        one.status = 200
    elif case == "answered":
        reader.pipe = None
        one.status = 200
    before = client.sent
    with pytest.raises(ConnectionResetError, match="in the middle of a chunk" if case == "chunk" else "of a body"):
        end_early(one, ERROR)
    assert (one.error, client.sent) == ("deadline_exceeded", before)


@virtual
async def test_an_answer_has_its_time_from_its_request_on() -> None:
    missed: list[str] = []

    def answers(seconds: float, error: Exception | None = None) -> Any:
        async def answer(call: RequestContext) -> Sent:
            await asyncio.sleep(seconds)
            if error is not None:
                raise error
            return Sent(200, True, 1)

        return answer

    one, _, _ = call_of(begun=False)
    assert await run_with_deadline(one, answers(4.9), 5.0, missed.append) == Sent(200, True, 1)
    with pytest.raises(TimeoutError):  # another time limit's
        await run_with_deadline(one, answers(1.0, TimeoutError()), 5.0, missed.append)
    assert missed == []
    for call, phase in ((one, "queued"), (RequestContext(Client().request, "id"), "arriving")):
        with pytest.raises(
            GatewayError, match=r"^The deadline of x-request-timeout \(5 s\) has passed\.$"
        ) as late:
            await run_with_deadline(call, answers(5.1), 5.0, missed.append)
        assert late.value.code is Code.DEADLINE_EXCEEDED
        assert missed.pop() == phase

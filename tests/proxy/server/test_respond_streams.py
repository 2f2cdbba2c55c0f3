"""A Flight to a client's bytes: each kind of head and body, who lags, what is cut, and what is charged."""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import pytest
from aiohttp import HttpVersion10, HttpVersion11
from msgspec.structs import replace

from proxy.errors import Code, GatewayError
from proxy.flights.flight import FREE, SLICE_BYTES, Flight, Subscriber
from proxy.flights.memory import Held, Memory
from proxy.flights.spec import FlightSpec, Head, Mode
from proxy.server import respond
from proxy.server.listener.listener import Counted
from proxy.server.listener.request import Request
from proxy.server.respond import FOLD_COST, Sent, SocketPipe
from proxy.wire.fold.folding import Unfoldable
from proxy.wire.openai import decode
from proxy.wire.sse import LAST_CHUNK, chunk
from tests.kit.clock import virtual

FRAME = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[]}\n\n'
ERROR = GatewayError(Code.UPSTREAM_TRUNCATED, "cut")


RATE = ("x-ratelimit-limit-requests", "engine")


class Client:
    """A request whose client takes what it is sent, at once unless `write_paused` is set."""

    plain, made = False, None

    def __init__(self, method: str = "GET", *, old: bool = False, keep: bool = True) -> None:
        self.method = method
        self.version = HttpVersion10 if old else HttpVersion11
        self.keep_alive = keep
        self.transport: Client | None = self
        self.protocol = self.writer = self
        self.write_paused = self.closed = self.aborted = False
        self.unread = self.drains = 0
        self.writes: list[bytes] = []
        self._written, self._streams = 0, list[Counted]()

    @property
    def request(self) -> Request:
        return cast(Request, self)

    @property
    def sent(self) -> bytes:
        return b"".join(self.writes)

    def write(self, data: bytes | memoryview) -> None:
        self.writes.append(bytes(data))

    def send(self, data: bytes | memoryview) -> None:
        self._written += len(data)
        self.write(data)

    def count(self, stream: Counted) -> None:
        self._streams.append(stream)

    @property
    def written(self) -> int:
        return self._written + sum(stream.sent for stream in self._streams)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def get_write_buffer_size(self) -> int:
        return self.unread

    async def drain(self) -> None:
        self.drains += 1
        if self.closed:
            raise ConnectionResetError

    async def taken(self) -> None:
        """What `respond.taken` is to those who wait."""
        self.drains += 1
        self.write_paused = False


def flight_of(mode: Mode = Mode.STREAM, *, key: bytes | None = b"k", memory: Memory | None = None) -> Flight:
    api_request = decode("chat", b'{"messages": []}')
    return Flight(FlightSpec("POST", "/", b"", mode, "r", key=key, api_request=api_request), memory=memory)


def reads(flight: Flight) -> Subscriber:
    reader = Subscriber(flight)
    flight.subscribers.add(reader)
    return reader


# -- the pipe


@pytest.mark.parametrize(
    ("how", "first", "second"),
    [
        ({}, b"head" + chunk(b"a"), chunk(b"b")),
        ({"bare": True}, b"heada", b"b"),
        ({"mute": True}, b"head", b""),
        ({"mute": True, "bare": True}, b"head", b""),
    ],
)
def test_the_head_goes_out_with_the_first_bytes_and_all_is_counted(
    how: dict[str, bool], first: bytes, second: bytes
) -> None:
    client = Client()
    pipe = SocketPipe(client.request, b"head", **how)
    assert (pipe.write(chunk(b"a")), pipe.write(memoryview(chunk(b"b")))) == (True, True)
    assert client.writes == [first, second]
    assert pipe.sent == client.written == len(first + second)
    client.write_paused = True
    assert pipe.write(chunk(b"c")) is False


# -- streams


@pytest.mark.parametrize(
    ("mode", "head", "has", "has_not"),
    [
        (
            Mode.STREAM,
            None,
            [b" 200 OK", b"text/event-stream", b"transfer-encoding: chunked"],
            [b"content-length"],
        ),
        (
            Mode.STREAM,
            Head(201, (RATE, ("x-a", "b")), 7),
            [b" 201 ", b"x-a: b", b"chunked", b": engine"],
            [b"content-length"],
        ),
        (Mode.RAW, Head(200, (), 7), [b"content-length: 7"], [b"chunked"]),
        (Mode.RAW, Head(200, (), 0), [b"content-length: 0"], [b"chunked"]),
        (Mode.RAW, Head(200, ()), [b"chunked"], [b"content-length"]),
        (Mode.RAW, Head(204, (), 0), [b" 204 "], [b"content-length", b"chunked"]),
        (Mode.RAW, Head(304, (), 5), [b" 304 ", b"content-length: 5"], [b"chunked"]),
        (Mode.RAW, Head(304, ()), [b" 304 "], [b"content-length", b"chunked"]),
    ],
)
@virtual
async def test_how_the_end_is_told_is_said_by_the_head(
    mode: Mode, head: Head | None, has: list[bytes], has_not: list[bytes]
) -> None:
    flight, client = flight_of(mode), Client()
    reader = reads(flight)
    if mode is Mode.RAW:
        assert head is not None
        flight.start(head)
    else:
        flight.head = head
        flight.frames([FRAME])
    writing = asyncio.ensure_future(respond.stream(client.request, reader, (), client.taken))
    await asyncio.sleep(0)
    assert all(words in client.sent for words in has)
    assert not any(words in client.sent for words in has_not)
    flight.land()
    sent = await writing
    assert sent == Sent(head.status if head is not None else 200, True, len(client.sent))


@pytest.mark.parametrize(
    ("method", "status", "body"),
    [("GET", 200, True), ("HEAD", 200, False), ("GET", 204, False), ("GET", 304, False)],
)
@virtual
async def test_what_can_have_no_body_has_none(method: str, status: int, body: bool) -> None:
    flight, client = flight_of(Mode.RAW), Client(method)
    reader = reads(flight)
    flight.start(Head(status))
    flight.append_body(b"abc")
    flight.land()
    await respond.stream(client.request, reader, (), client.taken)
    assert client.sent.endswith(b"\r\n\r\n") is not body or client.sent.endswith(LAST_CHUNK)
    assert (b"abc" in client.sent) is body


@virtual
async def test_a_client_of_http_1_0_has_frames_without_chunks_and_the_end_by_the_close() -> None:
    flight, client = flight_of(), Client(old=True)
    reader = reads(flight)
    flight.frames([FRAME])
    writing = asyncio.ensure_future(respond.stream(client.request, reader, (), client.taken))
    await asyncio.sleep(0)
    assert reader.most == sys.maxsize
    flight.frames([b"data: " + b"x" * (2 * SLICE_BYTES) + b"\n\n"])
    flight.land()
    sent = await writing
    head, _, body = client.sent.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert b"chunked" not in head
    assert body == FRAME + b"data: " + b"x" * (2 * SLICE_BYTES) + b"\n\n"
    assert not sent.keep_alive


@virtual
async def test_a_raw_body_of_known_length_goes_to_http_1_0_as_it_is() -> None:
    flight, client = flight_of(Mode.RAW), Client(old=True)
    reader = reads(flight)
    flight.start(Head(200, (), 4))
    flight.append_body(b"2\r\nx")
    flight.land()
    await respond.stream(client.request, reader, (), client.taken)
    assert client.sent.endswith(b"\r\n\r\n2\r\nx")


@pytest.mark.parametrize(
    ("mode", "old", "closes"),
    [(Mode.STREAM, False, False), (Mode.STREAM, True, True), (Mode.RAW, False, True), (Mode.RAW, True, True)],
)
@virtual
async def test_where_no_clean_end_can_be_told_the_connection_is_closed(
    mode: Mode, old: bool, closes: bool
) -> None:
    flight, client = flight_of(mode), Client(old=old)
    reader = reads(flight)
    if mode is Mode.RAW:
        flight.start(Head())
        flight.append_body(b"half")
    else:
        flight.frames([FRAME])
    writing = asyncio.ensure_future(respond.stream(client.request, reader, (), client.taken))
    await asyncio.sleep(0)
    flight.fail(ERROR)
    sent = await writing
    assert (client.closed, sent.keep_alive) == (closes, not closes)
    assert (b"upstream_truncated" in client.sent) is (mode is Mode.STREAM)


@virtual
async def test_a_flight_that_failed_before_anything_was_seen_is_its_error() -> None:
    flight, client = flight_of(), Client()
    reader = reads(flight)
    flight.fail(ERROR)
    with pytest.raises(GatewayError, match="cut"):
        await respond.stream(client.request, reader, (), client.taken)
    assert client.writes == []


@virtual
async def test_our_rate_limits_take_the_place_of_the_engine_s() -> None:
    engine = (("x-ratelimit-limit-requests", "engine"), ("x-a", "b"))
    for limited in (False, True):
        flight, client = flight_of(), Client()
        reader = reads(flight)
        flight.head = Head(200, engine)
        flight.frames([FRAME])
        flight.land()
        await respond.stream(client.request, reader, (), client.taken, limited=limited)
        assert (b"engine" in client.sent, b"x-a: b" in client.sent) == (not limited, True)
        whole = flight_of(Mode.WHOLE)
        whole.head = Head(200, engine)
        assert (engine[0] in list(respond.json_response(whole, limited=limited)[1])) is not limited


# -- who lags


@virtual
async def test_a_reader_that_lags_is_written_to_as_it_takes_and_holds_its_engine_back_meanwhile() -> None:
    held: list[bool] = []
    flight, client = flight_of(key=None), Client()
    flight.throttle = held.append
    reader = reads(flight)
    flight.frames([FRAME])
    writing = asyncio.ensure_future(respond.stream(client.request, reader, (), client.taken))
    await asyncio.sleep(0)
    client.write_paused = True
    flight.frames([b"data: " + b"y" * 9 + b"\n\n"])
    assert reader.lagging
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert held == [True, False]
    assert (reader.lagging, len(flight.log)) == (False, 0)
    flight.land()
    await writing
    assert client.drains == 1


@virtual
async def test_a_long_answer_is_written_a_slice_a_turn_and_a_shared_one_holds_no_engine_back() -> None:
    held: list[bool] = []
    flight, client = flight_of(), Client()
    flight.throttle = held.append
    reader = reads(flight)
    flight.frames([b"data: " + b"x" * (4 * SLICE_BYTES) + b"\n\n"])
    writing = asyncio.ensure_future(respond.stream(client.request, reader, (), client.taken))
    for count in (1, 2, 3):
        await asyncio.sleep(0)
        assert len(client.writes) in (count, count + 1)
    flight.land()
    await writing
    assert (held, max(map(len, client.writes[1:]))) == ([], SLICE_BYTES)
    assert client.sent.endswith(LAST_CHUNK)


@virtual
async def test_what_could_not_be_written_ends_the_connection() -> None:
    flight, client = flight_of(), Client()
    reader = reads(flight)
    flight.frames([FRAME])
    writing = asyncio.ensure_future(respond.stream(client.request, reader, (), client.taken))
    await asyncio.sleep(0)
    reader.broken = True
    reader.wake()
    with pytest.raises(ConnectionResetError, match="a part of the answer"):
        await writing


@virtual
async def test_the_rest_of_a_flight_whose_end_raised_is_written_or_the_connection_ends() -> None:
    for written in (True, False):
        flight, client = flight_of(), Client()
        reader = reads(flight)
        flight.frames([FRAME])
        writing = asyncio.ensure_future(respond.stream(client.request, reader, (), client.taken))
        await asyncio.sleep(0)
        flight.broke(ERROR)
        if written:
            await writing
            assert b"[DONE]" not in client.sent
            assert client.sent.endswith(LAST_CHUNK)
        else:
            reader.pipe = None
            with pytest.raises(ConnectionResetError):
                await writing


# -- one body


def test_one_body_has_its_status_its_headers_and_its_bytes() -> None:
    flight = flight_of(Mode.WHOLE)
    flight.log.append(b"{}")
    assert respond.json_response(flight) == (200, (), b"{}")
    flight.log.append(b"x")
    flight.head = Head(418, (RATE, ("x-a", "b")))
    assert respond.json_response(flight) == (418, (RATE, ("x-a", "b")), [b"{}", b"x"])
    flight.error = ERROR
    with pytest.raises(GatewayError, match="cut"):
        respond.json_response(flight)


@pytest.mark.parametrize("ask", [None, "embeddings"])
def test_what_does_not_stream_has_no_fold(ask: str | None) -> None:
    flight = flight_of()
    embedding = decode("embeddings", b'{"input": "a"}')
    flight.spec = replace(flight.spec, api_request=None if ask is None else embedding)
    with pytest.raises(Unfoldable, match="does not stream"):
        respond.folded_body(flight)


def test_the_fold_of_a_large_stream_is_charged_and_refused_where_there_is_no_room() -> None:
    for size, budget, room in ((FREE, 1, True), (FREE + 1, 1, False), (FREE + 1, 16 * FOLD_COST * FREE, True)):
        memory = Memory(budget)
        flight = flight_of(memory=memory)
        flight.size = size
        flight.folded = None
        try:
            respond.folded_body(flight)
        except Unfoldable:
            assert room  # of no frames there is none
            assert memory.held == (FOLD_COST * size if size > FREE else 0)
        except GatewayError as e:
            assert (e.code, room) == (Code.MEMORY_FULL, False)


# -- responses


@pytest.mark.parametrize(
    ("old", "keep", "says"), [(True, True, "keep-alive"), (True, False, "close"), (False, True, "")]
)
def test_a_client_of_http_1_0_is_told_that_its_connection_is_kept(old: bool, keep: bool, says: str) -> None:
    client = Client(old=old)
    sent, _ = respond.write(client.request, 200, (), b"x", keep=keep)
    assert sent.keep_alive is keep
    assert client.sent.count(b"\r\nconnection: ") == bool(says)
    assert f"\r\nconnection: {says}".encode() in client.sent or not says
    assert respond.write(Client(keep=False).request, 200, (), b"")[0].keep_alive is False


@pytest.mark.parametrize("body", [b"x" * SLICE_BYTES, [b"x" * (SLICE_BYTES - 1), b"y"]])
def test_a_body_of_one_slice_is_written_at_once(body: respond.Body) -> None:
    client = Client()
    sent, left = respond.write(client.request, 200, (), body)
    assert (left, len(client.writes), sent.bytes) == (None, 1, len(client.sent))
    assert f"content-length: {SLICE_BYTES}\r\n".encode() in client.sent


@pytest.mark.parametrize("body", [b"x" * (SLICE_BYTES + 1), [b"x" * SLICE_BYTES, b"y"]])
@virtual
async def test_of_a_larger_body_the_rest_follows_as_the_client_takes_it(body: respond.Body) -> None:
    client = Client()
    sent, left = respond.write(client.request, 200, (), body)
    assert left is not None
    assert client.sent.endswith(b"\r\n\r\n" + b"x" * SLICE_BYTES)
    await respond.write_rest(client.request, left, client.taken)
    assert (len(client.writes), client.drains) == (2, 2)
    assert sent.bytes == client.written == len(client.sent)


def test_a_client_that_lags_is_waited_for_though_all_is_written() -> None:
    client = Client()
    client.write_paused = True
    _, left = respond.write(client.request, 200, (), b"x")
    assert left is not None
    assert list(left) == []
    head = Client("HEAD")
    sent, left = respond.write(head.request, 200, (), b"x" * 2 * SLICE_BYTES)
    assert (left, head.sent[-4:], sent.bytes) == (None, b"\r\n\r\n", len(head.sent))


@pytest.mark.parametrize("gone", ["no transport", "closing"])
@virtual
async def test_the_rest_of_a_body_is_written_to_nobody_who_has_left(gone: str) -> None:
    client = Client()
    if gone == "closing":
        client.closed = True
    else:
        client.transport = None
    with pytest.raises(ConnectionResetError, match="has left"):
        await respond.write_rest(client.request, iter([b"x"]), client.taken)
    assert client.writes == []


@pytest.mark.parametrize(
    ("sizes", "written"),
    [
        ([SLICE_BYTES], [SLICE_BYTES]),
        ([SLICE_BYTES - 1, 1], [SLICE_BYTES]),
        ([SLICE_BYTES - 1, 1, 1], [SLICE_BYTES, 1]),
        ([SLICE_BYTES + 1], [SLICE_BYTES, 1]),
        ([1, SLICE_BYTES + 1, 2], [1, SLICE_BYTES, 1, 2]),
        ([], []),
    ],
)
def test_small_pieces_are_joined_up_to_a_slice(sizes: list[int], written: list[int]) -> None:
    assert [len(one) for one in respond.slices([b"x" * size for size in sizes])] == written


# -- what waits for the client


@virtual
async def test_what_the_client_has_not_taken_is_charged_while_it_is_waited_for() -> None:
    memory, client = Memory(1000), Client()
    held = Held(memory, "a", "unread")
    charged: list[int] = []

    async def drain() -> None:
        charged.append(memory.held)

    client.drain = drain  # type: ignore[method-assign]
    client.unread = 100
    await respond.wait_writable(client.request, 5.0, held)  # nobody waits: nothing is charged
    client.write_paused = True
    await respond.wait_writable(client.request, 5.0, held)
    await respond.wait_writable(client.request, 5.0)
    assert (charged, memory.held) == ([0, 100, 0], 0)
    client.unread = 501
    with pytest.raises(ConnectionResetError, match="no memory"):
        await respond.wait_writable(client.request, 5.0, held)
    assert (client.aborted, memory.held, len(charged)) == (True, 0, 3)


@virtual
async def test_a_client_that_has_left_is_found_out_by_the_drain() -> None:
    client = Client()
    client.write_paused = client.closed = True
    client.transport = None
    with pytest.raises(ConnectionResetError):
        await respond.wait_writable(client.request, 5.0)
    assert client.drains == 1


def test_a_refusal_for_want_of_a_key_says_which_kind() -> None:
    assert ("www-authenticate", "Bearer") in respond.error_headers(GatewayError(Code.INVALID_API_KEY, "x"))
    assert dict(respond.error_headers(GatewayError(Code.NOT_FOUND, "x"))).keys() == {"content-type"}
    assert respond._date(0) == "date: Thu, 01 Jan 1970 00:00:00 GMT"

"""Tests of the framer, the parser and the encoder, against goldens and two independent readers of SSE."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
from aiohttp_sse_client.client import EventSource
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.errors import Code, GatewayError
from proxy.wire.sse import LAST_CHUNK, Framer, chunk, data_of, encode, field_of, is_done, unchunks
from tests.golden import load, names
from tests.kit.engine_wire import golden_response

MAX = 1 << 20
# Mostly what matters to framing, so that line ends meet each other in every way.
PIECES = st.sampled_from(
    [
        b"\n",
        b"\r",
        b"\r\n",
        b"data",
        b":",
        b" ",
        b"data: x",
        b"event: y",
        b"a",
        b"\xef\xbb\xbf",
        b"\xf0\x9f",
        b"\xa6\x8a",
    ]
)
STREAMS = st.one_of(st.lists(PIECES, max_size=24).map(b"".join), st.binary(max_size=60))


def frames_of(stream: bytes, cuts: list[int] | None = None) -> tuple[list[bytes], bytes]:
    framer = Framer(MAX)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts or []), len(stream)]
    pieces = (stream[a:b] for a, b in pairwise(edges))
    return [frame for piece in pieces for frame in framer.feed(piece)], framer.rest


def whatwg(stream: bytes) -> list[bytes]:
    """The data of each event that a browser would dispatch, read line by line as the standard says it."""
    events: list[bytes] = []
    values: list[bytes] = []
    text = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for line in text.split(b"\n")[:-1]:
        if not line:
            if values:
                events.append(b"\n".join(values))
            values = []
        elif line[:1] != b":":
            name, colon, value = line.partition(b":")
            if name == b"data":
                values.append(value[1:] if colon and value[:1] == b" " else value)
    return events


@pytest.mark.parametrize(
    ("stream", "frames", "rest"),
    [
        (b"", [], b""),
        (b"data: a\n\n", [b"data: a\n\n"], b""),
        (b"data: a\n\ndata: b\n\n", [b"data: a\n\n", b"data: b\n\n"], b""),
        (b"data: a\n\ndata: b\n", [b"data: a\n\n"], b"data: b\n"),
        (b"data: a\n\nda", [b"data: a\n\n"], b"da"),
        (b"event: e\nid: 1\ndata: a\n\n", [b"event: e\nid: 1\ndata: a\n\n"], b""),
        (b": ping\n\ndata: a\n\n", [b": ping\n\n", b"data: a\n\n"], b""),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"data: a\r\n\r\n", b"data: b\r\n\r\n"], b""),
        (b"data: a\r\n\r", [], b"data: a\r\n\r"),
        (b"data: a\r\rdata: b\r\r", [b"data: a\r\r", b"data: b\r\r"], b""),
        (b"data: a\r\r\ndata: b\r\r", [b"data: a\r\r", b"\ndata: b\r\r"], b""),
        (b"data: a\n\rdata: b\n\r\n", [b"data: a\n\r", b"data: b\n\r\n"], b""),
        (b"data: a\r\n\ndata: b\n\n", [b"data: a\r\n\n", b"data: b\n\n"], b""),
        (b"data: a\n\n\ndata: b\n\n", [b"data: a\n\n", b"\ndata: b\n\n"], b""),
        (b"data: a\n\n\n\n", [b"data: a\n\n", b"\n\n"], b""),
    ],
)
def test_an_event_ends_at_its_blank_line_whatever_the_line_ends(
    stream: bytes, frames: list[bytes], rest: bytes
) -> None:
    assert frames_of(stream) == (frames, rest)
    assert frames_of(stream, list(range(len(stream)))) == (frames, rest)


@given(STREAMS, st.lists(st.integers(0, 120), max_size=8))
@example(b"data: a\r\n\r\n\r\n", [8, 9, 10, 11])
@example(b"a\n\n\n\nb\n\n", [])
def test_any_cutting_of_the_bytes_gives_the_same_frames(stream: bytes, cuts: list[int]) -> None:
    whole = frames_of(stream)
    assert frames_of(stream, cuts) == whole
    assert frames_of(stream, list(range(len(stream)))) == whole
    assert b"".join(whole[0]) + whole[1] == stream


@given(STREAMS)
def test_what_the_frames_carry_is_what_the_standard_reads_from_the_stream(stream: bytes) -> None:
    # A frame does not know whether it is the first, so a BOM is skipped at the front of each.
    stream = stream[:3] + stream[3:].replace(b"\xef\xbb\xbf", b"")
    frames, rest = frames_of(stream + b"\n\n")
    assert [data for frame in [*frames, rest] if (data := data_of(frame)) is not None] == whatwg(stream + b"\n\n")


class Response:
    """As much of an aiohttp response as aiohttp-sse-client reads."""

    status = 200

    def __init__(self, stream: bytes) -> None:
        self.content = self._lines(stream)

    async def _lines(self, stream: bytes) -> AsyncIterator[bytes]:
        for line in stream.splitlines(keepends=True):
            yield line


# The client strips every space in front, and all line ends that Python knows; the standard does not.
WORDS = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=1, max_size=20)


@given(st.lists(st.tuples(WORDS, st.sampled_from(["\n", "\r\n"]), st.booleans()), min_size=1, max_size=5))
def test_aiohttp_sse_client_reads_the_same_events(events: list[tuple[str, str, bool]]) -> None:
    stream = "".join(
        f"{': a comment' + end if comment else ''}data: {word}{end}data:{word}{end}{end}"
        for word, end, comment in events
    ).encode()
    frames, rest = frames_of(stream)
    assert rest == b""

    async def read() -> list[str]:
        source = EventSource("http://test", session=object())
        source._response = Response(stream)
        return [(await anext(source)).data for _ in frames]

    expected = asyncio.run(read())
    assert [(data_of(frame) or b"").decode() for frame in frames] == expected
    assert len(expected) == len(events)


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=6))
def test_garbage_raises_nothing_but_our_own_error(stream: bytes, cuts: list[int]) -> None:
    framer = Framer(40)
    edges = [0, *sorted(cuts), len(stream)]
    with contextlib.suppress(GatewayError):
        for a, b in pairwise(edges):
            for frame in framer.feed(stream[a:b]):
                assert len(frame) <= 40
                data_of(frame)
                is_done(frame)


@pytest.mark.parametrize("end", [b"", b"\n\n", b"\r\n\r\n", b"\n\ndata: b\n\n"])
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_an_event_over_the_limit_is_refused_complete_or_not_and_however_it_is_cut(end: bytes, step: int) -> None:
    stream = b"data: " + b"x" * 100 + end
    framer = Framer(100)
    pieces = [stream[at : at + step] for at in range(0, len(stream), step)]
    with pytest.raises(GatewayError) as caught:
        list(map(framer.feed, pieces))
    assert caught.value.code is Code.UPSTREAM_TOO_LARGE


def test_an_event_of_just_the_limit_passes_and_many_may_come_in_one_read() -> None:
    frame = b"data: " + b"x" * 92 + b"\n\n"
    assert Framer(100).feed(frame * 5) == [frame] * 5


def test_a_large_event_fed_byte_by_byte_costs_no_more_a_byte_than_a_small_one() -> None:
    def cost(size: int) -> float:
        framer = Framer(MAX)
        began = time.thread_time()
        for _ in range(size):
            framer.feed(b"x")
        return (time.thread_time() - began) / size

    small, large = min(cost(4_000) for _ in range(3)), cost(200_000)
    assert large < 10 * small  # quadratic would be 50 times


def test_the_framer_tells_what_it_holds() -> None:
    framer = Framer(100)
    framer.feed(b"data")
    assert repr(framer) == "<Framer, 4 of 100 bytes pending>"


@pytest.mark.parametrize(
    ("frame", "data"),
    [
        (b"data: a\n\n", b"a"),
        (b"data:a\n\n", b"a"),
        (b"data:  a\n\n", b" a"),
        (b"data: a: b\n\n", b"a: b"),
        (b"data: a\r\n\r\n", b"a"),
        (b"data: a\r\r", b"a"),
        (b"data: a\ndata:b\n\n", b"a\nb"),
        (b"data: a\n: note\nid: 7\ndata: b\n\n", b"a\nb"),
        (b"data\n\n", b""),
        (b"data:\ndata:\n\n", b"\n"),
        (b": ping\n\n", None),
        (b"event: e\n\n", None),
        (b"datas: a\n\n", None),
        (b" data: a\n\n", None),
        (b"\n\n", None),
        (b"\ndata: a\n\n", b"a"),
        (b"\xef\xbb\xbfdata: a\n\n", b"a"),
        ("data: 🦊\n\n".encode(), "🦊".encode()),
    ],
)
def test_data_is_read_as_the_standard_says(frame: bytes, data: bytes | None) -> None:
    assert data_of(frame) == data


def test_other_fields_are_found_by_name() -> None:
    assert field_of(b"event: error\nretry:5\ndata: x\n\n", b"event") == [b"error"]
    assert field_of(b"event: error\nretry:5\ndata: x\n\n", b"retry") == [b"5"]


@given(st.binary(max_size=80).map(lambda data: data.replace(b"\r", b"")))
def test_encoding_then_decoding_gives_the_data_back(data: bytes) -> None:
    frame = encode(data)
    assert frames_of(frame) == ([frame], b"")
    assert data_of(frame) == data


@pytest.mark.parametrize("data", [b"a\rb", b"a\r\nb"])
def test_a_carriage_return_in_data_is_a_line_end_as_it_cannot_be_anything_else(data: bytes) -> None:
    assert data_of(encode(data)) == b"a\nb"


@pytest.mark.parametrize(
    ("frame", "done"),
    [
        (b"data: [DONE]\n\n", True),
        (b"data:[DONE]\n\n", True),
        (b"data:  [DONE] \n\n", True),
        (b"data: [DONE]\r\n\r\n", True),
        (b"data: [DONE]\r\r", True),
        (b": bye {}\nid: 3\ndata: [DONE]\n\n", True),
        (b"\ndata: [DONE]\n\n", True),
        (b'data: "[DONE]"\n\n', False),
        (b'data: {"content":"[DONE]"}\n\n', False),
        (b"data: {\ndata: [DONE]\n\n", False),
        (b": [DONE]\n\n", False),
        (b"event: [DONE]\n\n", False),
        (b"data: [DONE] not\n\n", False),
        (b"data: [DON\n\n", False),
    ],
)
def test_the_terminal_is_known_in_any_spelling_and_nothing_else_is_taken_for_it(frame: bytes, done: bool) -> None:
    assert is_done(frame) is done


@given(st.binary(max_size=300))
def test_unchunk_undoes_chunk(frame: bytes) -> None:
    assert unchunks(chunk(frame)) == ([frame] if frame else [])


def test_nothing_is_no_chunk_as_an_empty_one_would_end_the_body() -> None:
    assert chunk(b"") == b""
    assert LAST_CHUNK == b"0\r\n\r\n"


STREAMED = [name for name in names() if load(name).headers.get("content-type", "").startswith("text/event-stream")]


@pytest.mark.parametrize("name", STREAMED)
def test_recorded_streams_are_framed_as_the_engine_chunked_them(name: str) -> None:
    wire = golden_response(name).partition(b"\r\n\r\n")[2]
    body = load(name).body
    frames, rest = frames_of(body)
    assert rest == b""
    assert tuple(frames) == load(name).chunks
    assert b"".join(map(chunk, frames)) + LAST_CHUNK == wire
    assert frames_of(body, list(range(len(body))))[0] == frames


def test_the_recorded_chats_end_with_the_terminal_and_carry_json_before_it() -> None:
    for name in names("chat-", "-stream"):
        *frames, last = frames_of(load(name).body)[0]
        assert is_done(last)
        for frame in frames:
            assert not is_done(frame)
            assert json.loads(data_of(frame) or b"")["object"] == "chat.completion.chunk"

"""Owns the targets of engines' answers as HTTP and as vectors: heads and bodies under any cut, arrays taken apart.
Must not know flights. The second reader of HTTP is h11, which shares no line with llhttp.
Called by the tests and by the driver."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import h11

from proxy.upstream.http.framing import InvalidResponse, Kind
from proxy.upstream.http.response import ResponseParser
from proxy.wire import chunk
from proxy.wire.embeddings import (
    Unsplittable,
    Vector,
    array_body,
    envelope_of,
    inputs_of,
    put_together,
    take_apart,
)
from proxy.wire.openai import decode
from tests.fuzz.kit import Target, flagged, parted, strict_json


class Taken:
    """The receiver: what an answer was found to be."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.data = b""

    def head(self, status: int, headers: list[tuple[str, str]], known: object = None) -> None:
        assert not self.status, "a second head"
        self.status, self.headers = status, headers

    def body(self, data: bytes, wired: bytes = b"") -> None:
        assert wired in (b"", chunk(data)), "another chunk than that of its data"
        assert data, "a body of nothing"
        assert self.status, "a body before its head"
        self.data += data


class Read(NamedTuple):
    """What came of a stream of bytes."""

    refused: bool
    ended: bool
    until_close: bool
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    surplus: bool


def read(pieces: Iterable[bytes], *, bodiless: bool) -> Read:
    taken = Taken()
    answer = ResponseParser(taken, bodiless=bodiless)
    refused = ended = False
    left = b""
    for piece in pieces:
        if ended:
            left += piece
            continue
        try:
            ended = answer.feed(piece)
        except InvalidResponse:
            refused = True
            break
    if answer.framing is not None and answer.framing.kind is Kind.CHUNKED:
        left = left.strip(b"\r\n")  # llhttp passes over line ends after the last chunk
    surplus = bool(left) or answer.surplus
    until = answer.until_close
    answer.close(taken)
    return Read(refused, ended, until, taken.status, tuple(taken.headers), taken.data, surplus)


def by_h11(stream: bytes, *, bodiless: bool) -> tuple[int, bytes, bool] | None:
    """Status, body and whether it ended, of the first answer that is no interim one; None where h11 refuses."""
    asked = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    asked.send(h11.Request(method="HEAD" if bodiless else "POST", target="/", headers=[("host", "x")]))
    asked.send(h11.EndOfMessage())
    status, body = 0, b""
    try:
        asked.receive_data(stream)
        while True:
            event = asked.next_event()
            if event is h11.NEED_DATA or event is h11.PAUSED:
                return status, body, False
            if isinstance(event, h11.InformationalResponse):
                continue
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return status, body, True
            else:
                return None
    except (h11.RemoteProtocolError, h11.LocalProtocolError):
        return None


def answer(data: bytes) -> None:
    flags, rest = flagged(data)
    bodiless = flags % 8 == 1
    pieces, stream = parted(rest)
    one = read([stream] if stream else [], bodiless=bodiless)
    other = read(pieces, bodiless=bodiless)
    assert one == other
    if flags & 128 and len(stream) <= 200:
        assert read([bytes([byte]) for byte in stream], bodiless=bodiless) == one
    theirs = by_h11(stream, bodiless=bodiless)
    if one.refused or theirs is None or not one.status:
        return
    status, body, ended = theirs
    assert (one.status, one.body) == (status, body)
    assert one.ended == ended


def vectors(data: bytes) -> None:
    """An answer taken apart and put together again says the same, in the order of its inputs."""
    kind, body = flagged(data)
    count = kind % 5 + 1
    try:
        parts = take_apart(body, count)
    except Unsplittable:
        return
    made = [Vector.of(datum) for datum in parts.data]
    again = b"".join(piece for pieces in put_together(envelope_of(parts), made, parts.tokens) for piece in pieces)
    try:
        found, wanted = json.loads(again), json.loads(body)
    except (UnicodeDecodeError, RecursionError):
        return  # in a text that is passed on as it came
    except ValueError as e:
        assert "escape" in str(e) or "control character" in str(e), e  # the same
        return
    wanted["data"].sort(key=lambda datum: datum["index"])
    assert found["data"] == wanted["data"]
    assert [datum["index"] for datum in found["data"]] == list(range(count))
    for members in (found, wanted):
        members.pop("usage", None)
    assert found == wanted
    assert list(found) == list(wanted)


def inputs(data: bytes) -> None:
    """The items of a request, put into an array of their own, are the inputs that were given."""
    body = b'{"model":"m","user":"u","input":' + data + b"}"
    try:
        given: Any = strict_json(body)
    except (ValueError, RecursionError):
        return
    if set(given) != {"model", "user", "input"}:
        return
    try:
        api_request = decode("embeddings", body)
    except Exception:  # noqa: BLE001 - what `decode` refuses is for the target of requests
        return
    found = inputs_of(api_request)
    if found is None:
        return
    value = given["input"]
    items = value if isinstance(value, list) and not (value and isinstance(value[0], int)) else [value]
    assert [json.loads(item) for item in found.items] == items
    assert len(found.tokens) == len(items)
    array = json.loads(array_body(api_request, found.items))
    assert array == {"model": "m", "input": items}


WORDS: Final = (
    *(b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.0 200 OK\r\n", b"\r\n", b"\r\n\r\n"),
    *(b"Content-Length: ", b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", b"2\r\nhi\r\n", b"204", b"304"),
    *(b"Connection: close\r\n", b"Connection: keep-alive\r\n", b": ", b"\t", b" ", b";a=b", b'"', b"101", b"\n"),
    *(b"chunked, chunked", b"gzip, chunked", b"+5", b"-1", b"0x5", b"18446744073709551616", b"x: y\r\n", b"\0"),
)
VECTOR_WORDS: Final = (
    *(b'"data":[', b'"index":', b'"embedding":[', b"0.1", b'"object":"embedding"', b"null", b"},{", b'"usage":{'),
    *(b'"prompt_tokens":', b'"total_tokens":', b"[]", b"{}", b"-1", b"1.0", b"1e400", b'"AAAA"', b"\\ud800", b"2"),
)
INPUT_WORDS: Final = (b'["a","b"]', b"[[1,2],[3]]", b"[1,2]", b"1.0", b"1e2", b"-1", b'"', b"\\ud83d", b"[", b"]")
TARGETS: Final = {
    "answer": Target(answer, "any cut gives the same answer; h11 reads the same where it reads it", WORDS, 600),
    "vectors": Target(vectors, "Unsplittable, or put together it is the same by json.loads", VECTOR_WORDS),
    "inputs": Target(inputs, "none, or the items are those of json.loads, in order", INPUT_WORDS),
}

"""Owns the targets of what Redis says: replies of the wire under any cut, and stored values.
Must not know sockets. The second reader of replies is written from the protocol's page.
Called by the tests and by the driver."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from proxy.flights.flight import Flight
from proxy.flights.spec import FlightSpec, Mode
from proxy.flights.stored import replay
from proxy.redis.cache import Reader, Stored, stream_views
from proxy.redis.resp import Bounds, Login, ReplyError, RespConnection, WireError
from proxy.wire.frames import UsageStripper
from proxy.wire.openai import decode
from proxy.wire.sse import Framer, chunk, data_of, is_done, unchunks
from proxy.wire.whole import REASONS
from tests.fuzz.kit import StillLoop, Target, flagged, lenient_json, parted
from tests.kit.resp_kit import HELLO_REPLY, Transport

ASKED: Final = 3
BOUNDS: Final = Bounds(connect=5.0, pending=1000, reply=1 << 20)


# -- replies -------------------------------------------------------------------------------------------


class Broken(ValueError):
    """It is no RESP, or of a kind that this reader does not have."""


def by_the_book(data: bytes) -> tuple[list[Any], bool]:
    """The whole values of a stream, of RESP 2's kinds, and whether that is all of it."""
    found: list[Any] = []
    at = 0
    while at < len(data):
        try:
            value, at = _value(data, at, 0)
        except EOFError:
            return found, False
        found.append(value)
    return found, True


def _value(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    end = data.find(b"\r\n", at)
    if end < 0:
        raise EOFError
    kind, line, at = data[at : at + 1], data[at + 1 : end], end + 2
    if depth > 6 or b"\r" in line or b"\n" in line or kind not in b"+-:$*":
        raise Broken(kind)
    if kind == b"+":
        return line, at
    if kind == b"-":
        return ReplyError(line), at
    digits = line[1:] if line[:1] == b"-" else line
    if not digits.isdigit() or len(digits) > 17 or (len(digits) > 1 and digits[0] == 48) or line == b"-0":
        raise Broken(line)
    number = int(line)
    if kind == b":":
        return number, at
    if number < 0:
        if number != -1:
            raise Broken(line)
        return None, at
    if kind == b"$":
        if len(data) < at + number + 2:
            raise EOFError
        if data[at + number : at + number + 2] != b"\r\n":
            raise Broken(line)
        return data[at : at + number], at + number + 2
    values = []
    for _ in range(number):
        value, at = _value(data, at, depth + 1)
        values.append(value)
    return values, at


def _told(pieces: Iterable[bytes]) -> tuple[list[Any], list[Any], str]:
    """The replies to three commands, the pushes, and why the connection was lost."""
    replies: list[Any] = []
    pushes: list[Any] = []
    losses: list[RespConnection] = []
    transport = Transport()
    still = StillLoop()
    wire = RespConnection(still.loop, Login(), BOUNDS, on_push=pushes.append, on_lost=losses.append)
    asyncio._set_running_loop(still.loop)
    try:
        wire.connection_made(transport)
        wire.data_received(HELLO_REPLY)
        for _ in range(ASKED):
            wire.send((b"GET", b"k"), 1.0, replies.append)
        for piece in pieces:
            if not transport.aborted:
                wire.data_received(piece)
        why = str(wire.lost or "")
        wire.connection_lost(None)
    finally:
        asyncio._set_running_loop(None)
    # hiredis makes dicts of maps and sets of sets: a member that cannot be hashed ends the connection.
    assert all("unhashable" in str(error) for error in still.told)
    assert len(replies) == ASKED
    assert losses == [wire]
    assert wire.pending == 0
    return replies, pushes, why


def _shown(value: Any) -> Any:
    if isinstance(value, WireError):
        return type(value).__name__, getattr(value, "text", str(value))
    if isinstance(value, dict):
        return [(_shown(key), _shown(member)) for key, member in value.items()]
    return list(map(_shown, value)) if isinstance(value, list) else value


def replies(data: bytes) -> None:
    pieces, stream = parted(data)
    one, other = _told([stream] if stream else []), _told(pieces)
    assert list(map(_shown, one[0])) == list(map(_shown, other[0]))
    assert repr(one[1:]) == repr(other[1:])
    try:
        right, all_of_it = by_the_book(stream)
    except Broken:
        return
    told = [reply for reply in one[0] if not isinstance(reply, WireError) or isinstance(reply, ReplyError)]
    assert list(map(_shown, told)) == list(map(_shown, right[:ASKED]))
    if all_of_it:
        assert bool(one[2]) == (len(right) > ASKED)


# -- stored values -------------------------------------------------------------------------------------


def stored(data: bytes) -> None:
    """A value is a miss, or an answer that is whole, the same when it is stored again."""
    kind, value = flagged(data)
    if kind & 1:
        value = _kept(value, usage=bool(kind & 2))
    found = Reader().read(b"k", value)
    if found is None:
        return
    again = msgspec.msgpack.encode(found)
    reader = Reader()
    assert reader.read(b"k", again) == reader.read(b"k", again) == found
    if found.kind == "whole":
        _whole_body(found.body)
    else:
        for view in (found.body, found.body if found.cut is None else found.body[: found.cut] + found.tail):
            _whole_stream(unchunks(view))
    _landed(found)


def _kept(stream: bytes, *, usage: bool) -> bytes:
    """As the gateway stores a stream of these frames."""
    frames = Framer(1 << 20).feed(stream)
    full = list(map(chunk, frames))
    plain = full
    if usage:
        view = UsageStripper()
        plain = [chunk(one) for frame in frames for one in view.feed(frame)] + list(map(chunk, view.end()))
    body, cut, tail = stream_views(full, plain)
    found = Stored("stream", 1.0, body, cut, tail, "text/event-stream", 3, 4)
    assert found.body == b"".join(full)
    assert (body if cut is None else body[:cut] + tail) == b"".join(plain)
    return msgspec.msgpack.encode(found)


def _whole_stream(frames: list[bytes]) -> None:
    assert is_done(frames[-1])
    assert not any(map(is_done, frames[:-1]))
    ended: dict[int, Any] = {}
    for frame in frames[:-1]:
        members = lenient_json(data_of(frame))
        choices = members.get("choices") if isinstance(members, dict) else None
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict) and choice.get("finish_reason"):
                ended[choice.get("index") or 0] = choice["finish_reason"]
    assert ended, "no choice has ended"
    assert any(reason in REASONS for reason in ended.values() if isinstance(reason, str))


def _whole_body(body: bytes) -> None:
    try:
        members = json.loads(body)
    except RecursionError:
        return
    assert isinstance(members, dict)
    assert not members.get("error")
    if any(isinstance(datum, dict) and datum.get("embedding") for datum in members.get("data") or ()):
        return
    assert members["choices"]
    assert all(choice["finish_reason"] in REASONS for choice in members["choices"])


def _landed(found: Stored) -> None:
    """What lands of it is that body; nothing is raised."""
    for mode in (Mode.STREAM, Mode.WHOLE):
        body = b'{"messages":[]}'
        spec = FlightSpec(
            "POST", "/", body, mode, "r", key=b"k", api_request=decode("chat", body), usage_added=True
        )
        flight = Flight(spec, lambda: 1.0)
        if not replay(flight, found):
            assert not flight.ended
            continue
        assert flight.ended
        assert flight.error is None
        if flight.mode is Mode.WHOLE:
            json.loads(b"".join(flight.log))
        else:
            assert b"".join(flight.log) == found.body
            assert b"".join(flight.log_without_usage) == (
                found.body if found.cut is None else found.body[: found.cut] + found.tail
            )


REPLY_WORDS: Final = (
    *(b"\r\n", b"$5\r\nhello\r\n", b"$-1\r\n", b"*2\r\n", b":1\r\n", b"+OK\r\n", b"-ERR no\r\n", b"$0\r\n\r\n"),
    *(b"*-1\r\n", b">2\r\n", b"%1\r\n", b"~1\r\n", b",1.5\r\n", b"#t\r\n", b"_\r\n", b"(123\r\n", b"|1\r\n"),
    *(b"$2147483647\r\n", b"*1000000\r\n", b"-LOADING x\r\n", b"*1\r\n*1\r\n", b"=7\r\ntxt:abc\r\n"),
)
STORED_WORDS: Final = (
    *(b"\xa6stream", b"\xa5whole", b"\xc0", b"\xc4", b"\xc5", b"\x98", b"data: [DONE]\n\n", b"\r\n", b"e\r\n"),
    *(b'"finish_reason":"stop"', b'"finish_reason":null', b'"index":1', b'"error":{', b'"usage":{', b"0\r\n\r\n"),
    *(b"\xb1text/event-stream", b"\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00", b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff"),
)
TARGETS: Final = {
    "replies": Target(replies, "any cut gives the same replies, those of a reader by the book", REPLY_WORDS),
    "stored": Target(stored, "a miss, or whole by json.loads and the same when it is stored again", STORED_WORDS),
}

"""Owns the targets of what engines say: the framer, chunks, one frame's meaning, the feeder, the fold, the split.
Must not know sockets. Each compares with a reader of its own, or with the same bytes cut otherwise.
Called by the tests and by the driver."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

from proxy.errors import Code, GatewayError
from proxy.flights.flight import Flight
from proxy.flights.ingest import Callbacks, Ingest, StreamLimits, Timeouts
from proxy.flights.phase import Phase
from proxy.flights.spec import FlightSpec, Mode
from proxy.wire.choices import Part, StreamSplit, split_body
from proxy.wire.fold.folding import Unfoldable, fold
from proxy.wire.frames import FINISH, FrameTemplate, UsageStripper, has_content, is_error, usage_of
from proxy.wire.openai import Endpoint, decode
from proxy.wire.sse import BOM, ChunkCheck, Framer, chunk, data_of, encode, is_done, unchunks
from proxy.wire.whole import REASONS, UNFINISHED, take_event
from tests.fuzz.kit import StillLoop, Target, flagged, lenient_json, parted

MAX: Final = 1 << 20
_ERROR: Final = re.compile(rb"(?:^|[\r\n]|^\xef\xbb\xbf)event: ?error(?:[\r\n]|$)")
SMALL: Final = 24
GOOD: Final = chunk(b"data: a\n\n") + chunk(b"data: [DONE]\n\n")
SSE: Final = [("content-type", "text/event-stream; charset=utf-8")]
_LINES: Final = re.compile(rb"\r\n|\n|\r")


def browser(stream: bytes) -> list[bytes]:
    """The data of each event that a browser would dispatch, line by line as the WHATWG standard says it."""
    events: list[bytes] = []
    values: list[bytes] = []
    for line in _LINES.split(stream.removeprefix(BOM))[:-1]:
        if not line:
            if values:
                events.append(b"\n".join(values))
            values = []
            continue
        name, colon, value = line.partition(b":")
        if name == b"data":
            values.append(value[1:] if colon and value[:1] == b" " else value)
    return events


def framed(pieces: Iterable[bytes], most: int) -> tuple[list[bytes], bytes] | None:
    """The frames and the rest; None where one is too large."""
    framer = Framer(most)
    try:
        return [frame for piece in pieces for frame in framer.feed(piece)], framer.rest
    except GatewayError as e:
        assert e.code is Code.UPSTREAM_TOO_LARGE
        return None


def sse(data: bytes) -> None:
    pieces, stream = parted(data)
    found = framed([stream], MAX)
    assert found is not None
    assert framed(pieces, MAX) == found
    if data[:1] >= b"\x80" and len(stream) <= 200:
        assert framed([bytes([byte]) for byte in stream], MAX) == found
    frames, rest = found
    assert b"".join(frames) + rest == stream
    small = any(len(frame) > SMALL for frame in (*frames, rest))
    assert framed(pieces, SMALL) == (None if small else found)
    if BOM not in stream[3:]:
        said = [text for frame in frames if (text := data_of(frame)) is not None]
        read = browser(stream)
        # Our CR after LF waits for what follows, where a browser's line has ended.
        assert said == read or (stream.endswith(b"\r") and said == read[:-1])
    wired = b"".join(map(chunk, frames))
    assert unchunks(wired) == frames
    for frame in frames:
        text = data_of(frame)
        assert is_done(frame) == (text is not None and text.strip() == b"[DONE]")
        if text is not None:
            assert data_of(encode(text)) == text


def chunks(data: bytes) -> None:
    try:
        frames: list[bytes] | None = unchunks(data)
    except ValueError:
        frames = None
    if frames is not None:
        assert b"".join(map(chunk, frames)) == data
    check = ChunkCheck()
    assert check(data) == frames
    assert check(GOOD) == [b"data: a\n\n", b"data: [DONE]\n\n"], "what came before must not matter"


# -- what one frame says -------------------------------------------------------------------------------


def frames(data: bytes) -> None:
    """A twin of a frame says nothing but more text; who did not ask for usage loses nothing else."""
    given = Framer(MAX).feed(data)
    twins, view = FrameTemplate(), UsageStripper()
    seen: list[bytes] = []
    for frame in given:
        content, usage = has_content(frame), usage_of(frame)
        plain = usage is None and not is_error(frame) and not is_done(frame)
        if frame in twins:
            assert content
            assert plain
            assert FINISH.search(frame) is None
        elif content and plain:
            twins.learn(frame)
        seen += view.feed(frame)
    seen += view.end()
    assert not view.held
    first = next((i for i, frame in enumerate(given) if _forced(frame)), len(given))
    kept = [frame for frame in given[:first] if not _only_usage(frame)] + given[first:]
    # Nothing is lost, repeated or made up; what goes back to a finish is put at its end.
    # A usage chunk that is not UTF-8, or has half an emoji, is no JSON to us and goes out as it came.
    other = Counter(frame for frame in seen if not (_only_usage(frame) and _odd(frame)))
    other.subtract(kept)
    grown, missed = +other, +Counter({frame: -count for frame, count in other.items()})
    assert grown.total() == missed.total()
    for one in grown.elements():
        before = next((frame for frame in missed if missed[frame] and _grown(one, frame)), None)
        assert before is not None, one
        missed[before] -= 1


def _only_usage(frame: bytes) -> bool:
    members = lenient_json(data_of(frame))
    return isinstance(members, dict) and members.get("choices") == [] and members.get("usage") is not None


def _forced(frame: bytes) -> bool:
    """Usage that nobody asked for: from here on everything is seen as it came."""
    members = lenient_json(data_of(frame))
    given = isinstance(members, dict) and members.get("usage") is not None and "choices" in members
    return given and not _only_usage(frame) and not _odd(frame) and FINISH.search(frame) is None


def _odd(frame: bytes) -> bool:
    try:
        return "\\u" in frame.decode()
    except UnicodeDecodeError:
        return True


def _grown(one: bytes, frame: bytes) -> bool:
    """Whether it is the frame with members put at the end of its object."""
    data, old = data_of(one), data_of(frame)
    if data is None or old is None or FINISH.search(frame) is None:
        return False
    more, less = lenient_json(data), lenient_json(old)
    if not isinstance(more, dict) or not isinstance(less, dict):
        return False
    return {name: more.get(name) for name in less} == less and set(more) - set(less) <= MOVED


MOVED: Final = {"system_fingerprint", "timings"}


# -- an answer into a flight ---------------------------------------------------------------------------


def _plan(kind: int) -> tuple[FlightSpec, int, Endpoint]:
    asked = kind % 3 + 1
    endpoint: Endpoint = ("chat", "completions", "embeddings")[kind // 3 % 3]
    prompt = {"chat": b'"messages":[]', "completions": b'"prompt":"x"', "embeddings": b'"input":"x"'}[endpoint]
    body = b'{"model":"m",%b,"n":%d}' % (prompt, asked)
    api_request = decode(endpoint, body)
    return FlightSpec("POST", "/", body, Mode.STREAM, "r", key=b"k", api_request=api_request), asked, endpoint


def fed(
    spec: FlightSpec, mode: Mode, pieces: Iterable[bytes], *, closed: bool
) -> tuple[Flight, Ingest, list[Any]]:
    """The flight and the feeder after these reads."""
    endings: list[Any] = []
    flight = Flight(spec, lambda: 1.0)
    flight.mode = mode
    flight.enter(Phase.CONNECTING)
    flight.enter(Phase.PREFILL)
    limits = StreamLimits(first_token=0, token=0, total=0)
    ended: list[GatewayError | None] = []

    def on_done(error: GatewayError | None) -> None:
        ended.append(error)
        if error is not None:
            flight.fail(error)

    ingest = Ingest(flight, Timeouts(limits, StillLoop().loop), Callbacks(on_done))
    ingest.head(200, SSE if mode is Mode.STREAM else [("content-type", "application/json")])
    for piece in pieces:
        ingest.body(piece)
    if closed and not ended:
        ingest.end()
    assert len(ended) == 1
    endings += ended
    return flight, ingest, endings


BROKEN: Final = (Code.UPSTREAM_TRUNCATED, Code.UPSTREAM_INCOMPLETE, Code.UPSTREAM_ERROR_FRAME)


def ingest(data: bytes) -> None:
    """A stream into a flight: the same however it is cut, and whole only where its content is."""
    kind, rest = flagged(data)
    pieces, stream = parted(rest)
    spec, asked, _ = _plan(kind % 6)
    flight, one, (error,) = fed(spec, Mode.STREAM, [stream] if stream else [], closed=True)
    other, two, (error_too,) = fed(spec, Mode.STREAM, pieces, closed=True)
    assert one.clean == two.clean
    assert (error is None) == (error_too is None) or not one.clean
    said = _without_comments(stream)
    for which, failed in ((flight, error), (other, error_too)):
        passed = which.raw_frames()
        if b"abort" in said:  # readers do not get that end, and get what comes after it
            left = iter(Framer(MAX).feed(said))
            assert all(frame in left for frame in passed), "in another order, or not the engine's"
        else:
            assert said.startswith(b"".join(passed))
        assert not any(map(is_done, passed[:-1]))
        if one.clean:
            assert is_done(passed[-1])
        elif passed and is_done(passed[-1]):
            assert failed is None
            assert _more(passed[:-1], asked), "an end after an error"
    for failed in (error, error_too):
        assert failed is None or failed.code in BROKEN
    if error is not None or error_too is not None:
        return  # of one read more is known at once: it may fail sooner, while it can be asked for elsewhere
    assert flight.log == other.log
    assert (flight.usage, flight.content_events) == (other.usage, other.content_events)
    frames = flight.raw_frames()
    if is_done(frames[-1]):
        ended = {index: reason for frame in frames for index, reason in _finishes(frame) if reason}
        assert set(range(asked)) <= ended.keys(), "an open choice in a whole answer"
        _check_ends([ended[index] for index in range(asked)], clean=one.clean)


def _more(frames: Iterable[bytes], asked: int) -> bool:
    """Whether an event is none of what was asked for."""
    ended: dict[int, str] = {}
    return any(take_event(frame, ended, asked, content=has_content(frame)) for frame in frames)


def _without_comments(stream: bytes) -> bytes:
    """The events of a stream that have data or name an error: engines send others to keep a connection open."""
    framer = Framer(len(stream) + 1)
    return b"".join(frame for frame in framer.feed(stream) if data_of(frame) is not None or _ERROR.search(frame))


def _finishes(frame: bytes) -> list[tuple[int, Any]]:
    members = lenient_json(data_of(frame))
    choices = members.get("choices") if isinstance(members, dict) else None
    found = (choice for choice in choices or () if isinstance(choice, dict))
    ends = [(choice.get("index") or 0, choice.get("finish_reason")) for choice in found]
    return [(index, reason) for index, reason in ends if isinstance(index, int)]


def whole(data: bytes) -> None:
    """One body into a flight: the same however it is cut, a success only where its content is whole."""
    kind, rest = flagged(data)
    pieces, body = parted(rest)
    spec, asked, endpoint = _plan(kind % 9)
    flight, one, (error,) = fed(spec, Mode.WHOLE, [body] if body else [], closed=True)
    other, two, (error_too,) = fed(spec, Mode.WHOLE, pieces, closed=True)
    assert (error and error.code, one.clean, b"".join(flight.log)) == (
        error_too and error_too.code,
        two.clean,
        b"".join(other.log),
    )
    if error is not None:
        assert error.code in (Code.UPSTREAM_PROTOCOL, Code.UPSTREAM_INCOMPLETE)
        return
    assert b"".join(flight.log) == body
    try:
        found = json.loads(body)
    except (UnicodeDecodeError, RecursionError):
        return  # in a text that is passed on as it came
    except ValueError as e:
        assert "escape" in str(e) or "control character" in str(e), e  # the same
        return
    assert isinstance(found, dict)
    assert not found.get("error")
    if endpoint == "embeddings":
        assert len(found["data"]) >= 1
        assert all(datum["embedding"] for datum in found["data"])
        return
    ended = {choice.get("index") or 0: choice["finish_reason"] for choice in found["choices"]}
    assert set(range(asked)) <= ended.keys()
    _check_ends(ended.values(), clean=one.clean)


def _check_ends(reasons: Iterable[str], *, clean: bool) -> None:
    """What is passed on has ended; what may be stored, by reasons that are known."""
    assert REASONS.issuperset(reasons) if clean else UNFINISHED.isdisjoint(reasons)


# -- the fold and the split ----------------------------------------------------------------------------


def folded(data: bytes) -> None:
    kind, stream = flagged(data)
    endpoint = ("chat", "completions")[kind % 2]
    given = Framer(MAX).feed(stream)
    try:
        body = fold(given, endpoint, forced_tool=bool(kind & 2))  # type: ignore[arg-type]
    except Unfoldable:
        return
    found = json.loads(body)
    texts: dict[int, str] = {}
    for frame in given:
        if is_done(frame) or data_of(frame) is None:
            continue
        for choice in lenient_json(data_of(frame)).get("choices") or ():
            said = choice["delta"].get("content") if endpoint == "chat" else choice["text"]
            texts[choice["index"]] = texts.get(choice["index"], "") + (said or "")
    answered = {
        choice["index"]: (choice["message"]["content"] if endpoint == "chat" else choice["text"]) or ""
        for choice in found["choices"]
    }
    assert answered == texts
    assert list(answered) == sorted(answered)


def split(data: bytes) -> None:
    """One answer for several: each gets its own choices, all of their text, numbered from 0, and one end."""
    kind, stream = flagged(data)
    counts = ((1, 1), (2, 1), (1, 2, 1), (3,))[kind % 4]
    usage = bool(kind & 4)
    _split_stream(stream, counts, usage=usage)
    with suppress(Unfoldable):
        for own, count in zip(
            split_body(stream, _parts(counts, usage=usage), request_id="r0"), counts, strict=True
        ):
            if own is not None:
                members = lenient_json(own[0])
                assert [choice["index"] for choice in members["choices"]] == list(range(count))
                assert all(choice["finish_reason"] in REASONS for choice in members["choices"])


def _parts(counts: tuple[int, ...], *, usage: bool) -> list[Part]:
    return [Part(sum(counts[:n]), count, usage, f"r{n}") for n, count in enumerate(counts)]


def _split_stream(stream: bytes, counts: tuple[int, ...], *, usage: bool) -> None:
    parts = _parts(counts, usage=usage)
    splitting = StreamSplit(parts, request_id="r0")
    given: list[list[bytes]] = [[] for _ in parts]
    came: dict[int, str] = {}
    try:
        for frame in Framer(MAX).feed(stream):
            open_ = [not part.ended for part in parts]
            found = splitting.feed(frame)
            for index, text in [] if is_done(frame) or is_error(frame) else _texts(frame):
                n = next(n for n, part in enumerate(parts) if part.first <= index < part.first + part.count)
                if open_[n]:
                    came[index] = came.get(index, "") + text
            for n, own, _ in found:
                assert open_[n], "something after the end"
                given[n].append(own)
    except Unfoldable:
        return
    for n, (part, theirs) in enumerate(zip(parts, given, strict=True)):
        ends = [at for at, frame in enumerate(theirs) if is_done(frame)]
        assert ends in ([], [len(theirs) - 1]), n
        assert bool(ends) == part.ended
        if not part.ended:
            continue
        told: dict[int, str] = {}
        for frame in theirs[:-1]:
            for index, text in [] if is_error(frame) else _texts(frame):
                assert 0 <= index < part.count
                told[part.first + index] = told.get(part.first + index, "") + text
        mine = range(part.first, part.first + part.count)
        assert told == {index: text for index, text in came.items() if index in mine}


def _texts(frame: bytes) -> list[tuple[int, str]]:
    members = lenient_json(data_of(frame))
    found = []
    for choice in members.get("choices") or ():
        said = choice.get("delta", choice)
        text = said.get("content", said.get("text")) if isinstance(said, dict) else None
        found.append((choice.get("index", 0), text if isinstance(text, str) else ""))
    return found


_MEMBERS: Final = rb"""
data: |data:|event: error|[DONE]|: |"choices":[|"index":0|"index":1|"delta":{|"content":"|null|[]|{}|\u|\|"
"finish_reason":"stop"|"finish_reason":null|"finish_reason":"abort"|"usage":{|"prompt_tokens":|"completion_tokens":
"error":{|"system_fingerprint":"|"tool_calls":[|"arguments":"|"text":"|"message":{|"logprobs":null|-1|1e9|1.0
99999999999999999999|"data":[|"embedding":[|"object":"error"|"role":"assistant"|"id":"chatcmpl-r0"|"vllm-0.32.0-a"
"""
WORDS: Final = (
    *(b"\n\n", b"\r\n\r\n", b"\r\r", b"data: [DONE]\n\n", BOM),
    *_MEMBERS.strip().replace(b"\n", b"|").split(b"|"),
)
CHUNK_WORDS: Final = (b"\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n", b"00", b";a", b"A", b"a", b"fff", b"\r\n\r\n")

TARGETS: Final = {
    "sse": Target(sse, "any cut gives the same frames, which lose no byte; data as a browser has it", WORDS, 400),
    "chunks": Target(chunks, "two readers of stored chunks agree; what they take is written alike", CHUNK_WORDS),
    "frames": Target(frames, "a twin says nothing but text; without usage nothing else is lost", WORDS),
    "feeder": Target(ingest, "any cut gives the same flight; whole only where json.loads finds it so", WORDS),
    "whole": Target(whole, "any cut gives the same flight; a success is whole by json.loads", WORDS),
    "fold": Target(folded, "Unfoldable, or each choice's text is that of its chunks by json.loads", WORDS),
    "split": Target(split, "Unfoldable, or each client has all of its choices' text, and one end", WORDS),
}

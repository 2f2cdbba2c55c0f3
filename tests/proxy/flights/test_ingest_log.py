"""A feeder's frames and its log's bound: what is learned of frames, kept of headers, and asked for once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy.flights.flight import FREE, STEP
from proxy.flights.ingest import StreamLimits, Timeouts
from proxy.flights.spec import Mode
from proxy.wire.sse import chunk
from tests.kit.clock import virtual
from tests.proxy.flights.test_ingest_answers import DONE, JSON, SSE, STOP, Fed, frame


@virtual
async def test_a_frame_like_the_last_one_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fed, looked = Fed(), list[bytes]()
    fed.ingest.head(200, SSE)
    fed.ingest.body(frame("x"))
    fed.flight.look = looked.append
    fed.ingest.body(frame("y"))
    fed.ingest.body(frame("z") + frame("w"))
    assert (looked, fed.flight.content_events) == ([], 4)
    fed.ingest.body(STOP)
    assert looked == [STOP]
    fed.ingest.close()


@virtual
async def test_comments_between_frames_take_nothing_from_the_read_they_come_in() -> None:
    fed = Fed()
    fed.ingest.head(200, SSE)
    fed.ingest.body(frame("x") + b": one\n\n" + frame("y") + b": two\n\n" + STOP)
    assert fed.flight.log == [chunk(frame("x")), chunk(frame("y")), chunk(STOP)]
    fed.ingest.body(b"event: ping\n\n" + DONE)
    assert fed.ends == [None]


@virtual
async def test_a_log_asks_for_more_a_step_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from proxy.flights.flight import Flight

    asked: list[int] = []
    grow = Flight.grow

    def counted(flight: Flight, most: int) -> Any:
        asked.append(flight.size)
        return grow(flight, most)

    monkeypatch.setattr(Flight, "grow", counted)
    fed = Fed(Mode.WHOLE, limits=StreamLimits())
    fed.ingest.head(200, JSON)
    fed.ingest.body(b"x" * FREE)
    assert asked == []
    for _ in range(3):
        fed.ingest.body(b"x")
    assert asked == [FREE + 1]
    fed.ingest.body(b"x" * STEP)
    assert asked == [FREE + 1, FREE + 3 + STEP]
    fed.ingest.close()


@virtual
async def test_a_stream_s_head_has_no_length_at_its_end_and_a_body_s_comments_are_bytes() -> None:
    fed = Fed()
    fed.ingest.head(200, [*SSE, ("content-length", "99")])
    fed.ingest.body(frame("x") + DONE)
    assert fed.flight.head is not None
    assert (fed.flight.head.status, fed.flight.head.length) == (200, None)
    plain = Fed(Mode.RAW)
    plain.ingest.head(200, [("content-type", "text/plain")])
    plain.now = 3.0
    plain.ingest.body(b": not a comment here")
    assert (plain.ingest.last, plain.flight.times.first) == (3.0, 3.0)
    plain.ingest.close()


@virtual
async def test_by_themselves_clocks_lose_no_time_and_the_bounds_are_what_they_are_documented_to_be() -> None:
    watch = Timeouts(StreamLimits(), asyncio.get_running_loop())
    assert watch.lost(0.0) == 0.0
    limits = StreamLimits()
    assert (limits.first_token, limits.token, limits.total) == (300.0, 60.0, 1800.0)
    assert (limits.frame, limits.flight) == (4_194_304, 67_108_864)
    watch.close()


@virtual
async def test_a_stream_s_usage_is_the_flight_s() -> None:
    fed = Fed()
    fed.ingest.head(200, SSE)
    usage = b'{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}'
    fed.ingest.body(frame("x") + b'data: {"choices":[],"usage":%b}\n\n' % usage + DONE)
    assert fed.flight.usage is not None
    assert (fed.flight.usage.prompt_tokens, fed.flight.usage.completion_tokens) == (3, 4)


@virtual
async def test_a_flight_that_is_traced_shows_its_frames_that_say_something() -> None:
    class Trace:
        def __init__(self) -> None:
            self.seen: list[bytes] = []

        def frame(self, frame: bytes) -> None:
            self.seen.append(frame)

        def ended(self, flight: object) -> None:
            self.seen.append(b"ended")

    fed, trace = Fed(), Trace()
    fed.flight.trace = trace  # type: ignore[assignment]
    fed.ingest.head(200, SSE)
    fed.ingest.body(frame("x"))
    fed.ingest.body(frame("y"))
    fed.ingest.body(STOP + DONE)
    assert trace.seen == [frame("x"), STOP, b"ended"]


@virtual
async def test_a_place_at_the_engine_is_told_as_one_of_ours() -> None:
    fed = Fed(Mode.RAW, key=None)
    fed.flight.backend = "http://engine.internal:8000"
    fed.ingest.head(302, [("location", "http://engine.internal:8000/v1/x"), ("x-own", "1")])
    assert fed.flight.head is not None
    assert fed.flight.head.headers == (("location", "/v1/x"), ("x-own", "1"))
    fed.ingest.close()

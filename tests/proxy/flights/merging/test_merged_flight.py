"""The carrier as an object: what it hands its riders, which of them it leaves, and what one of them raises."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from msgspec import Raw

from proxy.errors import Code, GatewayError
from proxy.flights.flight import FREE, Flight, Subscriber
from proxy.flights.memory import Memory
from proxy.flights.merging.merged_flight import MergedFlight
from proxy.flights.phase import Phase
from proxy.flights.spec import FlightSpec, Head, Mode, QueueState
from proxy.wire.openai import decode
from tests.kit.clock import virtual

DONE = b"data: [DONE]\n\n"


def member(
    mode: Mode = Mode.STREAM, *, usage: bool = False, memory: Memory | None = None, kind: type[Flight] = Flight
) -> Flight:
    options = b',"stream":true,"stream_options":{"include_usage":true}' if usage else b""
    api_request = decode("chat", b'{"messages":[]%b}' % options)
    made = kind(FlightSpec("POST", "/", b"", mode, "own", api_request=api_request), lambda: 4.0, memory)
    made.subscribers.add(Subscriber(made))
    return made


class Ride:
    """A carrier of these riders at its engine, and who was told of as ended."""

    def __init__(self, *members: Flight, limit: int = 1 << 20, counts: tuple[int, ...] = ()) -> None:
        self.members, self.ended = list(members), list[Flight]()
        spec = FlightSpec("POST", "/", b"", members[0].spec.mode, "all", parts=len(members))
        pairs = list(zip(members, counts or (1,) * len(members), strict=True))
        self.merged = MergedFlight(
            spec, QueueState(), pairs, limit=limit, on_member=self._ended, fingerprint=Raw(b'"f"')
        )
        self.merged.clock = lambda: 9.0
        self.merged.backend, self.merged.head = "e0", Head(200)
        self.merged.enter(Phase.CONNECTING)
        self.merged.enter(Phase.PREFILL)
        self.breaks: Exception | None = None

    def _ended(self, flight: Flight) -> None:
        self.ended.append(flight)
        if self.breaks is not None:
            raise self.breaks


def part(index: int, content: str = "a", finish: str | None = None) -> bytes:
    choice = {"index": index, "delta": {"content": content}, "finish_reason": finish}
    return b"data: %b\n\n" % json.dumps({"id": "all", "choices": [choice]}).encode()


def words() -> list[str]:
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
    return told


def fails(*given: Any, **more: Any) -> Any:
    raise ZeroDivisionError


def test_it_is_charged_as_its_first_rider_is_and_knows_the_engine_s_fingerprint() -> None:
    memory = Memory(1 << 20)
    ride = Ride(member(memory=memory), member())
    assert (ride.merged.memory, ride.merged.divides, Flight.divides) == (memory, True, False)
    assert (ride.merged.fingerprint, ride.merged.members, ride.merged.lacks_choices) == (
        Raw(b'"f"'),
        ride.members,
        True,
    )


def test_what_comes_goes_to_whose_it_is_and_is_served_at_once() -> None:
    ride = Ride(member(), member())
    one, other = ride.members
    ride.merged.append_token(part(1))
    assert (one.phase, other.phase, len(other.log)) == (Phase.QUEUED, Phase.STREAMING, 1)
    assert (other.head, other.backend, other.content_events, other.times.first) == (Head(200), "e0", 1, 9.0)
    assert b'"index":0' in other.log[0]
    ride.merged.clock = lambda: 11.0
    ride.merged.append_token(part(1, "b"))
    assert (other.content_events, other.times.first) == (2, 9.0)
    ride.merged.append_token(part(1, "", "stop"))
    assert (other.phase, other.times.last, ride.ended) == (Phase.LANDED, 11.0, [other])
    assert other.usage is not None
    assert ride.merged.members == [one, None]
    assert ride.merged.take_untouched() == [one]
    assert (ride.merged.members, ride.merged.lacks_choices) == ([None, None], False)


def test_what_cannot_be_told_apart_is_broken_and_nothing_more_is_taken() -> None:
    ride = Ride(member(), member())
    ride.merged.add(part(7))
    assert ride.merged.broken is not None
    assert ride.merged.broken.code is Code.UPSTREAM_PROTOCOL
    ride.merged.append_token(part(0))
    assert [one.phase for one in ride.members] == [Phase.QUEUED] * 2
    ride.merged.fail_members(ride.merged.broken)
    assert [one.error for one in ride.members] == [ride.merged.broken] * 2
    assert (ride.ended, ride.merged.members) == (ride.members, [None, None])


def test_who_left_gets_nothing_and_the_last_one_is_told() -> None:
    ride = Ride(member(), member())
    one, other = ride.members
    assert not ride.merged.drop(one)
    assert not ride.merged.drop(one)
    ride.merged.append_token(part(0))
    assert one.phase is Phase.QUEUED
    assert ride.merged.drop(other)


@virtual
async def test_a_rider_whose_part_raises_ends_alone_with_a_500(monkeypatch: pytest.MonkeyPatch) -> None:
    told = words()
    for where in ("add", "flush", "land", "fail"):

        class Broken(Flight):
            pass

        ride = Ride(member(kind=Broken), member())
        one, other = ride.members
        monkeypatch.setattr(Broken, where, fails)
        if where == "fail":
            ride.merged.fail_members(GatewayError(Code.UPSTREAM_TRUNCATED, "cut"))
        else:
            ride.merged.add(part(0, "a", "stop" if where == "land" else None))
            ride.merged.append_token(part(1))
        assert (one.phase, one.finished) == (Phase.FAILED, True)
        assert one.error is not None
        assert one.error.code is Code.INTERNAL
        assert ride.ended[0] is one
        assert ride.merged.members[0] is None
        if where != "fail":
            assert (other.phase, ride.ended) == (Phase.STREAMING, [one])
    assert told == ["a member's part of an answer"] * 4


@virtual
async def test_one_that_cannot_be_told_of_a_rider_s_end_has_the_others_served() -> None:
    told, ride = words(), Ride(member(), member())
    ride.breaks = ZeroDivisionError()
    ride.merged.fail_members(GatewayError(Code.UPSTREAM_TRUNCATED, "cut"))
    assert [one.phase for one in ride.members] == [Phase.FAILED] * 2
    assert told == ["a member's part of an answer", "a member that has ended"] * 2
    assert ride.ended == [ride.members[0]] * 2 + [ride.members[1]] * 2


@pytest.mark.parametrize("limit", [100, FREE + 100])
def test_a_rider_s_log_has_its_bound(limit: int) -> None:
    ride = Ride(member(), member(), limit=limit)
    ride.merged.append_token(part(0, "x" * max(0, limit - 200)))
    assert (ride.members[0].error is None) is (ride.members[0].size <= limit)
    ride.merged.append_token(part(0, "x" * 200))
    assert ride.members[0].error is not None
    assert (ride.members[0].error.code, ride.ended) == (Code.UPSTREAM_TOO_LARGE, ride.members[:1])
    ride.merged.append_token(part(0))
    assert ride.members[1].phase is Phase.QUEUED


def body_of(*indexes: int) -> bytes:
    said = [{"index": n, "message": {"content": f"c{n}"}, "finish_reason": "stop"} for n in indexes]
    return json.dumps(
        {"id": "all", "choices": said, "usage": {"prompt_tokens": 3, "completion_tokens": 8}}
    ).encode()


@pytest.mark.parametrize("status", [200, 503])
@virtual
async def test_one_body_is_taken_apart_and_what_one_rider_s_part_raises_is_its_own(status: int) -> None:
    told, ride = words(), Ride(member(Mode.WHOLE), member(Mode.WHOLE), member(Mode.WHOLE))
    ride.merged.head = Head(status, (("x", "y"),))
    ride.merged.append_body(body_of(0, 1, 2))
    ride.merged.drop(ride.members[1])
    ride.members[0].phase = Phase.LANDED  # it cannot land once more
    ride.merged.enter(Phase.STREAMING)
    ride.merged.finish_members()
    last = ride.members[2]
    assert (last.phase, last.mode, last.backend, last.times.first, last.times.last) == (
        Phase.LANDED, Mode.WHOLE, "e0", 9.0, 9.0
    )  # fmt: skip
    assert last.head == Head(status, (("x", "y"),), len(b"".join(last.log)))
    assert (last.usage is not None) is (status == 200)
    assert (ride.members[1].phase, told) == (Phase.QUEUED, ["a member's part of an answer"])
    assert ride.merged.members == [None, None, None]


def test_at_the_end_of_a_stream_those_land_whose_choices_are_there() -> None:
    ride = Ride(member(usage=True), member())
    ride.merged.append_token(part(0, "a", "stop"))
    ride.merged.append_token(part(1))
    assert ride.members[0].phase is Phase.STREAMING, "its usage is to come"
    ride.merged.finish_members()
    assert (ride.members[0].phase, ride.members[1].phase) == (Phase.LANDED, Phase.STREAMING)
    assert ride.ended == ride.members[:1]
    early = Ride(member(), member())
    early.merged.finish_members()
    assert early.merged.phase is Phase.PREFILL, "nothing has come"

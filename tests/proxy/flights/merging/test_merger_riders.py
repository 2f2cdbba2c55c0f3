"""Who rides with whom, as flights in memory: what a rider is told, who is asked alone, what the merger forgets."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import Raw

from proxy.errors import Code, GatewayError
from proxy.flights.flight import Flight, Subscriber
from proxy.flights.merging.merged_flight import MergedFlight
from proxy.flights.merging.merger import Merger
from proxy.flights.merging.twins import RECENT_SECONDS
from proxy.flights.phase import Phase
from proxy.flights.spec import REQUEST_ID, FlightSpec, Head, Mode, QueueState
from proxy.wire.openai import decode

JSON = (("content-type", "application/json"),)
CUT = GatewayError(Code.UPSTREAM_TRUNCATED, "cut")
SHORT = GatewayError(Code.UPSTREAM_INCOMPLETE, "short")


def flight(n: int | None = None, *, stream: bool = False, at: float = 0.0, **more: Any) -> Flight:
    fields: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    body = json.dumps(fields | ({"n": n} if n else {}) | ({"stream": True} if stream else {})).encode()
    mode = Mode.STREAM if stream else Mode.WHOLE
    headers = [(REQUEST_ID, "own"), ("X-Other", "o")]
    api_request = decode("chat", body)
    spec = FlightSpec("POST", "/", body, mode, "own", api_request=api_request, headers=headers, **more)
    made = Flight(spec, lambda: at, queue_state=QueueState(merge=True))
    made.subscribers.add(Subscriber(made))
    return made


class Ridden:
    """A merger, and the riders that it has told of."""

    def __init__(self, most: int = 4, window: float = 0.0) -> None:
        self.ended: list[Flight] = []
        self.merger = Merger(most, limit=1 << 20, window=window, on_member=self.ended.append)

    def merged(self, *members: Flight, at: Phase = Phase.PREFILL) -> MergedFlight:
        made = self.merger.merge(members[0], members, "e0")
        assert isinstance(made, MergedFlight)
        made.backend = "e0"
        for phase in (Phase.CONNECTING, Phase.PREFILL, Phase.STREAMING):
            if made.phase is at:
                break
            made.enter(phase)
        return made


def test_the_one_request_is_for_all_of_them_under_an_id_that_is_nobody_s() -> None:
    ridden, members = Ridden(), [flight(2), flight(), flight()]
    merged = ridden.merged(*members)
    spec = merged.spec
    assert (merged.queue_state.merge, spec.many, spec.parts, spec.key) == (False, True, 4, None)
    assert json.loads(spec.body)["n"] == 4
    assert spec.request_id != "own"
    assert spec.headers == [(REQUEST_ID, spec.request_id), ("X-Other", "o")]
    for member in members:
        assert (member.carried_as, member.backend, member.spec.request_id) == (spec.request_id, "e0", "own")
        assert member.times.dispatched is not None
        assert {reader.verdict for reader in member.subscribers} == {"merged"}
        assert member in ridden.merger
    assert (len(ridden.merger), repr(ridden.merger)) == (3, "<Merger 3 members>")
    assert flight() not in ridden.merger


def test_as_many_ride_as_there_is_room_for_and_the_next_that_fits() -> None:
    ridden = Ridden(5)
    first, two, four, one, last = flight(2), flight(2), flight(4), flight(), flight()
    merged = ridden.merged(first, two, four, one, last)
    assert merged.members == [first, two, one]
    full = Ridden(4)
    assert full.merger.merge(first, [first, four], "e0") is first
    assert full.merger.merge(first, [two], "e0").spec.parts == 4


def test_one_with_no_twin_goes_up_as_it_is() -> None:
    alone, other = flight(), flight(stream=True)
    plain = Flight(FlightSpec("POST", "/", b"", Mode.RAW, "r"))
    for most, waiting in ((4, [alone, other, plain]), (1, [alone, flight()]), (4, [])):
        assert Ridden(most).merger.merge(alone, waiting, "e0") is alone
    assert Ridden().merger.merge(plain, [flight()], "e0") is plain
    assert alone.carried_as == ""
    ridden = Ridden()
    aboard = [flight(), flight()]
    ridden.merged(*aboard)
    assert ridden.merger.merge(alone, aboard, "e0") is alone, "those ride already"


def test_twins_are_expected_where_one_was_here_a_moment_ago_or_there_is_a_window() -> None:
    one = flight()
    merger = Ridden().merger
    assert [merger.may_have_twins(one, now) for now in (0.0, RECENT_SECONDS, 3 * RECENT_SECONDS)] == [
        False,
        True,
        False,
    ]
    assert Ridden(window=0.1).merger.may_have_twins(one, 0.0)
    assert not Ridden(1, window=0.1).merger.may_have_twins(one, 0.0)
    assert not Ridden(window=0.1).merger.may_have_twins(Flight(FlightSpec("POST", "/", b"", Mode.RAW, "r")), 0.0)
    assert not Ridden(window=0.1).merger.may_have_twins(flight(10**7), 0.0)
    assert Ridden(2, window=0.1).merger.may_have_twins(one, 0.0)


def test_the_last_to_leave_ends_the_one_request() -> None:
    ridden, members = Ridden(), [flight(), flight()]
    merged = ridden.merged(*members)
    assert ridden.merger.leave(members[0]) is None
    assert (merged.phase, merged.members, len(ridden.merger)) == (Phase.PREFILL, [None, members[1]], 1)
    assert ridden.merger.leave(members[0]) is None
    assert ridden.merger.leave(members[1]) is merged
    assert (merged.phase, len(ridden.merger)) == (Phase.CANCELLED, 0)


@pytest.mark.parametrize(("status", "refused_by"), [(400, "e0"), (422, "e0"), (499, ""), (404, "")])
def test_those_refused_together_are_asked_for_one_by_one(status: int, refused_by: str) -> None:
    ridden, members = Ridden(), [flight(), flight()]
    merged = ridden.merged(*members, at=Phase.STREAMING)
    merged.land(Head(status, JSON))
    assert ridden.merger.finish(merged, None) == (members, False)
    for member in members:
        assert (member.phase, member.queue_state.merge, member.carried_as) == (Phase.QUEUED, False, "")
        assert member.refused_by == refused_by
        assert {reader.verdict for reader in member.subscribers} == {"bypass"}
    assert (len(ridden.merger), ridden.ended, merged.members) == (0, [], [None, None])


def test_an_engine_s_own_failure_is_every_rider_s() -> None:
    ridden, members = Ridden(), [flight(), flight()]
    merged = ridden.merged(*members, at=Phase.STREAMING)
    merged.append_body(b'{"error":{}}')
    merged.land(Head(500, JSON))
    assert ridden.merger.finish(merged, None) == ([], False)
    assert [member.head and member.head.status for member in members] == [500, 500]
    assert ([member.log for member in members], ridden.ended) == ([[b'{"error":{}}']] * 2, members)
    assert ([member.usage for member in members], len(ridden.merger)) == ([None, None], 0)


def body_of(*indexes: int) -> bytes:
    choices = [
        {"index": n, "message": {"role": "assistant", "content": f"c{n}"}, "finish_reason": "stop"}
        for n in indexes
    ]
    usage = {"prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11}
    return json.dumps({"id": "i", "object": "chat.completion", "choices": choices, "usage": usage}).encode()


def test_each_rider_gets_its_choices_and_what_lacks_is_asked_for_alone() -> None:
    ridden, members = Ridden(), [flight(), flight(2), flight()]
    merged = ridden.merged(*members, at=Phase.STREAMING)
    merged.append_body(body_of(0, 1, 2))
    merged.land(Head(200, JSON))
    alone, few = ridden.merger.finish(merged, None)
    assert (list(alone), few, ridden.ended) == ([members[2]], True, members[:2])
    said = [json.loads(b"".join(member.log)) for member in members[:2]]
    assert [[one["message"]["content"] for one in body["choices"]] for body in said] == [["c0"], ["c1", "c2"]]
    for member in members[:2]:
        assert member.head is not None
        assert (member.phase, member.mode, member.backend) == (Phase.LANDED, Mode.WHOLE, "e0")
        assert member.head.length == len(b"".join(member.log))
        assert member.usage is not None
        assert (member.times.first, member.times.last) != (None, None)
    assert members[2].phase is Phase.QUEUED


def test_what_cannot_be_told_apart_fails_every_rider_with_that() -> None:
    ridden, members = Ridden(), [flight(), flight()]
    merged = ridden.merged(*members, at=Phase.STREAMING)
    merged.append_body(b"no JSON")
    merged.land(Head(200, JSON))
    alone, _ = ridden.merger.finish(merged, None)
    assert (list(alone), len(ridden.merger)) == (members, 0)
    assert merged.broken is not None
    assert merged.broken.code is Code.UPSTREAM_PROTOCOL


@pytest.mark.parametrize(
    ("error", "at", "alone"),
    [
        (CUT, Phase.STREAMING, True),
        (CUT, Phase.PREFILL, False),
        (SHORT, Phase.STREAMING, True),
        (SHORT, Phase.PREFILL, True),
        (GatewayError(Code.UPSTREAM_TOO_LARGE, "much"), Phase.STREAMING, False),
    ],
)
def test_of_an_answer_that_was_cut_those_that_have_had_nothing_are_asked_for_alone(
    error: GatewayError, at: Phase, alone: bool
) -> None:
    ridden, members = Ridden(), [flight(stream=True), flight(stream=True)]
    merged = ridden.merged(*members, at=at)
    left, few = ridden.merger.finish(merged, error)
    assert (list(left), few) == (members if alone else [], False)
    assert (merged.phase, merged.error) == (Phase.FAILED, error)
    assert [member.error for member in members] == ([None, None] if alone else [error, error])
    assert ridden.ended == ([] if alone else members)
    assert len(ridden.merger) == 0


def test_of_a_body_that_was_cut_no_member_is_told_that_it_cannot_be_split() -> None:
    ridden, members = Ridden(), [flight(), flight()]
    merged = ridden.merged(*members, at=Phase.PREFILL)
    merged.append_body(b'{"choices":[')
    much = GatewayError(Code.UPSTREAM_TOO_LARGE, "much")
    assert ridden.merger.finish(merged, much) == ((), False)
    assert [member.error for member in members] == [much, much]


def part(index: int, content: str = "a", finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": index, "delta": {"content": content}, "finish_reason": finish}
    return b"data: %b\n\n" % json.dumps({"id": "i", "choices": [choice], **more}).encode()


def test_a_stream_s_riders_read_along_and_who_has_had_something_is_not_asked_again() -> None:
    ridden, members = Ridden(), [flight(stream=True), flight(stream=True), flight(stream=True)]
    ridden.merger._fingerprints["e0"] = Raw(b'"f"')  # else a finish waits for it
    merged = ridden.merged(*members)
    merged.head = Head(200)
    merged.add(part(0))
    assert (merged.phase, members[0].head) == (Phase.STREAMING, None)
    merged.flush()
    first = members[0]
    assert (first.phase, first.head, first.backend, first.content_events) == (Phase.STREAMING, Head(200), "e0", 1)
    assert first.times.first is not None
    merged.append_token(part(0, "", "stop"))
    merged.append_token(part(1))
    assert (first.phase, ridden.ended, merged.members[0]) == (Phase.LANDED, [first], None)
    assert first.times.last is not None
    alone, few = ridden.merger.finish(merged, CUT)
    assert (list(alone), few, members[1].error) == ([members[2]], False, CUT)
    assert ridden.ended == members[:2]


def test_what_it_knows_of_engines_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.flights.merging.merger._MAX_ENGINES", 2)
    ridden = Ridden()
    kept = []
    for name in ("e1", "e2", "e3", "e4"):
        merged = ridden.merged(flight(), flight())
        merged.backend = name
        merged._split.fingerprint = Raw(b'"f"')
        ridden.merger.finish(merged, CUT)
        kept.append(sorted(ridden.merger._fingerprints))
    assert kept == [["e1"], ["e1", "e2"], ["e3"], ["e3", "e4"]]
    again = ridden.merger.merge(flight(), [flight()], "e4")
    assert isinstance(again, MergedFlight)
    assert again.fingerprint == Raw(b'"f"')


def test_a_rider_s_log_has_its_own_bound() -> None:
    ended: list[Flight] = []
    merger = Merger(4, limit=100, window=0.0, on_member=ended.append)
    members = [flight(stream=True), flight(stream=True)]
    merged = merger.merge(members[0], members, "e0")
    assert isinstance(merged, MergedFlight)
    merged.enter(Phase.CONNECTING)
    merged.enter(Phase.PREFILL)
    merged.append_token(part(0, "x" * 200))
    merged.append_token(part(1))
    assert members[0].error is not None
    assert (members[0].error.code, ended) == (Code.UPSTREAM_TOO_LARGE, members[:1])
    assert (members[1].error is None) is (members[1].size <= 100)

"""What nodes say to each other, and what a follower takes of a stream: only what continues what it has."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.flights.fleet.following import INTEREST, POLL, SILENCE, Following
from proxy.flights.fleet.messages import Message, StreamHead, first_line, leader_of, read_head, read_message
from proxy.flights.fleet.tail import Tail
from proxy.wire.fold import VLLM

NODE = b"0123456789abcdef"
FENCE = NODE + b".7"
CLAIM = b"gateway:flight:{gateway:00}"


@pytest.mark.parametrize("kind", ["join", "left"])
def test_messages_to_a_leader_name_the_follower(kind: str) -> None:
    line = b"%b %b %b " % (kind.encode(), CLAIM, FENCE)
    assert read_message(line + NODE) == Message(kind, CLAIM, FENCE)  # type: ignore[arg-type]
    for bad in (line, line[:-1], line + NODE + b"\nx", line + b"0 " + b"0" * 32 + b" open  " + NODE):
        assert read_message(bad) is None


@pytest.mark.parametrize("kind", ["gone", "alone"])
def test_messages_to_followers_name_nobody(kind: str) -> None:
    line = b"%b %b %b" % (kind.encode(), CLAIM, FENCE)
    assert read_message(line) == Message(kind, CLAIM, FENCE)  # type: ignore[arg-type]
    assert read_message(line + b" " + NODE) is None


def test_a_message_that_drops_a_stream_has_its_hashed_name() -> None:
    line = b"drop %b %b" % (CLAIM, FENCE)
    name = b"0" * 32
    assert read_message(line + b" " + name) == Message("drop", CLAIM, FENCE, name=name)
    for bad in (b"", b" " + NODE, b" " + name + b"0", b" " + name + b"\nx", b" 0 " + name + b" open  " + name):
        assert read_message(line + bad) is None


@given(
    offset=st.integers(0, 10**12 - 1),
    data=st.binary(max_size=50),
    state=st.sampled_from(["open", "landed", "failed"]),
)
def test_a_part_of_a_stream_is_read_back(offset: int, data: bytes, state: str) -> None:
    digest = Tail(FENCE).digest
    line = first_line(CLAIM, FENCE, offset, digest, state, b"ab")  # type: ignore[arg-type]
    expected = Message("more", CLAIM, FENCE, offset, digest, state, b"ab", data)  # type: ignore[arg-type]
    assert read_message(line + b"\n" + data) == expected


@given(st.binary(max_size=200) | st.none() | st.integers())
def test_anything_else_is_no_message(payload: object) -> None:
    assert read_message(payload) is None
    assert read_head(payload) is None
    assert leader_of(payload) is None


def test_a_head_is_read_back() -> None:
    head = StreamHead([("content-type", "text/event-stream")], "ab", VLLM)
    assert read_head(head.encoded()) == head
    assert leader_of(FENCE) == NODE
    assert leader_of(FENCE + b"x") is None


@given(
    data=st.binary(min_size=1, max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=6),
    start=st.integers(0, 60),
)
def test_a_stream_is_taken_however_it_is_cut_and_overlaps(data: bytes, cuts: list[int], start: int) -> None:
    leader, follower = Tail(FENCE), Tail(FENCE)
    taken = b""
    places = sorted({min(cut, len(data)) for cut in (*cuts, len(data))})
    for before, end in zip([0, *places], places, strict=False):
        leader.extend(data[before:end])
        overlap = max(0, before - start)
        new = follower.take(overlap, data[overlap:end], leader.digest)
        assert new is not None
        taken += new
    assert taken == data
    assert (follower.size, follower.digest) == (leader.size, leader.digest)


@given(data=st.binary(min_size=2, max_size=60), at=st.integers(0, 59), cut=st.integers(1, 59))
def test_what_does_not_continue_is_not_taken(data: bytes, at: int, cut: int) -> None:
    leader, follower = Tail(FENCE), Tail(FENCE)
    leader.extend(data)
    at %= len(data)
    changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    assert follower.take(0, changed, leader.digest) is None, "another byte"
    assert follower.take(cut, data, leader.digest) is None, "bytes between are missing"
    assert follower.take(0, data[:-1], leader.digest) is None, "the end is missing"
    assert Tail(NODE + b".8").take(0, data, leader.digest) is None, "another leadership"
    assert follower.size == 0
    assert follower.take(0, data, leader.digest) == data
    assert follower.take(0, data, b"0" * 32) == b"", "old bytes say nothing"


def test_what_a_follower_does_with_time() -> None:
    waiting = Following(CLAIM, FENCE, NODE, 0.0, first_token=100.0)
    assert waiting.tick(POLL / 2, dead=False, away=False) == "wait"
    assert waiting.tick(POLL, dead=False, away=False) == "fetch"
    assert waiting.asks(POLL)
    assert not waiting.asks(POLL), "one at a time"
    assert waiting.answered(b"wait", POLL, dead=False) == "wait"
    assert waiting.tick(POLL, dead=True, away=False) == "look"
    assert waiting.tick(POLL, dead=True, away=True) == "alone"
    assert waiting.tick(101.0, dead=False, away=False) == "alone"
    assert waiting.answered(b"gone", 2.0, dead=False) == "look"
    begun = Following(CLAIM, FENCE, NODE, 0.0, first_token=1.0)
    begun.feeds()
    assert begun.tick(SILENCE, dead=True, away=True) == "wait"
    assert begun.tick(SILENCE + 0.1, dead=False, away=False) == "lost"
    assert begun.read("open", 5.0, dead=True) == "wait"
    assert begun.tick(SILENCE + 0.1, dead=True, away=False) == "lost", "a dead leader's log is no sign of life"
    assert begun.read("open", 5.0, dead=False) == "wait"
    assert begun.tick(SILENCE + 0.1, dead=False, away=True) == "wait"
    assert begun.ends(6.0) == "fetch"
    assert begun.asks(6.0)
    assert begun.read("open", 6.1, dead=False) == "lost", "the leader has ended it"
    assert POLL < INTEREST < SILENCE


def test_what_a_follower_does_with_a_log_that_is_none() -> None:
    waiting = Following(CLAIM, FENCE, NODE, 0.0, first_token=100.0)
    assert waiting.unreadable() == "alone"
    assert [waiting.read(state, 1.0, dead=False) for state in ("open", "landed", "failed")] == [
        "alone",
        "alone",
        "wait",
    ]
    begun = Following(CLAIM, FENCE, NODE, 0.0, first_token=1.0)
    begun.feeds()
    assert begun.unreadable() == "wait"
    assert begun.tick(SILENCE + 0.1, dead=False, away=False) == "lost"  # it was no sign of life
    assert begun.ends(SILENCE + 0.2) == "fetch"
    assert begun.asks(SILENCE + 0.2)
    assert begun.unreadable() == "lost"

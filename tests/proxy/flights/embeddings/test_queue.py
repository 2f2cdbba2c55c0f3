"""The embeddings that wait, as objects: who has the turn of what, who is counted, and whom a refusal is about."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest

from proxy.errors import Code, GatewayError
from proxy.flights.embeddings.items import ArrayCall, BatchKey, EmbeddingItem, EmbeddingRequest
from proxy.flights.embeddings.queue import EmbedQueue
from proxy.flights.flight import Flight, Subscriber
from proxy.flights.spec import FlightSpec, Mode
from tests.kit.planned import planned

KIND = BatchKey("m", b"", "text", ())
FULL = GatewayError(Code.QUEUE_FULL, "full")


class Waiting:
    """A queue, and what it told of arrays that became more urgent."""

    def __init__(self, **bounds: Any) -> None:
        self.promoted: list[tuple[Flight, int, float, Any]] = []
        self.now = 0.0
        self.queue = EmbedQueue(
            **{"items": 4, "tokens": 100, "window": 0.0, "limit": 3} | bounds,
            clock=lambda: self.now,
            promote=lambda flight, priority, latest, reader, owner: self.promoted.append(
                (flight, priority, latest, owner)
            ),
        )

    def want(
        self, caller: str = "me", *names: str, readers: tuple[str, ...] = (), **more: Any
    ) -> EmbeddingRequest:
        """A request that waits for these items in its own turn."""
        spec, state = planned(b"", Mode.WHOLE, **more)
        flight = Flight(spec, lambda: 0.0, queue_state=state)
        for owner in readers or (caller,):
            flight.subscribers.add(Subscriber(flight, owner=owner))
        made = EmbeddingRequest(flight, caller=caller)
        items = [EmbeddingItem(name.encode(), KIND, b'"a"', 1, False, owner=made) for name in names]
        for one in items:
            one.add(made)
            self.queue.offer(one)
        made.begins(items)
        made.unsent = len(items)
        self.queue.adds(made)
        return made


def items_of(want: EmbeddingRequest) -> list[EmbeddingItem]:
    return list(want.missing())


def call_of(*items: EmbeddingItem, caller: str = "me", since: float = 0.0) -> ArrayCall:
    return ArrayCall(
        KIND, list(items), Subscriber(Flight(FlightSpec("", "", b"", Mode.WHOLE, "call"))), None, caller, since
    )


def test_a_request_waits_until_its_last_item_is_sent() -> None:
    waiting = Waiting()
    one = waiting.want("me", "a", "b")
    nothing = waiting.want("me")
    assert (len(waiting.queue), repr(waiting.queue).startswith("<EmbedQueue 1 requests")) == (1, True)
    a, b = items_of(one)
    for item, left in ((a, 1), (a, 1), (b, 0)):
        waiting.queue.sent(item)
        assert (item.sent, one.unsent, len(waiting.queue)) == (True, left, min(1, left))
    waiting.queue.ends(nothing)
    orphan = EmbeddingItem(b"o", KIND, b'"a"', 1, False)
    waiting.queue.sent(orphan)
    assert (orphan.sent, waiting.queue.waits(orphan)) == (False, False)
    waiting.queue.offer(orphan)
    waiting.queue.discard(orphan)
    assert len(waiting.queue.arrays) == 2


def test_room_is_made_only_where_the_queue_is_full() -> None:
    waiting = Waiting(limit=2)
    waiting.want("me", "a")
    assert waiting.queue.room("you", 1) is None
    newest = waiting.want("me", "b")
    found = waiting.queue.room("you", 1)
    assert found is not None
    assert (found[0], found[1].code) == (newest, Code.QUEUE_SHARE)
    with pytest.raises(GatewayError):
        waiting.queue.room("me", 1)


def test_one_large_request_begins_in_a_turn_and_small_ones_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.flights.embeddings.queue.SLICE", 2)
    waiting, begun = Waiting(), list[str]()
    wants = {name: waiting.want(name) for name in ("small", "first", "second", "third", "left")}
    sizes = {"small": 2, "first": 3, "second": 3, "third": 3, "left": 3}
    at_once = []
    for name, size in sizes.items():
        if waiting.queue.begins(wants[name], size, partial(begun.append, name)):
            at_once.append(name)
    assert (at_once, begun, waiting.queue.crowded) == (["small", "first"], [], True)
    assert (wants["second"].unsent, len(waiting.queue)) == (1, 3)
    wants["second"].ends()
    for want, begin in waiting.queue.arrived():
        assert want is wants["third"]
        begin()
        assert len(waiting.queue) == 2, "it is not queued any more, but as its items are"
    assert (begun, wants["third"].unsent, waiting.queue.crowded) == (["third"], 0, True)
    assert not waiting.queue.begins(wants["small"], 3, lambda: None), "one has begun in this turn"
    assert [want for want, _ in waiting.queue.arrived()] == [wants["left"]]
    assert [want for want, _ in waiting.queue.arrived()] == [wants["small"]]
    assert ([want for want, _ in waiting.queue.arrived()], waiting.queue.crowded) == ([], False)
    assert waiting.queue.begins(wants["small"], 3, lambda: None)


def test_who_waits_for_less_even_with_one_more_has_the_sooner_turn() -> None:
    waiting = Waiting()
    for name in "abc":
        waiting.want("heavy", name)
    waiting.want("light", "d")
    assert waiting.queue.sooner("light", "heavy")
    waiting.want("light", "e")
    assert not waiting.queue.sooner("light", "heavy")


def test_an_item_changes_from_one_request_s_turn_to_another_s() -> None:
    waiting = Waiting()
    one, other = waiting.want("me", "a", "b"), waiting.want("you")
    a, b = items_of(one)
    waiting.queue.take_over(a, other)
    assert (a.owner, one.unsent, other.unsent, len(waiting.queue)) == (other, 1, 1, 2)
    assert waiting.queue.arrays.waits(KIND, other, a, "you")
    assert not waiting.queue.arrays.waits(KIND, one, a, "me")
    waiting.queue.take_over(b, other)
    assert (one.unsent, other.unsent, len(waiting.queue)) == (0, 2, 1)
    a.sent = True
    waiting.queue.take_over(a, one)
    assert (a.owner, one.unsent, other.unsent) == (one, 0, 2), "it waits in nobody's turn"
    orphan = EmbeddingItem(b"o", KIND, b'"a"', 1, False)
    waiting.queue.take_over(orphan, one)
    assert (orphan.owner, waiting.queue.waits(orphan)) == (one, False)
    looked_up = EmbeddingItem(b"l", KIND, b'"a"', 1, False, owner=one)
    waiting.queue.take_over(looked_up, other)
    assert not waiting.queue.waits(looked_up), "it waits for no array"


def test_a_request_changes_to_another_caller_s_turn_with_what_waits_in_its_own() -> None:
    waiting = Waiting()
    one = waiting.want("me", "a", "b")
    a, b = items_of(one)
    b.owner = waiting.want("x")
    waiting.queue.arrays.leave(KIND, one, b, "me")
    waiting.queue.change_turn(one, "you")
    assert one.caller == "you"
    assert waiting.queue.arrays.waits(KIND, one, a, "you")
    assert not waiting.queue.arrays.waits(KIND, one, a, "me")
    assert (len(waiting.queue.arrays), len(waiting.queue), waiting.queue._waiting.owned("you")) == (1, 1, 1)
    assert waiting.queue._waiting.owned("me") == 0


@pytest.mark.parametrize("heavy", [1, 3])
def test_one_more_caller_brings_its_turn_where_it_is_sooner_and_hurries_arrays(heavy: int) -> None:
    waiting = Waiting(limit=9)
    one = waiting.want("me", "a", "b", priority=0, latest=7.0)
    for n in range(heavy - 1):
        waiting.want("me", f"{n}")
    a, _ = items_of(one)
    a.call = call_of(a)
    waiting.queue.joined(one, "you")
    assert one.caller == ("you" if heavy == 3 else "me")
    assert waiting.promoted == [(a.call.reader.flight, 0, 7.0, "you")]


def test_what_was_lost_waits_anew_in_the_turn_of_who_wants_it() -> None:
    waiting = Waiting()
    one, other = waiting.want("me"), waiting.want("you")
    item: Any = EmbeddingItem(b"a", KIND, b'"a"', 1, False, owner=other)
    item.call = call_of(item)
    item.add(one)
    item.add(other)
    waiting.queue.offer_again(item)
    assert (item.call, item.owner, waiting.queue.waits(item)) == (None, other, True)
    waiting.queue.discard(item)
    other.ends()
    item.drop(other)
    waiting.queue.offer_again(item)
    assert (item.owner, waiting.queue.waits(item)) == (one, True)
    waiting.queue.discard(item)
    assert len(waiting.queue.arrays) == 0
    item.owner = None
    waiting.queue.offer_again(item)
    assert item.owner is one


def test_who_waits_is_counted_anew_and_who_is_over_wants_nothing() -> None:
    waiting = Waiting()
    one, over = waiting.want("me", "a", "b", "c", "e"), waiting.want("you", "d")
    a, b, _, _ = items_of(one)
    (d,) = items_of(over)
    a.sent, b.owner = True, over
    d.add(one)
    over.ends()
    one.unsent = 9
    waiting.queue.recount([one], [a, b, d])
    assert (one.unsent, len(waiting.queue), list(d.requests)) == (2, 1, [one])
    assert (waiting.queue._waiting.owned("me"), waiting.queue._waiting.owned("you")) == (1, 0)


def test_what_is_due_is_of_the_clock_and_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.flights.embeddings.queue.ARRAYS_A_TURN", 2)
    waiting = Waiting(items=1, window=2.0)
    one = waiting.want("me", "a", "b", "c")
    waiting.queue.arrays.items = 9
    assert waiting.queue.due(lambda kind: 9) == []
    waiting.now = 2.0
    waiting.queue.arrays.items = 1
    assert [items for _, items in waiting.queue.due(lambda kind: 9)] == [[item] for item in items_of(one)[:2]]


@pytest.mark.parametrize(
    ("code", "caller", "blamed"),
    [
        (Code.QUEUE_FULL, "me", [0]),
        (Code.MEMORY_FULL, "me", [0]),
        (Code.UPSTREAM_UNREACHABLE, "me", [0, 1]),
        (Code.QUEUE_FULL, "nobody", [0, 1]),
    ],
)
def test_a_refusal_of_the_queue_s_is_about_the_caller_in_whose_turn_it_was(
    code: Code, caller: str, blamed: list[int]
) -> None:
    waiting = Waiting()
    wants = [waiting.want("me", "a"), waiting.want("you", "b")]
    items = [item for want in wants for item in items_of(want)]
    found = waiting.queue.turned_away(call_of(*items, caller=caller), wants, GatewayError(code, "no"))
    assert found == [wants[n] for n in blamed]


def test_one_that_others_read_too_goes_on_for_them_in_their_turn() -> None:
    waiting = Waiting()
    one = waiting.want("me", "a", readers=("me", "you"))
    readers = {reader.owner: reader for reader in one.flight.subscribers}
    assert waiting.queue.turned_away(call_of(*items_of(one)), [one], FULL) == []
    assert (one.caller, one.flight.subscribers) == ("you", {readers["you"]})
    assert readers["me"].flight.error is FULL
    assert waiting.queue.turned_away(call_of(*items_of(one), caller="you"), [one], FULL) == [one]
    strangers = waiting.want("me", "b", readers=("you",))
    assert waiting.queue.turned_away(call_of(*items_of(strangers)), [strangers], FULL) == []
    assert strangers.caller == "you"


def test_that_it_has_waited_for_too_long_is_true_of_who_waited() -> None:
    waiting = Waiting()
    early, late, joined = (waiting.want("me", name) for name in "abc")
    late.since = 6.0
    joined.flight.subscribers.add(after := Subscriber(joined.flight, since=6.0))
    wants = [early, late, joined]
    over = GatewayError(Code.QUEUE_TIMEOUT, "over")
    call = call_of(since=5.0)
    assert waiting.queue.given_up(call, wants, FULL) == wants
    early.since = 5.0
    assert waiting.queue.given_up(call, wants, over) == [early]
    assert joined.flight.subscribers == {after}
    after.since = 5.0
    assert waiting.queue.given_up(call, [joined], over) == [joined]
    assert math.isinf(early.flight.queue_state.latest)

"""An embedding item, the request that wants it, and what an array's answer says of each: as objects."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from msgspec.structs import replace

from proxy.errors import Code, GatewayError
from proxy.flights.embeddings.items import (
    RESULT_BYTES,
    STEP,
    ArrayCall,
    BatchKey,
    EmbeddingItem,
    EmbeddingRequest,
    Result,
    array_of,
    items_of,
    requests_of,
    results_of,
)
from proxy.flights.flight import Flight, Subscriber
from proxy.flights.key import PADDING
from proxy.flights.memory import Memory
from proxy.flights.phase import Phase
from proxy.flights.spec import Head, Mode
from proxy.redis.cache import Stored
from proxy.wire.embeddings import LARGE, SLICE, Inputs, Unsplittable, Vector, inputs_of
from proxy.wire.openai import decode
from tests.kit.planned import planned

KIND = BatchKey("m", b"", "text", ())
JSON = Head(200, (("content-type", "application/json"),))


def flight(given: Any = "a", **more: Any) -> Flight:
    body = json.dumps({"model": "m", "input": given}).encode()
    spec, state = planned(body, Mode.WHOLE, api_request=decode("embeddings", body), model="m", **more)
    made = Flight(spec, lambda: 5.0, queue_state=state)
    made.subscribers.add(Subscriber(made))
    return made


def want(
    given: Any = "a", *, limit: int = 1 << 62, caller: Any = "me", since: float = 0.0, **more: Any
) -> EmbeddingRequest:
    return EmbeddingRequest(flight(given, **more), caller=caller, limit=limit, since=since)


def item(key: str = "a", *, weight: int = 1, fresh: bool = False) -> EmbeddingItem:
    return EmbeddingItem(key.encode(), KIND, json.dumps(key).encode(), weight, fresh)


def inputs(one: EmbeddingRequest) -> Inputs:
    assert one.flight.spec.api_request is not None
    found = inputs_of(one.flight.spec.api_request)
    assert found is not None
    return found


def began(
    one: EmbeddingRequest, known: dict[bytes, EmbeddingItem] | None = None, apart: int = 0
) -> dict[bytes, EmbeddingItem]:
    """Its items; a key is the text itself."""
    has = inputs(one)
    mine = items_of(one, has, b"", [bytes(text) for text in has.items], apart, known or {})
    for each in mine.values():
        each.add(one)
    return mine


def result(text: str = "v", tokens: int | None = 3, **more: Any) -> Result:
    whole = {
        "object": "list",
        "data": [{"index": 0, "embedding": text}],
        "model": "m",
        "usage": {"prompt_tokens": 3},
    }
    return Result.of(Stored(kind="whole", created=1.0, body=json.dumps(whole).encode()))._replace(
        stored_at=more.get("stored_at"), tokens=tokens
    )


def test_a_new_item_has_been_given_nothing() -> None:
    one = item()
    assert (one.storable, one.replace, one.sent, one.result, one.call) == (True, False, False, None, None)
    assert (one.owner, one.payer, one.waiting, one.first(), list(one.requests)) == (None, None, None, None, [])
    assert (BatchKey("m", b"", "ids", ()).apart, one != item(), len({one, item()})) == (0, True, 2)


def test_the_requests_for_an_item_are_known_in_their_order() -> None:
    one, requests = item(), [want() for _ in range(3)]
    one.drop(requests[0])
    assert (one.waiting, one.first()) == (None, None)
    for n, each in enumerate(requests):
        one.add(each)
        assert (list(one.requests), one.first()) == (requests[: n + 1], requests[0])
    assert one.request_set() == frozenset(requests)
    for _ in range(2):
        one.drop(requests[0])
        assert list(one.requests) == requests[1:]
    assert one.first() is requests[1]
    one.drop(requests[1])
    assert list(one.requests) == [requests[2]]
    one.drop(requests[2])
    assert one.waiting is None
    one.add(requests[0])
    one.drop(requests[1])
    assert list(one.requests) == [requests[0]]
    one.drop(requests[0])
    assert one.waiting is None


def test_a_request_joins_what_is_under_way_where_it_is_of_its_kind_and_new_enough() -> None:
    first = want(["a", "b", "a"])
    mine = began(first)
    both: list[Any] = list(mine.values())
    a, b = both
    assert (a.kind, a.text, a.fresh, a.storable, first.lacks) == (
        BatchKey("m", b"", "text", ()),
        b'"a"',
        False,
        True,
        2,
    )
    known = dict(mine)
    assert began(want(["b"]), known) == {b.key: b}
    assert began(want(["b"]), known, apart=1) != {b.key: b}
    assert began(want(["b"], fresh=True), known) != {b.key: b}
    b.sent = True
    assert began(want(["b"], fresh=True), known) == {b.key: b}
    a.fresh = True
    assert began(want(["a"], fresh=True), known) == {a.key: a}
    a.storable = False
    began(want(["a"], storable=False), known)
    assert not a.storable
    began(want(["a"]), known)
    assert a.storable
    (private,) = began(want(["c"], storable=False)).values()
    assert not private.storable


def test_a_request_knows_what_it_lacks_and_what_it_is() -> None:
    one = want(["a", "b", "a"])
    a, b = began(one).values()
    assert (one.step, repr(one)) == (3, "<EmbeddingRequest 3 places, lacks 2>")
    assert (one.is_all([a, b, a]), one.is_all([a, b])) == (True, False)
    assert list(one.missing()) == [a, b]
    a.result = result()
    a.drop(one)
    assert list(one.missing()) == [b]
    assert want([f"{n}" for n in range(SLICE + 9)]).step == 0
    many = want([f"{n}" for n in range(SLICE + 9)])
    began(many)
    assert many.step == SLICE


def test_what_it_gets_is_counted_by_place_and_paid_by_who_brought_it() -> None:
    one, memory = want(["a", "b", "a"]), Memory(1 << 30)
    a, b = began(one).values()
    one.charge(memory, inputs(one))
    assert one.held is not None
    before = one.held.size
    assert before == len(one.flight.spec.body) + 9 + 3 * 400
    a.payer = one
    got = result(tokens=4)
    assert not one.gets(a, got)
    assert (one.lacks, one.asked, one.paid, one.size) == (1, 1, 4, 2 * got.vector.size)
    assert one._charge == got.vector.size + RESULT_BYTES + 2 * got.vector.size
    b.payer = one
    assert one.gets(b, got._replace(stored_at=5.0))
    assert (one.lacks, one.asked, one.paid, one.size) == (0, 1, 4, 3 * got.vector.size)
    stranger = want()
    (c,) = began(stranger).values()
    c.payer = one
    assert stranger.gets(c, got)
    assert (stranger.asked, stranger.paid, stranger.held) == (0, 0, None)
    c.payer = stranger
    stranger.gets(c, got._replace(tokens=None))
    assert (stranger.asked, stranger.paid) == (1, 0)


def test_an_answer_over_its_bound_is_refused_but_not_an_engine_s_own_to_that_request() -> None:
    got = result()
    for limit, over in ((got.vector.size, False), (got.vector.size - 1, True)):
        one = want(limit=limit)
        (a,) = began(one).values()
        if over:
            with pytest.raises(GatewayError) as caught:
                one.gets(a, got)
            assert (caught.value.code, caught.value.param) == (Code.PROMPT_TOO_LARGE, "input")
            assert f"these 1 inputs would exceed {limit} bytes" in caught.value.message
            one.body = b"its own"
            one.gets(a, got)
        else:
            assert one.gets(a, got)


@pytest.mark.parametrize(("size", "more"), [(LARGE - 1, LARGE - 1), (LARGE, 0)])
def test_a_large_vector_is_charged_once_and_its_request_grows_by_steps(size: int, more: int) -> None:
    memory = Memory(1 << 30)
    one = want()
    (a,) = began(one).values()
    one.charge(memory, inputs(one))
    assert one.held is not None
    got = result()
    vector = Vector(b"x" * size, b"")
    one.gets(a, got._replace(vector=vector))
    assert one._charge == size + RESULT_BYTES + more
    assert memory.held == one._charge + STEP
    one.clear()
    assert (memory.held, list(one.missing())) == (0, [])
    assert getattr(one, "held") is None  # noqa: B009 - narrowed above


@pytest.mark.parametrize("more", [0, 1])
def test_a_charge_grows_once_it_is_exceeded(more: int) -> None:
    memory = Memory(1 << 30)
    one = want()
    (a,) = began(one).values()
    one.charge(memory, inputs(one))
    held = memory.held
    size = (held - RESULT_BYTES) // 2 + more
    one._charge = (held - RESULT_BYTES) % 2
    one.gets(a, result()._replace(vector=Vector(b"x" * size, b"")))
    assert memory.held == (held if not more else one._charge + STEP)
    one.clear()


def landing(one: EmbeddingRequest) -> None:
    for _ in one.land():
        pass


@pytest.mark.parametrize(
    ("stored", "asked", "verdict"),
    [
        ([None, None], 1, "miss"),
        ([None, None], 0, "attached"),
        ([3.0, 2.0], 0, "hit"),
        ([None, 2.0], 0, "attached"),
    ],
)
def test_a_request_lands_with_where_its_vectors_are_from(stored: list[Any], asked: int, verdict: str) -> None:
    one = want(["a", "b"])
    reader = Subscriber(one.flight, attached=bool(asked))
    one.flight.subscribers.add(reader)
    for each, at in zip(began(one).values(), stored, strict=True):
        each.result = result(stored_at=at)
    one.asked, one.paid = asked, 2
    landing(one)
    done = one.flight
    assert (done.phase, done.head) == (Phase.LANDED, Head(200, JSON.headers, done.size))
    assert (done.times.first, done.times.last) == (5.0, 5.0)
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (6, 0)
    assert done.items == (2, sum(at is not None for at in stored), 4)
    assert done.stored_at == (2.0 if verdict == "hit" else None)
    assert {each.verdict for each in done.subscribers} == ({"miss", "attached"} if asked else {verdict})


def test_where_one_s_tokens_are_not_known_none_are_told_and_an_engine_s_own_answer_is_passed_on() -> None:
    one = want(["a", "b"])
    for each, tokens in zip(began(one).values(), (3, None), strict=True):
        each.result = result(tokens=tokens)
    one.body = b"as it came"
    landing(one)
    assert (one.flight.usage, one.flight.items, one.flight.log) == (None, (2, 0, 0), [b"as it came"])


def test_a_refusal_is_the_answer_and_its_memory_is_what_it_takes() -> None:
    memory, one = Memory(1 << 30), want()
    one.charge(memory, inputs(one))
    one.refused(Head(404, JSON.headers), b"no such")
    assert one.flight.head == Head(404, JSON.headers, 7)
    assert (one.held, one.flight.held is not None, one.flight.log) == (None, True, [b"no such"])


def test_what_an_array_went_through_is_its_requests_too() -> None:
    call, one = flight(request_id="call"), want()
    call.backend, call.attempts, call.times.dispatched = "e0", 3, 2.0
    one.was_sent(call)
    assert (one.flight.backend, one.flight.attempts, one.flight.carried_as) == ("e0", 3, "call")
    assert (one.flight.times.dispatched, one.flight.phase) == (2.0, Phase.QUEUED)
    call.enter(Phase.CONNECTING)
    call.enter(Phase.PREFILL)
    call.times.dispatched, call.attempts = 9.0, 1
    one.was_sent(call)
    assert (one.flight.times.dispatched, one.flight.attempts) == (2.0, 3)
    assert (one.flight.phase, one.flight.before) == (Phase.PREFILL, Phase.CONNECTING)
    one.was_sent(call)
    assert one.flight.phase is Phase.PREFILL


def call_of(items: list[EmbeddingItem], kind: Literal["text", "ids"] = "text") -> ArrayCall:
    return ArrayCall(KIND._replace(inputs=kind), items, Subscriber(flight()), None, "me", 0.0)


def body_of(count: int, tokens: int | None, bad: int | None = None) -> bytes:
    data = [{"index": n, "embedding": f"v{n}"} for n in range(count)]
    usage = {} if tokens is None else {"usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
    return json.dumps({"object": "list", "data": data, "model": "m", **usage}).encode()


@pytest.mark.parametrize(
    ("kind", "weights", "tokens", "told"),
    [
        ("text", [1, 3], 8, [2, 6]),
        ("ids", [1, 3], 4, [1, 3]),
        ("text", [1, 1], None, [None, None]),
        ("text", [1, 1], 1 << 53, [None, None]),
        ("text", [5], 7, [7]),
    ],
)
def test_an_array_s_tokens_are_shared_out(
    kind: Any, weights: list[int], tokens: int | None, told: list[Any]
) -> None:
    faults: list[str] = []
    items = [item(f"{n}", weight=weight) for n, weight in enumerate(weights)]
    head = Head(200, (("x", "y"),))
    found = results_of(
        call_of(items, kind), head, body_of(len(items), tokens), lambda where, e: faults.append(where)
    )
    assert [one and one.tokens for one in found] == told
    assert [one and one.head for one in found] == [head] * len(items)
    assert [one and one.stored_at for one in found] == [None] * len(items)
    assert faults == []


def test_of_an_answer_s_parts_what_raises_costs_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from proxy.flights.embeddings import items as embed_item

    faults: list[str] = []
    items = [item("a"), item("b")]

    def fails(*given: Any) -> Any:
        raise ZeroDivisionError

    calls = 0

    class Broken:
        @staticmethod
        def of(datum: Any) -> Vector:
            nonlocal calls
            calls += 1
            return fails() if calls == 1 else Vector.of(datum)

    monkeypatch.setattr(embed_item, "shares_of", fails)
    monkeypatch.setattr(embed_item, "Vector", Broken)
    found = results_of(call_of(items), JSON, body_of(2, 8), lambda where, e: faults.append(where))
    assert (found[0], found[1] and found[1].tokens) == (None, None)
    assert found[1] is not None
    assert faults == ["the tokens of an array", "a vector of an engine's"]
    with pytest.raises(Unsplittable):
        results_of(call_of(items), JSON, b"{}", lambda where, e: None)


def test_a_stored_vector_is_read_and_written_as_an_answer_of_its_own() -> None:
    one = result("v")
    again = Result.of(Stored(kind="whole", created=4.0, body=one.alone()))
    assert (again.vector, again.stored_at, again.tokens) == (one.vector, 4.0, 3)
    for entry in (
        Stored(kind="stream", created=1.0, body=one.alone()),
        Stored(kind="whole", created=1.0, body=b""),
    ):
        with pytest.raises(Unsplittable):
            Result.of(entry)


def test_the_one_request_for_items_is_the_client_s_own_where_it_is_all_of_it() -> None:
    one, other = want(["a", "b"], priority=2, latest=7.0), want(["b", "c"], priority=1, latest=9.0, caller="you")
    a, b = began(one).values()
    known = {b.key: b}
    _, c = began(other, known).values()
    spec, _, whole = array_of([a, b])
    assert (whole, spec.body, spec.key, spec.many, spec.fresh, spec.parts) == (
        one,
        one.flight.spec.body,
        None,
        True,
        False,
        2,
    )
    c.owner = other
    spec, state, whole = array_of([c, a, b])
    assert (whole, json.loads(spec.body)["input"], spec.parts) == (None, ["c", "a", "b"], 3)
    assert (state.priority, state.deadline, state.latest, state.owner) == (1, 9.0, 9.0, "you")
    c.owner = None
    assert array_of([c, a])[1].owner == "you"
    assert requests_of([a, b, c]) == [one, other]


@pytest.mark.parametrize(
    ("size", "own"), [(0, True), (4 * 3 + PADDING, True), (4 * 3 + PADDING + 1, False), (9 * PADDING, False)]
)
def test_a_padded_body_is_written_anew(size: int, own: bool) -> None:
    one = want(["a"])
    (a,) = began(one).values()
    one.flight.spec = replace(one.flight.spec, body=one.flight.spec.body.ljust(size))
    spec, _, whole = array_of([a])
    assert whole is one
    assert (spec.body == one.flight.spec.body) is own


def test_an_array_is_asked_again_in_parts_or_without_those_who_left() -> None:
    one, other = want(["a", "b"]), want(["c"], caller="you")
    a, b = began(one).values()
    (c,) = began(other).values()
    call = call_of([a, b, c])
    assert call.parts() == [[a], [b, c]]
    assert call.callers() == one.flight.subscribers | other.flight.subscribers
    c.drop(other)
    assert call.parts() == [[a, b]], "who spoiled it may have left"
    assert call_of([a, b]).parts() == []
    for each in (a, b):
        each.drop(one)
    assert call.parts() == []


def test_a_new_request_has_nothing_and_lacks_nothing() -> None:
    one = EmbeddingRequest(flight())
    assert (one.caller, one.held, one.since, one.lacks, one.unsent, one.over) == (None, None, 0.0, 0, 0, False)
    assert (one.asked, one.paid, one.size, one.body, one.step) == (0, 0, 0, None, 0)
    one.charge(None, Inputs("text", [b"a"], [1]))
    assert one.held is None
    one.ends()
    one.changes_to("you")
    assert (one.over, one.caller) == (True, "you")

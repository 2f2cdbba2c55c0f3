"""What a Flight's place in the line is decided by."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest

from proxy.config.vocabulary import HIGH
from proxy.errors import Code, GatewayError
from proxy.flights.flight import Flight
from proxy.flights.queue.deficit_round_robin import Ticket
from proxy.flights.queue.estimates import MIN_SAMPLES
from proxy.flights.queue.request_queue import RequestQueue
from proxy.flights.queue.ticket import MAX_OWNERS, TicketFactory, twin_of
from proxy.flights.spec import FlightSpec, Mode
from proxy.wire.frames import Usage
from proxy.wire.openai import decode
from tests.kit.planned import planned

BODY = b'{"model": "m1", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 100, "n": 2}'


def flight(body: bytes = BODY, **more: Any) -> Flight:
    api_request = decode("chat", body)
    spec, state = planned(
        body, Mode.WHOLE, path="/v1/chat/completions", api_request=api_request, model=api_request.model, **more
    )
    return Flight(spec, queue_state=state)


def test_a_ticket_is_what_the_plan_says_with_the_tokens_it_may_cost() -> None:
    made = TicketFactory(lambda model: f"pool of {model}", 512)
    assert made(flight(owner=b"t", priority=HIGH, deadline=5.0)) == Ticket(b"t", HIGH, 6 + 200, 5.0, "pool of m1")
    assert made(flight(owner=lambda: "192.0.2.1")).owner == "192.0.2.1"


def test_an_address_is_looked_for_once_while_its_client_is_there() -> None:
    made, found = TicketFactory(lambda model: None, 512), ["192.0.2.1"]
    one = flight(owner=found.pop)
    assert made(one).owner == made(one).owner == "192.0.2.1"
    one.usage = Usage(prompt_tokens=6, completion_tokens=20)
    made.landed(one)
    assert made.share("192.0.2.1") == 0.1


def landed(made: TicketFactory, owner: bytes, tokens: int) -> None:
    """An answer to a request that had to wait: 100 tokens allowed, twice."""
    one = flight(owner=owner)
    made(one)
    assert one.queue_state.assumed == 200
    one.usage = Usage(prompt_tokens=6, completion_tokens=tokens)
    made.landed(one)


def test_an_owner_s_answers_are_taken_to_be_as_long_as_its_last_ones_were() -> None:
    made = TicketFactory(lambda model: None, 512)
    for _ in range(3):
        landed(made, b"brief", 20)
    assert made(flight(owner=b"brief")).cost == 6 + 20
    assert made(flight(owner=b"other")).cost == 6 + 200, "another's say nothing of it"
    for _ in range(100):
        landed(made, b"brief", 120)
    assert made(flight(owner=b"brief")).cost == pytest.approx(6 + 120, abs=1), "and what changes is seen"


@pytest.mark.parametrize("seed", range(5))
def test_over_time_an_owner_pays_for_what_its_answers_came_to(seed: int) -> None:
    """Answers of any length, to requests that allow any number of tokens."""
    made, draw = TicketFactory(lambda model: None, 512), random.Random(seed)
    paid = came = 0
    for _ in range(2000):
        one = flight(BODY.replace(b"100", b"%d" % draw.randint(1, 256)))
        paid += made(one).cost - 6
        one.usage = Usage(prompt_tokens=6, completion_tokens=draw.randint(1, one.queue_state.assumed))
        came += one.usage.completion_tokens
        made.landed(one)
    assert paid == pytest.approx(came, rel=0.05)


def test_what_did_not_wait_or_does_not_say_teaches_nothing() -> None:
    made = TicketFactory(lambda model: None, 512)
    unasked, unsaid = flight(owner=b"a"), flight(owner=b"a")
    unasked.usage = Usage(prompt_tokens=6, completion_tokens=1)
    made(unsaid)
    made.landed(unasked)
    made.landed(unsaid)
    assert made.share(b"a") == 1.0


def test_owners_that_are_remembered_are_bounded_and_the_idle_go_first() -> None:
    made = TicketFactory(lambda model: None, 512)
    landed(made, b"first", 20)
    landed(made, b"idle", 20)
    landed(made, b"first", 20)
    for n in range(MAX_OWNERS - 1):
        landed(made, b"%d" % n, 20)
    assert repr(made) == f"<TicketFactory owners={MAX_OWNERS}>"
    assert made.share(b"idle") == 1.0
    assert made.share(b"first") == 0.1


def long(content: str, **more: Any) -> tuple[int, ...]:
    body = {"model": "m1", "messages": [{"role": "user", "content": content}]} | more
    return TicketFactory(lambda model: None, 512)(flight(json.dumps(body).encode())).prefixes


def test_prompts_that_begin_alike_are_known_by_it_as_far_as_they_do() -> None:
    same, end = "x" * 5000, "y" * 20_000
    assert long("short") == ()
    assert len(long(same)) == 2
    assert len(long(same + end)) == 3
    assert long(same)[:2] == long(same + end)[:2]
    assert long("z" + same)[0] != long(same)[0]
    assert long(same, model="m2")[0] != long(same)[0]
    assert long(same, tools=[])[0] != long(same)[0], "tools come before the messages"


def test_what_is_embedded_begins_like_nothing() -> None:
    api_request = decode("embeddings", json.dumps({"model": "m1", "input": "x" * 5000}).encode())
    spec = FlightSpec(
        "POST",
        "/v1/embeddings",
        api_request.body,
        Mode.WHOLE,
        "r",
        api_request=api_request,
        model=api_request.model,
    )
    assert TicketFactory(lambda model: None, 512)(Flight(spec)).prefixes == ()


def test_what_passes_through_is_guessed_by_its_size_and_costs_something() -> None:
    made = TicketFactory(lambda model: None, 512)
    raw = Flight(FlightSpec("POST", "/v1/responses", b"", Mode.RAW, "r", cost=(104, 512)))  # as it was read
    assert made(raw) == Ticket(b"", 1, 104 + 512, math.inf, None)
    assert made(Flight(FlightSpec("GET", "/version", b"", Mode.RAW, "r"))).cost == 1


def test_twins_have_their_prompt_alike_where_they_may_be_merged() -> None:
    assert twin_of(flight()) is None
    assert twin_of(flight(merge=True)) == twin_of(flight(BODY.replace(b"100", b"99"), merge=True)) is not None
    assert twin_of(flight(merge=True)) != twin_of(flight(BODY.replace(b"hello", b"hullo"), merge=True))
    assert twin_of(Flight(FlightSpec("GET", "/version", b"", Mode.RAW, "r"))) is None


def test_a_flight_is_refused_for_want_of_time_only_if_its_last_reader_s_is_too_short() -> None:
    """One client's deadline ends nobody else's request: a hurried one may have joined a patient one's."""
    queue: RequestQueue[Flight] = RequestQueue(limit=9, max_batch=9, ticket=TicketFactory(lambda model: None, 512))
    for _ in range(MIN_SAMPLES):
        queue.estimates.record_answer(None, 60.0)
    queue.enqueue(flight(deadline=1.0), 0.0)
    queue.enqueue(flight(deadline=1.0, latest=100.0), 0.0)
    with pytest.raises(GatewayError) as caught:
        queue.enqueue(flight(deadline=1.0, latest=2.0), 0.0)
    assert caught.value.code is Code.DEADLINE_UNMEETABLE

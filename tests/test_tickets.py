"""What a Flight's place in the line is decided by."""

from __future__ import annotations

import math
from typing import Any

import pytest

from proxy.batcher import MIN_PLACES, Batcher
from proxy.errors import Code, GatewayError
from proxy.flight import Flight
from proxy.line import HIGH, Ticket
from proxy.plan import Mode, Plan
from proxy.tickets import tickets, twin_of
from proxy.wire.openai import decode

BODY = b'{"model": "m1", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 100, "n": 2}'


def flight(body: bytes = BODY, **more: Any) -> Flight:
    ask = decode("chat", body)
    return Flight(Plan("POST", "/v1/chat/completions", body, Mode.WHOLE, "r", ask=ask, model=ask.model, **more))


def test_a_ticket_is_what_the_plan_says_with_the_tokens_it_may_cost() -> None:
    made = tickets(lambda model: f"pool of {model}", 512)
    assert made(flight(owner=b"t", priority=HIGH, deadline=5.0)) == Ticket(b"t", HIGH, 6 + 200, 5.0, "pool of m1")
    assert made(flight(owner=lambda: "192.0.2.1")).owner == "192.0.2.1"


def test_what_passes_through_is_guessed_by_its_size_and_costs_something() -> None:
    made = tickets(lambda model: None, 512)
    raw = Flight(Plan("POST", "/v1/responses", b'{"input": "' + b"x" * 400 + b'"}', Mode.RAW, "r"))
    assert made(raw) == Ticket(b"", 1, 104 + 512, math.inf, None)
    assert made(Flight(Plan("GET", "/version", b"", Mode.RAW, "r"))).cost == 1


def test_twins_have_their_prompt_alike_where_they_may_be_merged() -> None:
    assert twin_of(flight()) is None
    assert twin_of(flight(merge=True)) == twin_of(flight(BODY.replace(b"100", b"99"), merge=True)) is not None
    assert twin_of(flight(merge=True)) != twin_of(flight(BODY.replace(b"hello", b"hullo"), merge=True))
    assert twin_of(Flight(Plan("GET", "/version", b"", Mode.RAW, "r"))) is None


def test_a_flight_is_refused_for_want_of_time_only_if_its_last_reader_s_is_too_short() -> None:
    """One client's deadline ends nobody else's request: a hurried one may have joined a patient one's."""
    queue: Batcher[Flight] = Batcher(limit=9, max_batch=9, ticket=tickets(lambda model: None, 512))
    for _ in range(MIN_PLACES):
        queue.served(None, 60.0)
    queue.put(flight(deadline=1.0), 0.0)
    queue.put(flight(deadline=1.0, latest=100.0), 0.0)
    with pytest.raises(GatewayError) as caught:
        queue.put(flight(deadline=1.0, latest=2.0), 0.0)
    assert caught.value.code is Code.DEADLINE_UNMEETABLE

"""The attributes, events, links and ends of spans, one fact at a time, with spans that are kept in memory."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy.errors import Code, GatewayError
from proxy.flights.flight import Flight
from proxy.flights.phase import Phase
from proxy.flights.spec import Mode
from proxy.server.context import RequestContext
from proxy.server.tracing import (
    MAX_BODY,
    MAX_PROMPT,
    MAX_REASONS,
    UNTRACED,
    FlightSpan,
    RequestTrace,
    Tracing,
    clean,
    fits,
)
from proxy.telemetry.otel import Otel
from proxy.wire.frames import Usage
from proxy.wire.openai import decode
from tests.kit.span_kit import Memory, Span, call_of, chat, flight_of

TEXT = decode("completions", b'{"prompt":"a"}')
LEFT = ("cancelled", "nobody reads it any more")
WHY = GatewayError(Code.INTERNAL, "why")
FINISH = b'data: {"id":"i","model":"m1","choices":[{"index":0,"finish_reason":"%b"}]}\n\n'


class House:
    def __init__(self, *, prompts: bool = False) -> None:
        self.otel = Memory()
        self.tracing = Tracing(cast(Otel, self.otel), prompts=prompts)

    def begin(self, call: Any, inside: Any = None) -> Span:
        self.tracing.begin(cast(RequestContext, call), inside=inside)
        span: Span = call.trace.span
        return span

    def flight(self, flight: Any, call: Any = None) -> FlightSpan:
        return FlightSpan(self.tracing, call, cast(Flight, flight), Span("parent"))

    def ended(self, **more: Any) -> dict[str, Any]:
        """The attributes of a flight's span once it has ended."""
        flight = flight_of(**more)
        made = self.flight(flight)
        made.ended(flight)
        attributes: dict[str, Any] = made.span.attributes
        return attributes


# -- requests -----------------------------------------------------------------------------------------


def test_a_request_s_span_says_which_it_is_and_hangs_where_it_belongs() -> None:
    house = House()
    outer = call_of()
    span = house.begin(outer)
    assert (span.name, span.kind, span.inside) == ("POST /v1/chat/completions", "server", (["00"], []))
    assert span.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "url.path": "/v1/chat/completions",
        "gateway.request_id": "r",
        "gateway.endpoint": "chat",
    }
    assert outer.trace.id == f"{0xAB:032x}"
    span.valid = False
    assert outer.trace.id is None
    assert house.begin(call_of(), inside=outer).inside is span
    assert house.begin(call_of(), inside=call_of()).inside == (["00"], [])
    passed = call_of(endpoint="passthrough")
    passed.request.method = "X" * 40
    passed.request.path = "/" + "a" * 600
    span = house.begin(passed)
    assert (span.name, span.attributes["http.route"]) == ("X" * 16 + " {vllm}", "{vllm}")
    assert span.attributes["url.path"] == "/" + "a" * 511
    stream = call_of(endpoint="streams")
    stream.request.method, stream.request.path = "GET", "/v1/streams/a-name-that-is-a-secret"
    span = house.begin(stream)
    assert (span.name, span.attributes["http.route"]) == ("GET /v1/streams/{stream}", "/v1/streams/{stream}")
    assert "secret" not in str(span.attributes)


@pytest.mark.parametrize("endpoint", sorted(UNTRACED))
def test_what_looks_at_the_gateway_itself_is_not_traced(endpoint: str) -> None:
    house, call = House(), call_of(endpoint=endpoint)
    house.tracing.begin(call)
    assert (house.otel.spans, call.trace) == ([], None)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"temperature": 0.5, "seed": 7}, {"temperature": 0.5, "seed": 7}),
        ({"seed": 2**63 - 1, "top_k": 5}, {"seed": 2**63 - 1, "top_k": 5}),
        ({"seed": 2**63}, {}),
        ({"seed": -(2**63), "top_k": 2**63 - 1}, {"seed": -(2**63), "top_k": 2**63 - 1}),
        ({"top_k": -(2**63) - 1, "top_p": 0.25}, {"top_p": 0.25}),
        ({"max_tokens": 9, "n": 3}, {"max_tokens": 9, "choice.count": 3}),
        ({"max_tokens": 9, "max_completion_tokens": 4}, {"max_tokens": 4}),
        ({"frequency_penalty": 1.5, "presence_penalty": 0.5}, {"frequency_penalty": 1.5, "presence_penalty": 0.5}),
        ({"top_k": "x", "presence_penalty": 0.5}, {"presence_penalty": 0.5}),  # what comes after it is told
        ({"top_k": None, "model": "é" * 300}, {"model": "é" * 256}),
    ],
)
def test_what_was_asked_for_stands_in_the_span_as_far_as_it_can_be_sent(
    asked: dict[str, Any], told: dict[str, Any]
) -> None:
    found = House().tracing.request_attributes(call_of(api_request=chat(**asked)))
    assert found == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.stream": False,
        "gen_ai.request.model": "m1",
    } | {f"gen_ai.request.{name}": value for name, value in told.items()}


def test_of_a_request_without_a_reading_the_model_is_told_where_it_is_known() -> None:
    tracing = House().tracing
    assert tracing.request_attributes(call_of()) == {}
    assert tracing.request_attributes(call_of(model="é" * 300)) == {"gen_ai.request.model": "é" * 256}
    assert "gen_ai.request.model" not in tracing.request_attributes(
        call_of(api_request=decode("chat", b'{"messages": []}'))
    )
    prompt = House(prompts=True).tracing.request_attributes(
        call_of(api_request=chat(messages=["x" * MAX_PROMPT]))
    )["gateway.prompt"]
    assert (len(prompt), prompt[:4]) == (MAX_PROMPT, '["xx')


@pytest.mark.parametrize(
    ("facts", "told", "failed"),
    [
        ({}, {"http.response.status_code": 200}, []),
        ({"status": 0}, {}, []),
        ({"client_left": True}, {"gateway.client_left": True}, []),
        ({"ttft_ms": 250.0}, {"gen_ai.response.time_to_first_chunk": 0.25}, []),
        ({"ttft_ms": 0.0}, {"gen_ai.response.time_to_first_chunk": 0.0}, []),
        ({"caller": SimpleNamespace(name="k")}, {"gateway.key_name": "k"}, []),
        ({"caller": SimpleNamespace(name="")}, {}, []),
        ({"status": 500}, {}, [("500", "")]),
        ({"status": 503, "failure": lambda: "queue_full"}, {}, [("queue_full", "")]),
        ({"status": 200, "failure": lambda: "upstream_truncated"}, {}, [("upstream_truncated", "")]),
        ({"status": 399, "failure": lambda: "odd"}, {}, [("odd", "")]),
        ({"status": 400, "failure": lambda: "missing_field"}, {"error.type": "missing_field"}, []),
        ({"status": 499, "failure": lambda: None}, {}, []),
    ],
)
def test_the_end_of_a_request(facts: dict[str, Any], told: dict[str, Any], failed: list[Any]) -> None:
    house, call = House(), call_of(**facts)
    span = house.begin(call)
    before = dict(span.attributes)
    call.trace.ended(call)
    assert (span.failed, span.ends) == (failed, [None])
    new = {name: value for name, value in span.attributes.items() if name not in before}
    assert new.pop("gateway.verdict") == "miss"
    status = new.pop("http.response.status_code", None)
    assert status == (call.status or None)
    told.pop("http.response.status_code", None)
    assert new == told


def test_a_span_that_is_not_recorded_only_ends() -> None:
    house, call = House(), call_of()
    span = house.begin(call)
    span.recording = False
    call.trace.ended(call)
    assert ("gateway.verdict" in span.attributes, span.ends) == (False, [None])
    flight = flight_of(times={"ended": 11.0})
    made = house.flight(flight)
    made.span.recording = False
    made.ended(flight)
    assert ("gateway.outcome" in made.span.attributes, len(made.span.ends)) == (False, 1)


def test_the_first_reader_s_flight_is_part_of_it_and_to_another_s_it_has_a_link() -> None:
    house, flight = House(), flight_of(usage=Usage(prompt_tokens=3, completion_tokens=2))
    first, second, third = call_of(), call_of(), call_of()
    reader = SimpleNamespace(flight=flight)
    for call in (first, second):
        house.begin(call)
        call.trace.reads(call, reader)
        call.reader = reader
    assert flight.trace.span.inside is first.trace.span
    assert first.trace.span.links == []
    assert second.trace.span.links == [(flight.trace.span, {"gateway.link": "reads"})]
    flight.trace.frame(FINISH % b"stop")
    second.trace.ended(second)
    assert second.trace.span.attributes["gen_ai.usage.output_tokens"] == 2
    assert second.trace.span.attributes["gen_ai.response.model"] == "m1"
    house.begin(third)
    flight.trace = object()
    third.trace.reads(third, reader)
    third.reader = reader
    third.trace.ended(third)
    assert (third.trace.span.links, "gen_ai.response.model" in third.trace.span.attributes) == ([], False)


# -- flights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flight", "name"),
    [
        (flight_of(chat()), "flight chat m1"),
        (flight_of(chat(), model=None), "flight chat unknown"),
        (flight_of(), "flight passthrough m1"),
        (
            flight_of(decode("completions", b'{"prompt":"a"}'), model="x" * 300),
            "flight text_completion " + "x" * 256,
        ),
    ],
)
def test_a_flight_s_span_is_named_by_what_is_done(flight: Any, name: str) -> None:
    made = House(prompts=True).flight(flight, call_of(api_request=chat(seed=7)))
    assert (made.span.name, made.span.kind) == (name, "internal")
    assert made.span.attributes["gen_ai.request.seed"] == 7
    assert "gateway.prompt" not in made.span.attributes, "it stands in the request's"


def test_times_are_the_flight_s_in_the_world_s_clock() -> None:
    times = {"created": 5000.0, "first": 5000.25, "ended": 5001.5, "dispatched": 5000.125}
    flight = flight_of(clock=lambda: 5000.0, times=times)
    made = House().flight(flight)
    made.attempt("http://e:1")
    attempt = made._attempt
    made.ended(flight)
    start = made.span.start
    assert abs(start - time.time_ns()) < 60e9
    assert made.span.events[-1] == ("gateway.first_token", None, start + 250_000_000)
    assert made.span.ends == attempt.ends == [start + 1_500_000_000]
    assert attempt.attributes["gen_ai.response.time_to_first_chunk"] == 0.125


@pytest.mark.parametrize(
    ("backend", "address", "port"),
    [
        ("http://engine", "engine", 80),
        ("https://engine", "engine", 443),
        ("https://engine:8000/base", "engine", 8000),
        ("unix:///run/vllm.sock", "/run/vllm.sock", None),
        ("odd", "odd", None),
        ("", "", None),
    ],
)
def test_an_attempt_says_where_it_goes(backend: str, address: str, port: int | None) -> None:
    made = House().flight(flight_of())
    made.attempt(backend)
    told = made._attempt.attributes
    assert (told["server.address"], told.get("server.port")) == (address, port)
    assert (told["gen_ai.request.model"], told["gen_ai.operation.name"]) == ("m1", "passthrough")
    assert "http.request.resend_count" not in told
    assert (made._attempt.kind, made._attempt.inside) == ("client", made.span)
    assert made.span.events == [("gateway.lease", {"gateway.backend": address}, None)]
    made = House().flight(flight_of(model=None))
    made.attempt(backend)
    assert "gen_ai.request.model" not in made._attempt.attributes


def test_each_attempt_after_the_first_says_how_often_it_was_sent_before() -> None:
    made = House().flight(flight_of())
    made.retried("stale")  # nothing is under way: nothing to end
    counts = []
    for cause in ("429", "connect", "x"):
        made.attempt("http://e")
        attempt = made._attempt
        counts.append(attempt.attributes.get("http.request.resend_count"))
        made.retried(cause)
        assert (attempt.failed, attempt.ends) == ([(cause, "")], [None])
        assert attempt.attributes.get("http.response.status_code") == (429 if cause == "429" else None)
        assert made._attempt is None
    assert counts == [None, 1, 2]


def test_the_headers_of_a_request_are_the_client_s_but_those_of_the_trace() -> None:
    house = House()
    made = house.flight(flight_of())
    brought = [("TraceParent", "theirs"), ("a", "b"), ("tracestate", "theirs")]
    assert made.headers(brought) == [("a", "b"), *house.otel.sent, ("of", "flight passthrough m1")]
    made.attempt("http://e")
    assert made.headers(brought)[-1] == ("of", "passthrough m1")
    house.otel.sent = []
    assert made.headers(brought) == brought


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({}, {"gateway.outcome": "landed", "gateway.attempts": 1}),
        ({"stored_at": 0.0, "phase": Phase.LANDED}, {"gateway.outcome": "hit", "gateway.attempts": 1}),
        ({"phase": Phase.FAILED, "attempts": 3}, {"gateway.outcome": "failed", "gateway.attempts": 3}),
        ({"content_events": 5}, {"gateway.content_events": 5, "gateway.outcome": "landed", "gateway.attempts": 1}),
    ],
)
def test_the_end_of_a_flight(facts: dict[str, Any], told: dict[str, Any]) -> None:
    assert House().ended(**facts) == told | {"gateway.readers": 2}


def test_the_events_and_the_error_of_a_flight_s_end() -> None:
    house = House()
    flight = flight_of(stored_at=1.0, times={"first": 11.0}, error=GatewayError(Code.QUEUE_FULL, "words"))
    made = house.flight(flight)
    made.event("queued", place=3)
    made.ended(flight)
    assert made.span.events == [
        ("gateway.queued", {"gateway.place": 3}, None),
        ("gateway.lookup", {"gateway.hit": True}, None),
    ]
    assert (made.span.failed, made.span.ends) == ([(Code.QUEUE_FULL.code, "words")], [None])


@pytest.mark.parametrize(
    ("facts", "status", "failed"),
    [
        ({}, None, []),
        ({"head": SimpleNamespace(status=200)}, 200, []),
        ({"head": SimpleNamespace(status=399)}, 399, []),
        ({"head": SimpleNamespace(status=400)}, 400, [("400", "")]),
        (
            {"phase": Phase.CANCELLED, "head": SimpleNamespace(status=400)},
            400,
            [LEFT],
        ),
        (
            {"error": GatewayError(Code.INTERNAL, "why"), "phase": Phase.CANCELLED},
            None,
            [(Code.INTERNAL.code, "why")],
        ),
    ],
)
def test_the_end_of_an_attempt(facts: dict[str, Any], status: int | None, failed: list[Any]) -> None:
    flight = flight_of(usage=Usage(3, 2), times={"first": 1.0}, **facts)
    made = House().flight(flight)
    made.frame(FINISH % b"stop")
    made.attempt("http://e")
    attempt = made._attempt
    made.ended(flight)
    assert (attempt.attributes.get("http.response.status_code"), attempt.failed) == (status, failed)
    assert (attempt.ends, made._attempt) == ([None], None)
    assert "gen_ai.response.time_to_first_chunk" not in attempt.attributes
    assert attempt.attributes["gen_ai.usage.output_tokens"] == 2
    assert attempt.attributes["gen_ai.response.finish_reasons"] == ["stop"]


# -- what an engine says ------------------------------------------------------------------------------


def test_a_frame_is_read_until_the_model_is_known_and_where_a_choice_ends() -> None:
    made = House().flight(flight_of())
    assert made.answer_attributes() == {}
    made.frame(b": comment\ndata: [DONE]\n\n")
    made.frame(b'data: {"id":"' + b"i" * 300 + b'","model":"' + b"m" * 300 + b'","choices":[]}\n\n')
    made.frame(b'data: {"id":"other","model":"other","choices":[{"finish_reason":null}]}\n\n')
    made.frame(b'data: {"choices":[{"finish_reason": "' + b"s" * 40 + b'"},{"finish_reason":""}]}\n\n')
    made.frame(FINISH.replace(b'reason":', b'reason" : ') % b"stop")
    assert made.answer_attributes() == {
        "gen_ai.response.model": "m" * 256,
        "gen_ai.response.id": "i" * 256,
        "gen_ai.response.finish_reasons": ["s" * 32, "stop"],
    }
    for _ in range(2 * MAX_REASONS):
        made.frame(FINISH % b"length")
    assert made.answer_attributes()["gen_ai.response.finish_reasons"] == [
        "s" * 32,
        "stop",
        *["length"] * (MAX_REASONS - 2),
    ]


def test_once_the_model_is_known_only_the_end_of_a_choice_is_read() -> None:
    made = House().flight(flight_of())
    made.frame(b'data:{"model":"m1","choices":[]}\n\n')
    made.frame(b'data:{"id":"late","model":"other","choices":[]}\n\n')
    assert made.answer_attributes() == {"gen_ai.response.model": "m1"}
    made.frame(FINISH % b"stop")
    assert made.answer_attributes()["gen_ai.response.id"] == "i"


@pytest.mark.parametrize("data", [b"\xff", b"{", b'{"model": 1}', b"[" * 100_000, b'{"model": "\xff"}'])
def test_what_no_engine_says_is_left_out(data: bytes) -> None:
    made = House().flight(flight_of())
    made.frame(b"data:" + data + b"\n\n")
    assert made.answer_attributes() == {}


@pytest.mark.parametrize(
    ("facts", "heard"),
    [
        ({}, True),
        ({"mode": Mode.STREAM}, False),
        ({"api_request": None}, False),
        ({"size": 1_000_000}, True),
        ({"size": MAX_BODY}, True),
        ({"size": MAX_BODY + 1}, False),
    ],
)
def test_a_whole_answer_is_looked_into_where_it_is_not_too_large(facts: dict[str, Any], heard: bool) -> None:
    log = [b'{"id":"i","model":"m9",', b'"choices":[]}']
    told = House().ended(**{"api_request": chat(), "mode": Mode.WHOLE, "log": log} | facts)
    assert ("gen_ai.response.model" in told) is heard


def test_a_carrier_s_span_is_inside_the_first_and_the_other_riders_have_links() -> None:
    house = House()
    flights = [flight_of(chat()) for _ in range(3)]
    for flight in flights:
        flight.trace = house.flight(flight)
    flights[2].trace = object()
    merged = flight_of(chat(), members=[flights[0], None, flights[1], flights[2]])
    flights[0].trace.carries(merged)
    own = merged.trace.span
    assert (own.inside, own.attributes) == (flights[0].trace.span, {"gateway.merged": 4})
    assert flights[0].trace.span.links == []
    assert flights[1].trace.span.links == [(own, {"gateway.link": "rides"})]


def test_what_can_be_sent() -> None:
    assert [fits(n) for n in (2**63, 2**63 - 1, -(2**63), -(2**63) - 1, 1e300)] == [False, True, True, False, True]
    assert clean("a\ud800é") == "a?é"
    assert isinstance(RequestTrace(House().tracing, Span()).id, str)

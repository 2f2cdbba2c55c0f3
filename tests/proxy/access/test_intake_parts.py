"""The estimate of a reading to the nanosecond, and what a large request is told by at its bounds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.access.denylist.rules import read_deny_list
from proxy.access.intake import (
    _DIGIT,
    _GROWS,
    _ODD,
    _PART,
    _SIMPLE,
    _TEXT,
    BUDGET,
    MEMBER_BYTES,
    MODEL_CHARS,
    ApiRequestJob,
    Found,
    RawJob,
    Refusal,
    Terms,
    denied_in,
    read_api_request,
    read_raw,
    work,
)
from proxy.access.request_limits import RequestLimits
from proxy.flights.key import Keyer
from proxy.wire.openai import decode

TERMS = Terms(share="auto", routing="power-of-two", assumed=500, sizes=RequestLimits())
HELLO: dict[str, Any] = {"model": "m1", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
E_ACUTE = "\u00e9".encode()


@pytest.mark.parametrize(
    ("body", "weight", "nanoseconds"),
    [
        (b"", None, 0.0),
        (b"a" * 300, None, 300 * _TEXT / 3),
        (b"a" * 299 + b"\\", None, 300 * _TEXT),
        (b"9" * 310, None, 310 * (_TEXT / 3 + _DIGIT)),
        (
            b"9a" * 155,
            None,
            310 * (_TEXT / 3 + _DIGIT / 2),
        ),  # in strings too: the estimate looks at each 31st byte
        (E_ACUTE * 150, None, 300 * (_TEXT / 3 + _TEXT)),
        (b"a" * 300, 10.0, 300 * (_TEXT / 3 + 20.0)),
        (b"a" * 298 + b"\\n", 10.0, 300 * (_TEXT + 20.0)),
        (b"a" * 294 + b"\\u00e9", 10.0, 300 * (_TEXT + _ODD + _GROWS * 10.0)),
        (E_ACUTE * 150, 10.0, 300 * (_TEXT / 3 + _TEXT + _ODD + _GROWS * 10.0)),
        (b"a,b[c{", None, 6 * _TEXT / 3 + 3 * _PART),
        (b"a,b[c{{", 10.0, 7 * (_TEXT / 3 + 20.0) + 4 * 3 * _PART),
        (b"," * 100_000 + b"[", None, 100_001 * _TEXT / 3 + 100_000 * _PART),  # it is over the budget already
        (b"x" * (_SIMPLE + 1), None, 2 * BUDGET),
        (b"x" * _SIMPLE, None, _SIMPLE * _TEXT / 3),
    ],
)
def test_what_a_reading_takes_is_estimated_by_what_is_in_it(
    body: bytes, weight: float | None, nanoseconds: float
) -> None:
    assert work(body, weight) == pytest.approx(nanoseconds)


def test_the_budget_is_for_bodies_of_a_few_megabytes() -> None:
    assert _SIMPLE == 2 * 2**20
    assert BUDGET == 20_000_000


def asked(**changes: Any) -> Found:
    body = json.dumps(HELLO | changes).encode()
    return read_api_request(ApiRequestJob("chat"), body, TERMS, None, Keyer())[0]


@pytest.mark.parametrize(
    ("seed", "kept"),
    [
        (2**63 - 1, 2**63 - 1),
        (2**63, 2**63 - 1),
        (-(2**63), -(2**63)),
        (-(2**63) - 1, -(2**63)),
        (0, 0),
        (None, None),
    ],
)
def test_a_seed_is_kept_as_far_as_it_fits(seed: int | None, kept: int | None) -> None:
    assert asked(seed=seed).seed == kept


def test_members_of_long_names_are_left_out_and_long_models_cut() -> None:
    found = asked(**{"x" * MEMBER_BYTES: 1, "y" * (MEMBER_BYTES + 1): 1})
    assert [name[0] for name in found.fields if len(name) > 100] == ["x"]
    for size in (MODEL_CHARS, MODEL_CHARS + 1):
        assert asked(model="m" * size).model == "m" * MODEL_CHARS
        body = json.dumps({"model": "m" * size, "input": "x"}).encode()
        assert read_raw(RawJob("/v1/responses"), body, TERMS, None)[0].model == "m" * MODEL_CHARS
    assert asked(model=None).model is None


def test_what_is_asked_of_sharing_is_heeded() -> None:
    body = json.dumps(HELLO).encode()
    found, _ = read_api_request(ApiRequestJob("chat"), body, TERMS, None, Keyer())
    assert found.key is not None
    off, _ = read_api_request(ApiRequestJob("chat", override="off"), body, TERMS, None, Keyer())
    assert (off.key, off.refers) == (None, False)
    other, _ = read_api_request(ApiRequestJob("chat", tenant=b"t"), body, TERMS, None, Keyer())
    acted, _ = read_api_request(
        ApiRequestJob("chat", headers=(("x-session-id", "1"),)), body, TERMS, None, Keyer()
    )
    assert len({found.key, other.key, acted.key}) == 3
    content = [{"type": "image_url", "image_url": {"url": "http://h/x.png"}}]
    assert asked(messages=[{"role": "user", "content": content}]).refers
    assert not found.refers
    streams = asked(stream=True)
    assert (streams.stream, streams.include_usage, found.stream) == (True, False, False)
    assert asked(stream=True, stream_options={"include_usage": True}).include_usage


def test_what_keeps_requests_together_is_their_session_or_their_beginning() -> None:
    body = json.dumps(HELLO).encode()
    terms = Terms(share="auto", routing="hash", assumed=500, sizes=RequestLimits())

    def place(session: str, terms: Terms = terms) -> int:
        return read_api_request(ApiRequestJob("chat", session=session), body, terms, None, Keyer())[0].affinity

    assert place("") == place("") != 0
    assert place("a") == place("a") != place("b")
    assert place("a") != place("")
    assert place("a", TERMS) == 0


def test_a_stream_of_an_endpoint_that_does_not_stream_is_sent_as_it_came() -> None:
    body = b'{"model": "m", "input": "a", "stream": true}'
    found, sent = read_api_request(ApiRequestJob("embeddings"), body, TERMS, None, Keyer())
    assert (found.key is not None, sent) == (True, b"")
    off = json.dumps(HELLO | {"stream": True, "temperature": 1}).encode()
    terms = Terms(share="off", routing="hash", assumed=500, sizes=RequestLimits())
    assert read_api_request(ApiRequestJob("chat"), off, terms, None, Keyer())[1] == b""


def test_a_denied_text_is_found_wherever_it_is() -> None:
    deny = read_deny_list("blue bird", "x")
    for messages, found in (
        ([{"role": "user", "content": "a blue bird"}], 1),
        ([{"role": "user", "content": "a blue dog"}], None),
        ([{"role": "user", "content": "x", "name": "blue bird"}], 1),
        ([{"role": "user", "content": [{"type": "text", "text": "blue"}, {"type": "text", "text": "bird"}]}], 1),
    ):
        body = json.dumps(HELLO | {"messages": messages}).encode()
        assert denied_in(deny, decode("chat", body)) == found
        told = read_api_request(ApiRequestJob("chat"), body, TERMS, deny, Keyer())[0]
        assert (told.denied, told.key is None) == (found or 0, found is not None)
        assert read_raw(RawJob("/v1/responses"), body, TERMS, deny)[0].denied == (found or 0)


def test_a_refusal_is_the_same_as_data() -> None:
    refusal = Refusal("QUEUE_FULL", "full", "n", 3)
    error = refusal.error()
    assert (error.code.name, error.message, error.param, error.retry_after) == ("QUEUE_FULL", "full", "n", 3)
    assert Found().api_request("chat", b"x").large is not None
    fresh = Found()
    assert (fresh.stream, fresh.include_usage, fresh.refers, fresh.denied) == (False, False, False, 0)


def test_a_denied_text_is_looked_for_elsewhere_too_where_parts_of_the_prompt_are_joined() -> None:
    deny = read_deny_list("blue bird", "x")
    image = {"type": "image_url", "image_url": {"url": "http://h/x.png"}}
    for texts, name, found in (
        (("blue", "bird"), "x", 1),
        (("blue", "dog"), "blue bird", 1),
        (("blue", "dog"), "x", None),
    ):
        parts = [{"type": "text", "text": texts[0], "more": "y"}, image, {"type": "text", "text": texts[1]}]
        body = json.dumps(HELLO | {"messages": [{"role": "user", "content": parts, "name": name}]}).encode()
        assert denied_in(deny, decode("chat", body)) == found

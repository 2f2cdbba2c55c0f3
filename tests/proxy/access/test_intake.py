"""The whole reading of a request: the same elsewhere as here, and an estimate that is over what it takes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ops.bench.hostile.requests import CASES, Case
from proxy.access.denylist.rules import read_deny_list
from proxy.access.intake import (
    BUDGET,
    MEMBER_BYTES,
    PROMPT_BYTES,
    ApiRequestJob,
    RawJob,
    Terms,
    read_api_request,
    read_raw,
    work,
)
from proxy.access.request_limits import RequestLimits
from proxy.errors import GatewayError
from proxy.flights.cost import estimate
from proxy.flights.key import Keyer
from proxy.wire.fold.folding import foldable
from proxy.wire.openai import PATHS, Endpoint, decode, with_usage
from tests.kit.client import post_json
from tests.kit.engine import Engine
from tests.kit.running import gateway

TERMS = Terms(share="auto", routing="power-of-two", assumed=500, sizes=RequestLimits())
ENDPOINTS: dict[str, Endpoint] = {path: endpoint for endpoint, path in PATHS.items()}
HELLO: dict[str, Any] = {"model": "m1", "messages": [{"role": "user", "content": "héllo\n"}], "temperature": 0}


@pytest.mark.parametrize("case", [case for case in CASES if case.path in ENDPOINTS], ids=lambda case: case.name)
def test_what_is_found_elsewhere_is_what_is_found_here(case: Case) -> None:
    body, endpoint = case.build(2000), ENDPOINTS[case.path]
    found, sent = read_api_request(ApiRequestJob(endpoint, tenant=b"t"), body, TERMS, None, Keyer())
    try:
        api_request = decode(endpoint, body)
        fold = endpoint == "embeddings" or foldable(endpoint, api_request.fields)
        key = Keyer().key(api_request, tenant=b"t", fold=fold)
    except GatewayError as e:
        assert found.refusal is not None
        assert found.refusal.error().body() == e.body()
        return
    assert (found.refusal, found.key, found.cost, sent) == (None, key, tuple(estimate(api_request, 500)), b"")
    large = found.api_request(endpoint, body)
    assert (large.model, large.stream, large.seed, large.body) == (
        api_request.model,
        api_request.stream,
        api_request.seed,
        body,
    )
    assert estimate(large, 500) == estimate(api_request, 500)


def test_a_stream_that_may_be_shared_asks_for_usage_already() -> None:
    body = json.dumps(HELLO | {"stream": True, "stream_options": {"x": 1}}).encode()
    found, sent = read_api_request(ApiRequestJob("chat"), body, TERMS, None, Keyer())
    assert sent == with_usage(decode("chat", body))
    assert with_usage(found.api_request("chat", sent)) == sent


def test_of_a_long_member_only_the_beginning_is_kept() -> None:
    body = json.dumps(HELLO | {"messages": [{"role": "user", "content": "x" * 200_000}], "tools": ["y" * 5000]})
    found, _ = read_api_request(ApiRequestJob("chat"), body.encode(), TERMS, None, Keyer())
    assert len(found.fields["messages"]) == PROMPT_BYTES
    assert len(found.fields["tools"]) == MEMBER_BYTES


def test_a_cap_changes_the_body_and_a_denied_text_is_told_by_its_line() -> None:
    body = json.dumps(HELLO | {"max_tokens": 500}).encode()
    terms = Terms(share="auto", routing="prefix", assumed=500, sizes=RequestLimits(max_tokens=5))
    found, sent = read_api_request(ApiRequestJob("chat"), body, terms, None, Keyer())
    assert json.loads(sent)["max_tokens"] == 5
    assert found.affinity != 0
    deny = read_deny_list("other\nhéllo", "x")
    assert read_api_request(ApiRequestJob("chat"), body, terms, deny, Keyer())[0].denied == 2
    found, sent = read_raw(RawJob("/v1/responses"), body, terms, deny)
    assert (found.denied, found.model, json.loads(sent)["max_output_tokens"]) == (2, "m1", 5)


@pytest.mark.parametrize("seed", [10**30, -(10**30), -1, 7])
def test_a_seed_of_any_size_is_one(seed: int) -> None:
    found, _ = read_api_request(
        ApiRequestJob("chat"), json.dumps(HELLO | {"seed": seed}).encode(), TERMS, None, Keyer()
    )
    assert found.seed is not None
    assert (found.seed >= 0) == (seed >= 0)


def test_what_is_large_is_over_the_estimate_and_what_is_usual_is_not() -> None:
    for case in CASES:
        weight = None if case.group == "plain" else 120.0
        body = case.build(case.size)
        if case.size > 1_000_000 and case.group != "few":
            assert work(body, weight) > BUDGET, case.name
        assert work(case.build(100), weight) < BUDGET / 10, case.name
    usual = json.dumps(HELLO | {"messages": [{"role": "user", "content": "hello world, " * 10_000}]}).encode()
    assert work(usual, None) < BUDGET
    assert work(usual, 45.0) < 2 * BUDGET


async def test_a_model_of_megabytes_costs_no_reading_process(engine: Engine) -> None:
    engine.auto(lambda turn: turn.respond(404, b"{}"))
    body = HELLO | {"model": "m" * 9_000_000}
    async with gateway(engine) as app:
        for path in ("/v1/chat/completions", "/v1/responses"):
            assert (await post_json(app.url, path, body)).status == 404
        assert app.large is not None
        assert len(app.large.pool.pids) == 1
    assert [len(turn.json()["model"]) for turn in engine.requests] == [9_000_000] * 2


@pytest.mark.parametrize("body", [b"{", b'{"messages": 5}', b'{"messages": [], "n": 1, "n": 2}'])
def test_a_request_that_is_refused_says_why_and_goes_nowhere(body: bytes) -> None:
    with pytest.raises(GatewayError) as refused:
        decode("chat", body)
    found, sent = read_api_request(ApiRequestJob("chat"), body, TERMS, None, Keyer())
    assert found.refusal is not None
    assert found.refusal.error().body() == refused.value.body()
    assert (found.key, sent) == (None, b"")


def test_a_body_that_passes_through_and_asks_for_too_much_says_so() -> None:
    terms = Terms(share="auto", routing="prefix", assumed=500, sizes=RequestLimits(max_tokens=5, action="refuse"))
    found, sent = read_raw(RawJob("/v1/responses"), b'{"input": "x", "max_output_tokens": 6}', terms, None)
    assert found.refusal is not None
    assert found.refusal.error().status == 400
    assert sent == b""

"""What a Flight is planned by: its class, its owner, the headers that go up, what was found elsewhere."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy.config.settings import Settings
from proxy.flights.flight import Flight
from proxy.flights.memory import Memory
from proxy.flights.phase import Phase
from proxy.flights.spec import FlightSpec, Mode
from proxy.server.context import RequestContext
from proxy.wire.openai import Large, decode
from tests.kit.clock import virtual
from tests.kit.gateway_stage import BODY, CHAT, STREAM, Asked, Stage
from tests.kit.wire_end import turns


async def launched(stage: Stage, asked: Asked) -> Flight:
    """The Flight that a request launches; the request is given up then."""
    task = stage.handle(asked)
    await turns()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    flight = stage.flights.pop()
    stage.end()
    return flight


async def planned(stage: Stage, asked: Asked) -> FlightSpec:
    """What that Flight is for."""
    return (await launched(stage, asked)).spec


@virtual
async def test_a_credential_goes_to_engines_only_where_that_is_set() -> None:
    for forward in (False, True):
        stage = Stage(Settings(forward_authorization=forward))
        spec = await planned(stage, Asked(authorization="Bearer k", x_session_id="s", x_other="o"))
        sent = dict(spec.headers)
        assert ("authorization" in sent) is forward
        assert (sent["x-session-id"], sent["Content-Type"], "x-other" in sent) == ("s", "application/json", False)
        raw = await planned(stage, Asked("/v1/x", b"{}", authorization="Bearer k"))
        assert ("authorization" in dict(raw.headers)) is forward
        other = await planned(stage, Asked(x_session_id="t"))
        assert other.key != spec.key


@virtual
async def test_whose_turn_it_takes_and_until_when_is_planned() -> None:
    flight = await launched(Stage(), Asked(x_request_timeout="7", x_gateway_priority="low"))
    state = flight.queue_state
    assert callable(state.owner)
    assert state.owner() == "10.0.0.1"
    assert (state.deadline, state.latest, state.priority) == (7.0, 7.0, 2)


@virtual
async def test_samples_may_go_up_together_with_their_twins_and_are_shared_with_nobody() -> None:
    sampled = BODY.replace(b'"temperature": 0', b'"temperature": 1')
    flight = await launched(Stage(), Asked(CHAT, sampled))
    assert (flight.queue_state.merge, flight.spec.key) == (True, None)
    off = await launched(Stage(), Asked(CHAT, sampled, x_gateway_share="off"))
    assert (off.queue_state.merge, off.spec.key, off.spec.tenant) == (False, None, b"")
    always = await launched(Stage(Settings(share="all")), Asked(CHAT, sampled))
    assert (always.queue_state.merge, always.spec.key is None) == (False, False)


@pytest.mark.parametrize(("key", "refers"), [(b"k", False), (b"k", True), (None, False)])
@virtual
async def test_what_a_large_request_was_found_to_be_is_its_plan(key: bytes | None, refers: bool) -> None:
    api_request = decode("chat", BODY)
    api_request.large = Large((5, 6), key, 99, refers)

    async def found(call: Any, endpoint: str, body: bytes) -> Any:
        call.api_request = api_request
        return api_request

    large = SimpleNamespace(inline=1, heavy=lambda body: True, read=found, folds=lambda flight: False)
    stage = Stage(large=large, affinity=lambda api_request, headers: 1)
    flight = await launched(stage, Asked())
    spec = flight.spec
    assert (spec.key, spec.affinity, spec.storable, flight.queue_state.merge) == (key, 99, not refers, False)


@virtual
async def test_a_large_embedding_goes_to_an_engine_as_it_came() -> None:
    api_request = decode("embeddings", b'{"model": "m", "input": "a"}')
    api_request.large = Large((5, 6), b"k", 99, False)

    async def found(call: Any, endpoint: str, body: bytes) -> Any:
        return api_request

    large = SimpleNamespace(inline=1, heavy=lambda body: True, read=found, folds=lambda flight: False)
    stage = Stage(large=large, embedder=SimpleNamespace(take=None, joined=None))
    assert (await planned(stage, Asked("/v1/embeddings", b'{"input": "a"}'))).affinity == 99


@virtual
async def test_who_joins_a_flight_that_waits_shares_its_turn_and_one_under_way_has_none() -> None:
    for under_way in (False, True):
        stage = Stage()
        tasks = [stage.handle(Asked())]
        await turns()
        (flight,) = stage.flights
        if under_way:
            flight.enter(Phase.CONNECTING)
        tasks.append(stage.handle(Asked()))
        await turns()
        owners = [reader.owner for reader in flight.subscribers if reader.verdict == "attached"]
        assert [callable(owner) for owner in owners] == [not under_way]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        stage.end()


@virtual
async def test_a_reader_whose_answer_may_be_stored_lets_it_be_stored_for_all() -> None:
    stage = Stage()
    tasks = [stage.handle(Asked(CHAT, BODY, cache_control="no-store"))]
    await turns()
    (flight,) = stage.flights
    assert not flight.storable
    tasks.append(stage.handle(Asked()))
    await turns()
    assert (len(flight.subscribers), flight.storable) == (2, True)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    stage.end()


@virtual
async def test_the_log_probabilities_of_a_prompt_pass_through_where_they_outgrow_a_flight() -> None:
    body = BODY[:-1] + b', "prompt_logprobs": 5}'
    told: list[int] = []

    async def admit(call: Any, *passed: object) -> None:
        told.append(len(passed))

    for most, mode in ((1, Mode.RAW), (10**9, Mode.WHOLE)):
        stage = Stage(Settings(max_flight_bytes=most), admission=admit)
        plan = await planned(stage, Asked(CHAT, body))
        assert (plan.mode, plan.path, plan.body) == (mode, CHAT, body)
    assert told == [0, 0]


@virtual
async def test_what_is_not_taken_is_charged_where_there_is_a_budget() -> None:
    for memory in (None, Memory(10**6)):
        stage, asked = Stage(memory=memory), Asked()
        call = RequestContext(request=cast(Any, asked), id="r")
        await stage.gateway.responder.wait_writable(call)
        first: Any = call.unread
        assert (first is None) is (memory is None)
        await stage.gateway.responder.wait_writable(call)
        assert call.unread is first
        assert asked.drains == 2


@virtual
async def test_operators_paths_are_where_they_have_a_listener_of_their_own() -> None:
    for port, public in ((0, 200), (9091, 404)):
        stage = Stage(Settings(admin_port=port))
        for admin, status in ((False, public), (True, 200)):
            asked = Asked("/metrics", b"", "GET")
            await stage.answered(asked, admin=admin)
            assert f" {status} ".encode() in asked.sent
    listed = dict(Stage().gateway.routes.listed)
    assert listed.pop("/metrics") == "GET"
    assert {path for path, method in listed.items() if "GET" in method} == {
        "/v1/models",
        "/health",
        "/ping",
        "/ready",
    }
    assert {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/chat", "/embed"} <= listed.keys()


@virtual
async def test_each_path_has_its_endpoint_in_the_log() -> None:
    stage = Stage()
    for path, body, endpoint in (
        ("/chat", STREAM, "chat"),
        (CHAT, BODY, "chat"),
        ("/v1/completions", b'{"model": "m", "prompt": "a", "temperature": 0}', "completions"),
        ("/embed", b'{"model": "m", "input": "a"}', "embeddings"),
        ("/v1/embeddings", b'{"model": "m", "input": "a"}', "embeddings"),
    ):
        await planned(stage, Asked(path, body))
        assert stage.records[-1].endpoint == endpoint
        assert (stage.records[-1].status, stage.records[-1].client_left) == (499, True)

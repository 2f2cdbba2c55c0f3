"""Traces as a collector gets them: what hangs together, what is in them, and a bad collector harming nothing."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from hashlib import sha256
from pathlib import Path

import pytest

from proxy.telemetry.otel import Otel
from tests.kit.client import post_json, streaming
from tests.kit.collector import Collector, join_exporters
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.missing import module
from tests.kit.running import HELLO, HELLO_STREAM, gateway, lines, until
from tests.system.test_life import started

module("opentelemetry.exporter.otlp.proto.http", "trace")
module("opentelemetry.sdk", "trace")

CHAT = "/v1/chat/completions"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
BROUGHT = ("traceparent", f"00-{TRACE}-{PARENT}-01")


@pytest.fixture
async def bounded(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    for name in ("OTEL_TRACES_SAMPLER", "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    async with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        yield collector


@pytest.fixture
def collector(bounded: Collector, monkeypatch: pytest.MonkeyPatch) -> Collector:
    """With time for the last spans: on a slow machine the bound may be over before they are sent."""
    close = Otel.close
    monkeypatch.setattr(Otel, "close", lambda otel, seconds: close(otel, 60.0))
    return bounded


async def test_five_clients_of_one_generation_are_one_flight_that_four_have_links_to(
    engine: Engine, collector: Collector, tmp_path: Path
) -> None:
    secret = ("authorization", "Bearer sk-very-secret")
    async with gateway(engine, trace="otlp", log_to=tmp_path / "log") as app, AsyncExitStack() as stack:
        headers = [secret, BROUGHT, ("tracestate", "vendor=1")]
        readers = [await stack.enter_async_context(streaming(app.url, CHAT, HELLO_STREAM, headers))]
        turn = await engine.next_request()
        for _ in range(4):
            readers.append(await stack.enter_async_context(streaming(app.url, CHAT, HELLO_STREAM, [secret])))
        await until(lambda: app.group.subscribers == 5)
        await turn.send("a")
        await turn.finish(" b", prompt_tokens=3, completion_tokens=2)
        for reader in readers:
            await reader.read()
    servers, flights, clients = (collector.of(kind) for kind in ("server", "internal", "client"))
    assert (len(servers), len(flights), len(clients)) == (5, 1, 1)
    leader = next(span for span in servers if span.parent)
    (flight,), (client,) = flights, clients
    assert (leader.parent, leader.trace) == (PARENT, TRACE)
    assert (flight.parent, client.parent) == (leader.id, flight.id)
    assert {flight.trace, client.trace} == {TRACE}
    assert turn.headers["traceparent"] == f"00-{TRACE}-{client.id}-01"
    assert turn.headers["tracestate"] == "vendor=1"
    followers = [span for span in servers if span is not leader]
    assert [span.links for span in followers] == [[flight.id]] * 4
    assert len({span.trace for span in servers}) == 5
    assert leader.start <= flight.start <= client.start <= client.end <= flight.end <= leader.end
    assert leader.name == f"POST {CHAT}"
    assert client.name == "chat m1"
    assert flight.events == ["gateway.lease", "gateway.first_token"]
    for span in (leader, flight, client):
        assert span.attributes["gen_ai.usage.output_tokens"] == 2
        assert span.attributes["gen_ai.response.finish_reasons"] == ["stop"]
        assert span.attributes["gen_ai.response.model"] == "m1"
        assert not span.failed
    assert sorted(span.attributes["gateway.verdict"] for span in servers) == [*["attached"] * 4, "miss"]
    assert leader.attributes["http.response.status_code"] == 200
    assert leader.attributes["gen_ai.request.temperature"] == 0
    assert collector.resource["service.name"] == "streaming-gateway"
    assert b"hello" not in collector.raw, "no prompt"
    assert b"very-secret" not in collector.raw, "no key"
    logged = [line["trace_id"] for line in lines(tmp_path / "log") if line["msg"] == "request"]
    assert sorted(logged) == sorted(span.trace for span in servers)


async def test_a_hit_is_a_flight_without_an_attempt(engine: Engine, collector: Collector) -> None:
    engine.auto(echo_script())
    async with gateway(engine, trace="otlp", redis="auto") as app:
        await post_json(app.url, CHAT, HELLO)
        assert app.cache is not None
        await until(lambda: len(app.group) == 0)
        assert (await post_json(app.url, CHAT, HELLO)).head["x-gateway-cache"] == "hit"
    asked, hit = sorted(collector.of("internal"), key=lambda span: span.start)
    assert (asked.attributes["gateway.outcome"], hit.attributes["gateway.outcome"]) == ("landed", "hit")
    assert asked.events == ["gateway.queued", "gateway.lookup", "gateway.lease", "gateway.first_token"]
    assert hit.events == ["gateway.queued", "gateway.lookup"]
    assert [span.parent for span in collector.of("client")] == [asked.id]


async def test_a_retry_is_a_second_attempt_inside_the_same_flight(engine: Engine, collector: Collector) -> None:
    async with (
        gateway(engine, trace="otlp", retry_backoff_ms=0) as app,
        streaming(app.url, CHAT, HELLO_STREAM) as client,
    ):
        first = await engine.next_request()
        await first.respond(503, {"error": {"message": "busy"}})
        second = await engine.next_request()
        await second.finish("a")
        await client.read()
    failed, good = collector.of("client")
    assert (failed.attributes["error.type"], failed.failed, good.failed) == ("503", True, False)
    assert (failed.attributes["http.response.status_code"], good.attributes["http.request.resend_count"]) == (
        503,
        1,
    )
    assert {failed.parent, good.parent} == {collector.of("internal")[0].id}
    assert collector.of("internal")[0].attributes["gateway.attempts"] == 2
    assert first.headers["traceparent"].split("-")[2] == failed.id
    assert second.headers["traceparent"].split("-")[2] == good.id


async def test_a_request_whose_client_leaves_ends_its_spans(engine: Engine, collector: Collector) -> None:
    async with gateway(engine, trace="otlp") as app:
        async with streaming(app.url, CHAT, HELLO_STREAM) as client:
            turn = await engine.next_request()
            await turn.send("a")
            await client.event()
            await client.abort()
        await turn.cancelled()
    (server,), (flight,), (attempt,) = (collector.of(kind) for kind in ("server", "internal", "client"))
    assert server.attributes["gateway.client_left"] is True
    assert flight.attributes["gateway.outcome"] == "cancelled"
    assert (attempt.attributes["error.type"], attempt.failed) == ("cancelled", True)


async def test_merged_twins_have_flights_of_their_own_with_links_to_the_one_that_carries_them(
    collector: Collector,
) -> None:
    body = HELLO_STREAM | {"temperature": 1}
    async with Engine() as engine, gateway(engine, trace="otlp", max_inflight=1) as app, AsyncExitStack() as stack:
        other = HELLO_STREAM | {"messages": [{"role": "user", "content": "other"}]}
        clients = [await stack.enter_async_context(streaming(app.url, CHAT, other))]
        first = await engine.next_request()
        for _ in range(2):
            clients.append(await stack.enter_async_context(streaming(app.url, CHAT, body)))
        await until(lambda: len(app.scheduler.queue) == 2)
        await first.finish("x")
        merged = await engine.next_request()
        assert merged.json()["n"] == 2
        await merged.send("a", index=0)
        await merged.send("b", index=1)
        await merged.finish(choices=(0, 1))
        for client in clients:
            await client.read()
    carrier = next(span for span in collector.of("internal") if "gateway.merged" in span.attributes)
    riders = [span for span in collector.of("internal") if span.id == carrier.parent or carrier.id in span.links]
    assert len(riders) == 2
    assert merged.headers["traceparent"].split("-")[2] in [
        span.id for span in collector.of("client") if span.parent == carrier.id
    ]


async def test_no_span_is_lost_at_the_end(engine: Engine, collector: Collector) -> None:
    engine.auto(echo_script())
    async with gateway(engine, trace="otlp", share="off") as app:
        answers = await asyncio.gather(*(post_json(app.url, CHAT, HELLO) for _ in range(60)))
    assert {answer.status for answer in answers} == {200}
    assert [len(collector.of(kind)) for kind in ("server", "internal", "client")] == [60, 60, 60]


async def test_what_is_refused_is_the_client_s_error_and_what_an_engine_fails_at_is_ours(
    engine: Engine, collector: Collector
) -> None:
    async with gateway(engine, trace="otlp", retries=0) as app:
        assert (await post_json(app.url, CHAT, {"model": "m1"}, [("traceparent", "00-bad-bad-01")])).status == 400
        async with streaming(app.url, CHAT, HELLO_STREAM, [BROUGHT, BROUGHT]) as client:
            for _ in range(2):  # the first on a kept connection, which is no retry
                await (await engine.next_request()).drop()
            assert (await client.read()).status == 502
    refused, failed = sorted(collector.of("server"), key=lambda span: span.start)
    assert (refused.attributes["error.type"], refused.failed, refused.parent) == ("missing_field", False, "")
    assert (failed.attributes["error.type"], failed.failed, failed.parent) == ("upstream_unreachable", True, "")


async def test_no_request_can_take_the_spans_of_others_with_it_or_fill_the_log(
    engine: Engine, collector: Collector, tmp_path: Path
) -> None:
    engine.auto(echo_script())
    sly = HELLO | {"seed": 10**30, "max_tokens": 2**63, "top_k": "x", "top_p": 1e300, "model": "m1\u2028\x00"}
    async with gateway(engine, trace="otlp", log_to=tmp_path / "log") as app:
        await post_json(app.url, CHAT, HELLO)
        await post_json(app.url, CHAT, sly)
        await post_json(app.url, "/v1/%e2%80%a8%ef%bf%bf?x=%ed%a0%80", {"model": 1})
        await post_json(app.url, CHAT, HELLO)
    assert len(collector.of("server")) == 4
    assert [line for line in lines(tmp_path / "log") if line["msg"] == "tracing"] == []


async def test_prompts_are_in_a_trace_only_where_the_setting_asks_for_them(
    engine: Engine, collector: Collector
) -> None:
    engine.auto(echo_script())
    async with gateway(engine, trace="otlp", log_prompts=True) as app:
        await post_json(app.url, CHAT, HELLO)
    assert "hello" in collector.of("server")[0].attributes["gateway.prompt"]


async def test_what_is_not_sampled_is_not_sent_and_its_trace_goes_on(
    engine: Engine, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    engine.auto(echo_script())
    async with gateway(engine, trace="otlp") as app:
        await post_json(app.url, CHAT, HELLO, [BROUGHT])
    assert collector.spans == []
    assert engine.requests[-1].headers["traceparent"].startswith(f"00-{TRACE}-")
    assert engine.requests[-1].headers["traceparent"].endswith("-00")


async def test_where_the_environment_turns_spans_off_the_client_s_trace_goes_on_as_it_came(
    engine: Engine, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    engine.auto(echo_script())
    async with gateway(engine, trace="otlp") as app:
        assert (await post_json(app.url, CHAT, HELLO, [BROUGHT])).status == 200
    assert collector.spans == []
    assert engine.requests[-1].headers["traceparent"] == BROUGHT[1]


async def test_the_page_s_readers_are_parts_of_its_one_request(engine: Engine, collector: Collector) -> None:
    engine.auto(echo_script())
    body = {"request": HELLO_STREAM, "delays_ms": [0, 0]}
    async with gateway(engine, trace="otlp") as app, streaming(app.url, "/-/readers", body) as client:
        await client.read()
    assert len(collector.of("server")) == 3
    assert len({span.trace for span in collector.spans}) == 1


@pytest.mark.e2e
async def test_the_program_ends_by_sigterm_with_every_span_sent(
    engine: Engine, collector: Collector, tmp_path: Path
) -> None:
    flags = ("--backend", engine.url, "--redis", "off", "--trace", "otlp")
    async with (
        started(tmp_path / "log", *flags, OTEL_SERVICE_NAME="mine", OTEL_BSP_SCHEDULE_DELAY="60000") as process,
        streaming(process.url, CHAT, HELLO_STREAM) as client,
    ):
        turn = await engine.next_request()
        await turn.send("a")
        await client.event()
        process.signal(signal.SIGTERM)
        await process.logged("stopping")
        await turn.finish(" b")  # what is under way at the signal is in the trace too
        await client.read()
        await process.ended()
    assert [len(collector.of(kind)) for kind in ("server", "internal", "client")] == [1, 1, 1]
    assert collector.resource["service.name"] == "mine"


@pytest.mark.parametrize("frozen", [True, False])
async def test_a_collector_that_hangs_or_is_away_harms_no_request_and_not_the_end(
    engine: Engine, bounded: Collector, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, frozen: bool
) -> None:
    bounded.frozen = frozen
    if not frozen:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    engine.auto(echo_script())
    try:
        async with gateway(engine, trace="otlp", drain_timeout=0.2, log_to=tmp_path / "log") as app:
            assert (await post_json(app.url, CHAT, HELLO)).status == 200
    finally:
        await asyncio.to_thread(join_exporters)
    assert bounded.spans == []
    assert [line["detail"] for line in lines(tmp_path / "log") if line["msg"] == "tracing"]


async def test_the_name_of_a_key_is_told_and_the_key_is_not(
    engine: Engine, collector: Collector, tmp_path: Path
) -> None:
    engine.auto(echo_script())
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[[keys]]\nname = "team-a"\nsha256 = "{sha256(b"sk-secret").hexdigest()}"\n')
    async with gateway(engine, trace="otlp", api_keys_file=str(keys)) as app:
        await post_json(app.url, CHAT, HELLO, [("authorization", "Bearer sk-secret")])
    (server,) = collector.of("server")
    assert server.attributes["gateway.key_name"] == "team-a"
    assert b"sk-secret" not in collector.raw

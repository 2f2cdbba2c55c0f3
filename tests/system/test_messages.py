"""Anthropic's Messages over loopback, with Anthropic's own client: keys, errors, tokens, keep-alives, engines. The
engine answers as vLLM was recorded to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from proxy.app import App
from tests import golden
from tests.kit.client import call, get, post_json, streaming
from tests.kit.engine import Engine, Turn
from tests.kit.late import late
from tests.kit.running import gateway, lines, until
from tests.proxy.access.ratelimit.test_admission import levels
from tests.proxy.access.test_policy import bearer, entry

if TYPE_CHECKING:
    import anthropic
else:
    anthropic = late("anthropic")

PATH = "/v1/messages"
STREAM = golden.load("messages-stream")
BODY = golden.load("messages")
ASK: dict[str, Any] = {"model": "m1", "max_tokens": 8, "messages": [{"role": "user", "content": "Name a colour."}]}
ASK_STREAM = ASK | {"stream": True}
PING = b'event: ping\ndata: {"type": "ping"}\n\n'


async def script(turn: Turn) -> None:
    """As vLLM."""
    if "count_tokens" in turn.path:
        await turn.respond(200, {"input_tokens": 34})
    elif turn.wants_stream:
        await turn.start()
        await turn.end(*STREAM.frames())
    else:
        await turn.respond(200, BODY.body)


@pytest.fixture(autouse=True, scope="module")
def client() -> None:
    """It is imported before a loop runs, which the import would hold up for seconds."""
    _ = anthropic.AsyncAnthropic


@asynccontextmanager
async def client_of(app: App, key: str = "k") -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(api_key=key, base_url=app.url, max_retries=0) as client:
        yield client


def keys_file(tmp_path: Path) -> str:
    path = tmp_path / "keys.toml"
    path.write_text(entry("ka", "team-a") + entry("kb", "team-b", 'models = ["m2"]'))
    path.chmod(0o600)
    return str(path)


async def test_anthropics_client_with_its_key_gets_what_the_engine_says_and_the_log_has_its_tokens(
    engine: Engine, tmp_path: Path
) -> None:
    engine.auto(script)
    log = tmp_path / "log"
    async with (
        gateway(engine, log_to=log, api_keys_file=keys_file(tmp_path)) as app,
        client_of(app, "ka") as client,
    ):
        whole = await client.messages.create(**ASK)
        async with client.messages.stream(**ASK) as stream:
            texts = [text async for text in stream.text_stream]
            streamed = await stream.get_final_message()
        counted = await client.messages.count_tokens(model="m1", messages=ASK["messages"])
        raw = await post_json(app.url, PATH, ASK_STREAM, [("x-api-key", "ka"), *bearer("ka")])
        assert whole._request_id is not None
        assert raw.head["request-id"] == raw.head["x-request-id"]
        async with client_of(app, "kb") as other:
            with pytest.raises(anthropic.NotFoundError) as refused:
                await other.messages.create(**ASK)
        assert refused.value.request_id is not None
    said = [getattr(block, "text", None) for message in (whole, streamed) for block in message.content]
    assert said == ["".join(texts)] * 2 == ["1. Red: The most obvious colour"] * 2
    assert (whole.usage.output_tokens, streamed.usage.output_tokens, counted.input_tokens) == (8, 8, 34)
    assert raw.body == STREAM.body
    assert all("x-api-key" not in turn.headers and "authorization" not in turn.headers for turn in engine.requests)
    told = [line for line in lines(log) if line["msg"] == "request"]
    assert told.pop()["status"] == 404
    assert [line["endpoint"] for line in told] == ["messages", "messages", "passthrough", "messages"]
    for line in told[0], told[1], told[3]:
        assert (line["prompt_tokens"], line["completion_tokens"], line["token_source"]) == (34, 8, "usage")
        assert line["ttft_ms"] is not None
        assert line["key"] == "team-a"
    assert [line["stream"] for line in told] == [False, True, False, True]


REFUSALS: dict[str, tuple[dict[str, Any], dict[str, Any], str, int, str]] = {
    "no such key": ({}, ASK, "kx", 401, "authentication_error"),
    "model": ({}, ASK, "kb", 404, "not_found_error"),
    "denied": ({"deny_file": "deny"}, ASK | {"system": "Forbidden fruit"}, "ka", 400, "invalid_request_error"),
    "too large": ({"max_body_bytes": 1024}, ASK | {"system": "x" * 2000}, "ka", 413, "request_too_large"),
    "rate": ({"rate_limit_rps": 0.001, "rate_limit_burst": 1}, ASK, "ka", 429, "rate_limit_error"),
    "silent engine": ({"first_token_timeout": 0.1, "retries": 0}, ASK_STREAM, "ka", 504, "timeout_error"),
    "queue": ({"max_inflight": 1, "queue_limit": 1}, ASK, "ka", 503, "overloaded_error"),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_every_refusal_of_ours_has_anthropics_shape_and_its_client_raises_the_right_error(
    engine: Engine, tmp_path: Path, case: str
) -> None:
    settings, ask, key, status, kind = REFUSALS[case]
    if "deny_file" in settings:
        (tmp_path / "deny").write_text("forbidden fruit")
        settings = settings | {"deny_file": str(tmp_path / "deny")}
    async with gateway(engine, api_keys_file=keys_file(tmp_path), **settings) as app:
        holding = []
        if case == "queue":  # one at the engine, one in the queue
            holding.append(asyncio.create_task(post_json(app.url, PATH, ASK, bearer("ka"))))
            turn = await engine.next_request()
            holding.append(asyncio.create_task(post_json(app.url, PATH, ASK, bearer("ka"))))
            await until(lambda: len(app.scheduler.queue) == 1)
        elif case == "rate":
            engine.auto(script)
            await post_json(app.url, PATH, ASK, bearer("ka"))
        async with client_of(app, key) as client:
            with pytest.raises(anthropic.APIStatusError) as raised:
                await client.messages.create(**ask)
        assert raised.value.status_code == status
        told = raised.value.body
        assert isinstance(told, dict)
        assert set(told) == {"type", "error", "request_id"}
        assert (told["type"], told["error"]["type"]) == ("error", kind)
        assert set(told["error"]) == {"type", "message"}
        assert raised.value.response.headers["x-request-id"] == told["request_id"]
        if holding:
            await turn.respond(200, BODY.body)
            await (await engine.next_request()).respond(200, BODY.body)
            assert [answer.status for answer in await asyncio.gather(*holding)] == [200, 200]


async def test_other_refusals_on_its_paths_have_the_shape_too_and_those_beside_it_do_not(
    engine: Engine, tmp_path: Path
) -> None:
    async with gateway(engine, api_keys_file=keys_file(tmp_path)) as app:
        for path in (PATH, PATH + "/count_tokens", PATH + "/batches/x?y=1"):
            answer = await call(app.url, "POST", path, b"{}", [("content-type", "application/json")])
            assert (answer.status, answer.json()["error"]["type"]) == (401, "authentication_error")
            assert "x-api-key" in answer.json()["error"]["message"]
        both = [("x-api-key", "kb"), *bearer("ka"), ("content-type", "application/json")]
        answer = await call(app.url, "POST", PATH, b"{}", both)
        assert "different API keys" in answer.json()["error"]["message"]
        answer = await call(
            app.url, "POST", PATH, b"{", [("x-api-key", "ka"), ("content-type", "application/json")]
        )
        assert (answer.status, answer.json()["error"]["type"]) == (400, "invalid_request_error")
        answer = await call(app.url, "POST", PATH, b"a", [("x-api-key", "ka"), ("content-type", "text/plain")])
        assert (answer.status, answer.json()["error"]["type"]) == (415, "invalid_request_error")
        beside = await call(app.url, "POST", "/v1/messagesx", b"{}", [("content-type", "application/json")])
        assert beside.json()["error"]["code"] == "invalid_api_key"
        assert (await get(app.url, "/v1/models", [("x-api-key", "kb")])).status == 200
    engine.stop_listening()
    async with gateway(engine, retries=0) as app:
        answer = await post_json(app.url, PATH, ASK)
        assert (answer.status, answer.json()["error"]["type"]) == (502, "api_error")


@pytest.mark.parametrize("how", ["ends", "drops", "stops", "deadline"])
async def test_a_stream_that_is_cut_ends_with_an_error_event_and_the_client_raises(
    engine: Engine, how: str
) -> None:
    settings: dict[str, Any] = {"token_timeout": 0.1} if how == "stops" else {}
    headers = {"x-request-timeout": "1.5"} if how == "deadline" else {}
    async with gateway(engine, **settings) as app, client_of(app) as client:
        reading = asyncio.create_task(_collected(client, headers))
        turn = await engine.next_request()
        await turn.start()
        await turn.frame(*STREAM.frames()[:5], b'event: content_block_delta\ndata: {"type":"content_bl')
        if how == "ends":
            await turn.end()
        elif how == "drops":
            await turn.drop(reset=True)
        text, error = await reading
    assert text == "1. Red"
    assert isinstance(error, anthropic.APIStatusError)
    assert isinstance(error.body, dict)
    assert error.body["error"]["type"] == ("timeout_error" if how in ("stops", "deadline") else "api_error")


async def _collected(client: anthropic.AsyncAnthropic, headers: dict[str, str]) -> tuple[str, Exception | None]:
    text = ""
    try:
        async with client.messages.stream(**ASK, extra_headers=headers) as stream:
            async for piece in stream.text_stream:
                text += piece
    except anthropic.APIError as e:
        return text, e
    return text, None


async def test_an_error_event_of_the_engine_comes_through_and_counts_as_one(
    engine: Engine, tmp_path: Path
) -> None:
    said = b'event: error\ndata: {"type":"error","error":{"type":"internal_error","message":"oops"}}\n\n'
    async with gateway(engine) as app:
        async with streaming(app.url, PATH, ASK_STREAM) as client:
            turn = await engine.next_request()
            await turn.start()
            await turn.end(STREAM.frames()[0], said)
            assert (await client.read()).body == STREAM.frames()[0] + said
        page = (await get(app.url, "/metrics")).body.decode()
        assert 'gateway_flights_ended_total{outcome="error"} 1' in page


async def test_tokens_are_charged_by_the_engines_count_and_of_a_cut_stream_what_came(engine: Engine) -> None:
    million = [frame.replace(b'"output_tokens":8', b'"output_tokens":1000000') for frame in STREAM.frames()]
    bounds: dict[str, Any] = {"rate_limit_tokens_per_minute": 10_000, "retries": 0}
    for stream in (True, False):
        async with gateway(engine, **bounds) as app:
            post = asyncio.create_task(post_json(app.url, PATH, ASK | {"stream": stream}))
            turn = await engine.next_request()
            assert levels(app).tokens < 1000
            if stream:
                await turn.start()
                await turn.end(*million)
            else:
                await turn.respond(200, BODY.body.replace(b'"output_tokens":8', b'"output_tokens":1000000'))
            assert (await post).status == 200
            await until(lambda: levels(app).streams == 0)
            assert 0.9 * 10**6 < levels(app).tokens <= 10**6 + 34
    async with gateway(engine, **bounds) as app:
        assert app.admission is not None
        limiter = app.admission.limiter
        now = limiter.clock()
        limiter.clock = lambda: now  # 167 tokens leak in a second: a pause would be taken for a smaller charge
        post = asyncio.create_task(post_json(app.url, PATH, ASK_STREAM | {"max_tokens": 500}))
        turn = await engine.next_request()
        assert levels(app).tokens > 400
        await turn.start()
        await turn.end(*STREAM.frames()[:5])
        assert (await post).status == 200
        await until(lambda: levels(app).streams == 0)
        assert 0 < levels(app).tokens < 100  # the prompt, and three events with text


async def test_pings_come_while_a_client_waits_in_queue_and_prefill_and_between_events(engine: Engine) -> None:
    async with gateway(engine, keepalive_seconds=0.04, max_inflight=1) as app, client_of(app) as client:
        async with streaming(app.url, PATH, ASK_STREAM) as one, streaming(app.url, PATH, ASK_STREAM) as two:
            turn = await engine.next_request()
            for waiting in (one, two):
                assert (await waiting.read_head())["content-type"] == "text/event-stream; charset=utf-8"
                assert await waiting.chunk() == PING
            await turn.start()
            await turn.frame(*STREAM.frames()[:4])
            seen = b""
            while not seen.endswith(STREAM.frames()[3] + PING):  # and silence after an event
                seen += await one.chunk() or b"the end"
            await turn.end(*STREAM.frames()[4:])
            body = seen + b"".join([event.raw async for event in one.events()])
            assert body.replace(PING, b"") == STREAM.body
            turn = await engine.next_request()
            await turn.respond(400, {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}})
            told = [event async for event in two.events() if event.raw != PING]
            assert [event.json()["error"]["message"] for event in told] == ["no"]
        reading = asyncio.create_task(_collected(client, {}))
        turn = await engine.next_request()
        await until(lambda: any(reader.pipe for flight in app.group.live for reader in flight.subscribers))
        await turn.start()
        await turn.end(*STREAM.frames())
        assert await reading == ("1. Red: The most obvious colour", None)
        reading = asyncio.create_task(_collected(client, {}))
        turn = await engine.next_request()
        await until(lambda: any(reader.pipe for flight in app.group.live for reader in flight.subscribers))
        await turn.drop()
        while True:  # it is sent again, as a chat would be; by no clock, since nobody knows when
            coming = asyncio.ensure_future(engine.next_request())
            await asyncio.wait([reading, coming], return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
                break
            await (await coming).drop()
        text, error = await reading
        assert (text, type(error)) == ("", anthropic.APIStatusError)


async def test_an_engines_pings_are_no_answer_and_reset_no_timeout(engine: Engine) -> None:
    async with gateway(engine, first_token_timeout=0.3, retries=0) as app:
        post = asyncio.create_task(post_json(app.url, PATH, ASK_STREAM))
        turn = await engine.next_request()
        await turn.start()
        while not post.done():
            if not turn.is_cancelled:
                await turn.frame(PING)
            await asyncio.wait([post], timeout=0.05)
        assert (await post).status == 504


async def test_it_is_sent_to_another_engine_before_its_first_byte_and_stops_as_its_client_leaves() -> None:
    async with Engine() as one, Engine() as other, gateway(one, other, routing="round-robin") as app:
        post = asyncio.create_task(post_json(app.url, PATH, ASK_STREAM))
        turn = await one.next_request()
        await turn.respond(503, {"error": "starting"})
        turn = await other.next_request()
        await turn.start()
        await turn.end(*STREAM.frames())
        assert (await post).body == STREAM.body
        async with streaming(app.url, PATH, ASK_STREAM) as client:
            await until(lambda: len(one.requests) + len(other.requests) == 3)
            turn = [*one.requests[1:], *other.requests[1:]][0]
            await client.abort()
            await turn.cancelled()


@pytest.mark.parametrize(
    ("path", "ask", "sent"),
    [
        (PATH, ASK_STREAM, "identity"),
        (PATH, ASK, "identity"),
        ("/v1/responses", {"model": "m1", "input": "a", "stream": True}, "identity"),
        ("/tokenize", {"model": "m1", "prompt": "a"}, "gzip, br"),
    ],
)
async def test_an_answer_that_is_read_here_is_asked_for_uncompressed(
    engine: Engine, path: str, ask: dict[str, Any], sent: str
) -> None:
    """A proxy before the engine compresses streams of events for clients that accept it, as Anthropic's does."""
    async with gateway(engine) as app, streaming(app.url, path, ask, [("accept-encoding", "gzip, br")]):
        turn = await engine.next_request()
        assert turn.headers["accept-encoding"] == sent
        await turn.respond(400, {"error": {"message": "no"}})


async def test_one_session_of_claude_code_stays_with_one_engine_and_equal_requests_are_two() -> None:
    by_header = [("x-claude-code-session-id", "0b6c7c1e")]
    by_body = {"metadata": {"user_id": json.dumps({"device_id": "d", "session_id": "0b6c7c1e"})}}
    async with Engine(script) as one, Engine(script) as two, gateway(one, two, routing="hash", share="all") as app:
        for headers, more in ((by_header, {}), ([], by_body)):
            before = len(one.requests), len(two.requests)
            for turn in range(6):
                messages = [{"role": "user", "content": str(turn // 2)}]
                await post_json(app.url, PATH, ASK | more | {"messages": messages}, headers)
            assert {len(one.requests) - before[0], len(two.requests) - before[1]} == {0, 6}
        await asyncio.gather(*(post_json(app.url, PATH, ASK | {"temperature": 0}) for _ in range(2)))
        assert len(one.requests) + len(two.requests) == 14

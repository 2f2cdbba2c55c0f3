"""Limits through the gateway: every path, every answer's headers, and what each end of a request gives back."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from proxy.access.caller import Caller, Rates
from proxy.access.ratelimit.admission import admission_for
from proxy.access.ratelimit.buckets import Levels
from proxy.app import App
from proxy.config.settings import Settings
from proxy.errors import GatewayError
from proxy.flights.cost import NO_COST, estimate
from proxy.server.context import RequestContext
from proxy.telemetry.log import Log
from proxy.telemetry.metrics import Metrics
from proxy.wire.openai import decode
from tests.kit.client import Answer, call, get, post_json, streaming
from tests.kit.engine import Engine, full_backlog
from tests.kit.engine_scripts import echo_script
from tests.kit.late import late
from tests.kit.redis_server import redis_server
from tests.kit.running import HELLO, HELLO_STREAM, gateway, lines, until

if TYPE_CHECKING:
    import openai
else:
    openai = late("openai")

CHAT = "/v1/chat/completions"
SAMPLED = {"temperature": 1}
SLOW = 0.0001  # requests a second: nothing leaks while a test runs


def levels(app: App) -> Levels:
    """The one caller's meters, as they are, to the whole unit."""
    assert app.admission is not None
    limiter = app.admission.limiter
    hold = limiter.ask(Caller(id="127.0.0.1"), lambda: NO_COST)
    assert hold is not None
    assert hold.decision is not None
    hold.close()
    found, asked = hold.decision.own, int(hold.decision.over is None)
    return Levels(max(0, round(found.requests - asked)), round(found.tokens), found.streams - asked)


def left(answer: Answer) -> tuple[str | None, str | None]:
    return answer.head.get("x-ratelimit-remaining-requests"), answer.head.get("x-ratelimit-remaining-tokens")


async def test_every_limited_path_counts_and_says_so_and_the_others_do_neither(engine: Engine) -> None:
    engine.auto(echo_script())
    async with gateway(engine, rate_limit_rps=SLOW, rate_limit_burst=8) as app:
        asks: list[tuple[str, dict[str, Any] | None]] = [
            (CHAT, HELLO), (CHAT, HELLO_STREAM | SAMPLED), ("/chat", HELLO | {"seed": 1}),
            ("/embed", {"input": "x"}), ("/v1/embeddings", {"input": "y"}), ("/v1/completions", {"prompt": "x"}),
            ("/tokenize", {"prompt": "x"}),
        ]  # fmt: skip
        answers = [await post_json(app.url, path, body) for path, body in asks]
        answers.append(await get(app.url, "/v1/models"))
        assert [left(answer)[0] for answer in answers] == ["7", "6", "5", "4", "3", "2", "1", "0"]
        assert {answer.head["x-ratelimit-limit-requests"] for answer in answers} == {"8"}
        for path, body in [*asks, ("/v1/models", None)]:
            refused = await (get(app.url, path) if body is None else post_json(app.url, path, body))
            assert (refused.status, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
            assert int(refused.head["retry-after"]) >= 9000
            assert refused.head["x-ratelimit-remaining-requests"] == "0"
            assert "x-request-id" in refused.head
        for path in ("/health", "/ready", "/metrics"):
            answer = await get(app.url, path)
            assert (answer.status, left(answer)) == (200, (None, None))
        assert b'gateway_rate_limited_total{limit="requests"} 8\n' in (await get(app.url, "/metrics")).body


async def test_without_a_limit_nothing_is_asked_and_nothing_said(engine: Engine) -> None:
    engine.auto(echo_script())
    async with gateway(engine) as app:
        assert app.admission is None
        answer = await post_json(app.url, CHAT, HELLO)
        assert (answer.status, left(answer)) == (200, (None, None))


async def test_a_refused_request_reaches_no_engine_and_its_error_is_in_the_log(
    engine: Engine, tmp_path: Any
) -> None:
    engine.auto(echo_script())
    async with gateway(engine, rate_limit_rps=SLOW, log_to=tmp_path / "log") as app:
        assert (await post_json(app.url, CHAT, HELLO | SAMPLED)).status == 200
        assert (await post_json(app.url, CHAT, HELLO | SAMPLED)).status == 429
    assert engine.generations == 1
    told = [(line["status"], line.get("error")) for line in lines(tmp_path / "log") if line["msg"] == "request"]
    assert told == [(200, None), (429, "rate_limit_exceeded")]


async def test_the_official_client_sees_a_rate_limit_error(engine: Engine) -> None:
    engine.auto(echo_script())
    async with (
        gateway(engine, rate_limit_rps=SLOW) as app,
        openai.AsyncOpenAI(base_url=app.url + "/v1", api_key="k", max_retries=0) as client,
    ):
        ask: Any = HELLO
        raw = await client.chat.completions.with_raw_response.create(**ask)
        assert raw.headers["x-ratelimit-remaining-requests"] == "0"
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(**ask)
        assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "rate_limit_error")


def nobody(request: object) -> Caller:
    raise AssertionError("no request was made")


async def test_the_official_client_does_not_repeat_a_prompt_that_can_never_pass(engine: Engine) -> None:
    async with (
        gateway(engine, rate_limit_tokens_per_minute=100) as app,
        openai.AsyncOpenAI(base_url=app.url + "/v1", api_key="k", max_retries=5) as client,
    ):
        ask: Any = HELLO | {"messages": [{"role": "user", "content": "x" * 1000}]}
        with pytest.raises(openai.RateLimitError, match="shorter prompt"):
            await client.chat.completions.create(**ask)
        assert b'gateway_rate_limited_total{limit="tokens"} 1\n' in (await get(app.url, "/metrics")).body


async def test_callers_with_limits_of_their_own_are_limited_though_no_setting_limits() -> None:
    log = Log(os.open(os.devnull, os.O_WRONLY))

    def caller(name: str, **rates: Any) -> RequestContext:
        request: Any = None
        return RequestContext(request=request, id="r", caller=Caller(id=name, rates=Rates(**rates)))

    async with AsyncExitStack() as stack:
        assert await admission_for(Settings(), None, Metrics(), log, stack, identify=nobody) is None
        admit = await admission_for(Settings(), None, Metrics(), log, stack, identify=nobody, keyed=True)
        assert admit is not None
        await admit(caller("slow", rps=SLOW))
        with pytest.raises(GatewayError, match="Rate limit reached"):
            await admit(caller("slow", rps=SLOW))
        for _ in range(3):
            free = caller("free")
            await admit(free)
            assert free.hold is None
    log.close(30)


# Tokens


async def test_tokens_are_reserved_by_a_guess_and_corrected_by_usage(engine: Engine) -> None:
    guess = estimate(decode("chat", json.dumps(HELLO_STREAM).encode()), 400)
    async with gateway(engine, rate_limit_tokens_per_minute=10_000, rate_limit_assumed_tokens=400) as app:
        async with streaming(app.url, CHAT, HELLO_STREAM) as client:
            turn = await engine.next_request()
            assert levels(app).tokens <= sum(guess)
            await turn.send("a", "b")
            await turn.finish(prompt_tokens=10**6, completion_tokens=2)
            answer = await client.read()
            assert 10_000 - int(left(answer)[1] or 0) == sum(guess)
        await until(lambda: levels(app).streams == 0)
        assert 0.9 * 10**6 < levels(app).tokens <= 10**6 + 2  # less what leaks meanwhile, 167 a second
        refused = await post_json(app.url, CHAT, HELLO)
        assert (refused.status, left(refused)[1]) == (429, "0")


USED = {"prompt_tokens": 7, "completion_tokens": 5000, "total_tokens": 5007}


@pytest.mark.parametrize(
    ("path", "more", "pad"),
    [("/invocations", {}, 0), ("/v1/chat/completions/batch", {}, 0), (CHAT, {"prompt_logprobs": 20}, 200_000)],
    ids=["invocations", "a batch", "an answer that is not held"],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_passes_through_is_charged_by_the_engines_count(
    engine: Engine, path: str, more: dict[str, Any], pad: int, stream: bool
) -> None:
    bounds: dict[str, Any] = {"rate_limit_tokens_per_minute": 6000, "max_flight_bytes": 2**24}
    async with gateway(engine, **bounds) as app:
        for counted in (True, False):
            before = levels(app).tokens
            body = json.dumps(HELLO | more | {"max_tokens": 100}).encode() + b" " * pad
            asked = asyncio.ensure_future(
                call(app.url, "POST", path, body, [("content-type", "application/json")])
            )
            turn = await engine.next_request()
            usage = {"usage": USED} if counted else {}
            if stream:
                await turn.start()
                await turn.frame(*[b'data: {"choices":[]}\n\n'] * 9)
                await turn.end(b"data: " + json.dumps({"choices": []} | usage).encode() + b"\n\n")
            else:
                await turn.respond(200, {"choices": []} | usage)
            assert (await asked).status == 200
            await until(lambda: levels(app).streams == 0)
            spent = levels(app).tokens - before  # less what has leaked, 100 a second
            assert 4000 < spent <= 5007 if counted else spent < 150


async def test_a_token_without_text_is_charged_too(engine: Engine) -> None:
    """Special ones, which a client can force by `logit_bias`. An engine sends an event for each."""
    blank = b'data: {"choices":[{"index":0,"delta":{"content":""},"finish_reason":null}]}\n\n'
    async with gateway(engine, rate_limit_tokens_per_minute=4000) as app:
        async with streaming(app.url, CHAT, HELLO_STREAM | SAMPLED | {"max_tokens": 3000}) as client:
            turn = await engine.next_request()
            await turn.send("a")
            await turn.frame(*[blank] * 3000)
            await turn.finish()
            await client.read()
        await until(lambda: levels(app).streams == 0)
        assert 2500 < levels(app).tokens < 3050  # less what has leaked, 67 a second


# Permits


@pytest.mark.parametrize("ask", [HELLO, HELLO_STREAM, HELLO | SAMPLED, HELLO_STREAM | SAMPLED])
async def test_a_permit_lasts_as_long_as_its_stream(engine: Engine, ask: dict[str, Any]) -> None:
    async with gateway(engine, rate_limit_streams=1) as app:
        async with streaming(app.url, CHAT, ask) as client:
            turn = await engine.next_request()
            refused = await post_json(app.url, CHAT, HELLO | {"seed": 7})
            assert (refused.status, refused.head["retry-after"]) == (429, "1")
            if ask.get("stream"):
                await turn.send("a")
                await client.event()
                assert (await post_json(app.url, CHAT, HELLO | {"seed": 7})).status == 429
                await turn.finish()
            else:
                await turn.answer("a")
            await client.read()
        engine.auto(echo_script())
        assert (await post_json(app.url, CHAT, HELLO | {"seed": 7})).status == 200


@pytest.mark.parametrize("redis", [False, True])
@pytest.mark.parametrize("phase", ["connecting", "queued", "prefill", "streaming"])
async def test_a_client_that_leaves_frees_its_permit_in_every_phase(
    engine: Engine, phase: str, redis: bool
) -> None:
    """Complaints: slots leaked on disconnect (LiteLLM 27955, 30020; production-stack 707)."""
    bounds: dict[str, Any] = {"rate_limit_streams": 2, "rate_limit_rps": SLOW, "rate_limit_burst": 9}

    async def leave(url: str, **changes: Any) -> None:
        async with gateway(url, **bounds, **changes) as app:
            first = streaming(app.url, CHAT, HELLO_STREAM | SAMPLED)
            async with first as client, streaming(app.url, CHAT, HELLO | SAMPLED) as whole:
                if phase == "connecting":
                    await until(lambda: app.group.subscribers == 2)
                else:
                    turns = [await engine.next_request()]
                    if phase == "queued":
                        await until(lambda: len(app.scheduler.queue) == 1)
                    else:
                        turns.append(await engine.next_request())
                    if phase == "streaming":
                        turn = next(turn for turn in turns if turn.wants_stream)
                        await turn.send("a")
                        await client.event()
                assert (await post_json(app.url, CHAT, HELLO)).status == 429
                await client.abort()
                await whole.abort()
                assert app.admission is not None
                limiter = app.admission.limiter
                await until(lambda: limiter.local.streams == 0)
            if phase != "connecting":
                engine.auto(echo_script())
                assert (await post_json(app.url, CHAT, HELLO)).status == 200

    changes: dict[str, Any] = {"max_inflight": 1} if phase == "queued" else {}
    async with redis_server() as path:
        if redis:
            changes |= {"redis": f"unix://{path}", "redis_timeout_ms": 2000}
        if phase == "connecting":
            with full_backlog() as url:
                await leave(url, **changes)
        else:
            await leave(engine.url, **changes)


async def test_what_never_came_to_an_engine_costs_not_even_a_request(engine: Engine) -> None:
    ask = HELLO_STREAM | SAMPLED
    async with (
        gateway(engine, rate_limit_rps=SLOW, rate_limit_burst=9, max_inflight=1) as app,
        streaming(app.url, CHAT, ask) as first,
    ):
        turn = await engine.next_request()
        async with streaming(app.url, CHAT, ask) as queued:
            await until(lambda: len(app.scheduler.queue) == 1)
            assert levels(app).requests == 2
            await queued.abort()
            await until(lambda: levels(app).streams == 1)
        assert levels(app).requests == 1
        await first.abort()
        await turn.cancelled()
        await until(lambda: levels(app).streams == 0)
        assert levels(app).requests == 1


async def test_a_full_queue_gives_all_back(engine: Engine) -> None:
    bounds: dict[str, Any] = {"rate_limit_rps": SLOW, "rate_limit_burst": 9, "rate_limit_tokens_per_minute": 10**6}
    ask = HELLO_STREAM | SAMPLED
    async with (
        gateway(engine, max_inflight=1, queue_limit=1, **bounds) as app,
        streaming(app.url, CHAT, ask) as first,
    ):
        turn = await engine.next_request()
        async with streaming(app.url, CHAT, ask) as queued:
            await until(lambda: len(app.scheduler.queue) == 1)
            before = levels(app)
            refused = await post_json(app.url, CHAT, ask)
            assert (refused.status, refused.json()["error"]["code"]) == (503, "queue_full")
            after = levels(app)
            assert (after.requests, after.streams) == (before.requests, before.streams) == (2, 2)
            assert after.tokens <= before.tokens
            await queued.abort()
        await turn.finish()
        await first.read()


async def test_an_engine_s_failure_costs_no_tokens(engine: Engine) -> None:
    async def fails(turn: Any) -> None:
        await turn.respond(500, {"error": {"message": "x"}})

    engine.auto(fails)
    async with gateway(engine, rate_limit_tokens_per_minute=1000) as app:
        for _ in range(5):  # one reserves 530
            assert (await post_json(app.url, CHAT, HELLO | SAMPLED)).status == 500
        assert levels(app).tokens == 0


async def test_a_bad_request_costs_nothing(engine: Engine) -> None:
    async with gateway(engine, rate_limit_rps=SLOW) as app:
        for _ in range(3):
            assert (await post_json(app.url, CHAT, {"messages": 1})).status == 400
        assert levels(app) == Levels(0, 0, 0)


# Sharing


@pytest.mark.parametrize("followers", ["generation", "reader"])
async def test_followers_pay_requests_and_by_setting_tokens(engine: Engine, followers: str) -> None:
    minute = 6 * 10**6
    bounds: dict[str, Any] = {
        "rate_limit_rps": SLOW, "rate_limit_burst": 9, "rate_limit_tokens_per_minute": minute,
        "rate_limit_followers": followers,
    }  # fmt: skip
    usage = 10**6
    async with gateway(engine, **bounds) as app:
        readers = [asyncio.ensure_future(post_json(app.url, CHAT, HELLO_STREAM)) for _ in range(4)]
        turn = await engine.next_request()
        await until(lambda: app.group.subscribers == 4)
        await turn.send("a")
        await turn.finish(prompt_tokens=usage - 1, completion_tokens=1)
        answers = await asyncio.gather(*readers)
        assert sorted(a.head["x-gateway-cache"] for a in answers) == ["attached"] * 3 + ["miss"]
        await until(lambda: levels(app).streams == 0)
        found = levels(app)
        paid = 1 if followers == "generation" else 4
        assert found.requests == 4
        assert (paid - 0.9) * usage < found.tokens <= paid * usage


async def test_hits_say_what_is_left_too(engine: Engine) -> None:
    engine.auto(echo_script())
    async with redis_server() as path:
        bounds: dict[str, Any] = {"rate_limit_rps": SLOW, "rate_limit_burst": 5, "redis_timeout_ms": 2000}
        async with gateway(engine, redis=f"unix://{path}", **bounds) as app:
            first = await post_json(app.url, CHAT, HELLO_STREAM)
            await until(lambda: len(app.group) == 0)
            hits = [await post_json(app.url, CHAT, body) for body in (HELLO_STREAM, HELLO)]
            assert [hit.head["x-gateway-cache"] for hit in hits] == ["hit", "hit"]
            assert [left(answer)[0] for answer in (first, *hits)] == ["4", "3", "2"]


async def test_everyone_s_ceiling_is_503_with_retry_after(engine: Engine) -> None:
    engine.auto(echo_script())
    async with gateway(engine, global_limit_rps=SLOW) as app:
        assert (await post_json(app.url, CHAT, HELLO)).status == 200
        refused = await post_json(app.url, CHAT, HELLO)
        assert (refused.status, refused.json()["error"]["code"]) == (503, "ceiling_reached")
        assert int(refused.head["retry-after"]) > 0
        assert b'gateway_rate_limited_total{limit="global"} 1\n' in (await get(app.url, "/metrics")).body


async def test_an_engine_s_own_rate_limit_headers_do_not_pass_for_ours(engine: Engine) -> None:
    async def limited(turn: Any) -> None:
        await turn.start(headers=[("x-ratelimit-remaining-requests", "999")])
        await turn.send("a")
        await turn.finish()

    engine.auto(limited)
    async with gateway(engine, rate_limit_rps=SLOW, rate_limit_burst=3) as app:
        answer = await post_json(app.url, CHAT, HELLO_STREAM | SAMPLED)
        assert answer.head["x-ratelimit-remaining-requests"] == "2"

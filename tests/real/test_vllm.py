"""The gateway in front of a real vLLM on this CPU: what goes through is vLLM's, what is shared is counted by vLLM.

Run by `tox -e vllm`. `VLLM_URL` names a vLLM that runs already; else one is started by ops/vllm.py.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy.app import App
from proxy.embedded.redis import EmbeddedRedis
from tests.kit.client import Answer, call, get, post_json, streaming
from tests.kit.running import gateway, until

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "Name three colours."}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 10}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"type": "string", "maxLength": 8}},
    "required": ["colour"],
    "additionalProperties": False,
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {"messages": MESSAGES, "max_tokens": 12}),
    "stop": (CHAT, {"messages": MESSAGES, "max_tokens": 64, "stop": ["."]}),
    "logprobs": (CHAT, {"messages": MESSAGES, "max_tokens": 4, "logprobs": True, "top_logprobs": 2}),
    "n=2 with a seed": (CHAT, {"messages": MESSAGES, "max_tokens": 6, "temperature": 0.9, "n": 2, "seed": 7}),
    "forced tool": (
        CHAT,
        {
            "messages": MESSAGES,
            "max_tokens": 64,
            "tools": [TOOL],
            "tool_choice": {"type": "function", "function": {"name": "weather"}},
        },
    ),
    "json schema": (
        CHAT,
        {
            "messages": MESSAGES,
            "max_tokens": 40,
            "response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": SCHEMA}},
        },
    ),
    "non-ASCII": (CHAT, {"messages": [{"role": "user", "content": "Say: zażółć 日本 🦊"}], "max_tokens": 12}),
    "completion": (COMPLETIONS, {"prompt": "Once upon a time", "max_tokens": 8}),
    "completion of ids": (COMPLETIONS, {"prompt": [504, 6376, 314], "max_tokens": 4}),
    "completion of a list": (COMPLETIONS, {"prompt": ["Once upon", "The sky is"], "max_tokens": 4}),
    "completion logprobs": (COMPLETIONS, {"prompt": "The sky is", "max_tokens": 3, "logprobs": 2}),
}


@pytest.fixture
async def app(engine: str) -> AsyncIterator[App]:
    async with gateway(engine, probe="on") as app:
        yield app


def body(case: str, **more: Any) -> tuple[str, dict[str, Any]]:
    path, members = CASES[case]
    return path, {"model": "smollm2", "temperature": 0} | members | more


def unnamed(data: bytes) -> bytes:
    """Without what differs from run to run: ids and times, and how vLLM interleaves several choices."""
    data = re.sub(rb'"(chatcmpl|cmpl)-(tool-)?[^"]*"', rb'"\1"', data)
    data = re.sub(rb'"created":\d+', b'"created":0', data)
    events: list[bytes] = data.split(b"\n\n")
    events.sort(key=_choice_of)
    return b"\n\n".join(events)


def _choice_of(event: bytes) -> int:
    found = re.search(rb'"choices":\[\{"index":(\d+)', event)
    return int(found[1]) if found else 1000


async def counted(engine: str) -> float:
    """Generations by vLLM's own counter."""
    page = (await get(engine, "/metrics")).body.decode()
    return sum(
        float(value) for value in re.findall(r"^vllm:request_success_total\{.*\} (\S+)$", page, re.MULTILINE)
    )


async def running(engine: str) -> float:
    page = (await get(engine, "/metrics")).body.decode()
    found = re.search(r"^vllm:num_requests_running\{.*\} (\S+)$", page, re.MULTILINE)
    assert found is not None
    return float(found[1])


@pytest.mark.parametrize("usage", [False, True], ids=["plain", "usage"])
@pytest.mark.parametrize("case", CASES)
async def test_a_stream_comes_through_as_vllm_sends_it(app: App, engine: str, case: str, usage: bool) -> None:
    """Private streams untouched; shared ones too, though usage was asked for behind the client's back."""
    options = {"stream_options": {"include_usage": True}} if usage else {}
    path, ask = body(case, stream=True, **options)
    await post_json(engine, path, ask)  # from here on all find the prompt in the prefix cache alike
    direct = await post_json(engine, path, ask)
    private = await post_json(app.url, path, ask, (("x-gateway-share", "off"),))
    shared = await post_json(app.url, path, ask)
    assert unnamed(private.body) == unnamed(_cached_alike(direct, private))
    assert unnamed(shared.body) == unnamed(_cached_alike(direct, shared))
    assert private.chunks == tuple(private.events())
    assert direct.head["content-type"] == private.head["content-type"]


def _cached_alike(direct: Answer, through: Answer) -> bytes:
    """vLLM's prefix cache knows the prompt the second time, and says so in `cached_tokens`."""
    found = re.search(rb'"cached_tokens":(\d+)', through.body)
    count = found[1] if found else b"0"
    return re.sub(rb'"cached_tokens":\d+', b'"cached_tokens":' + count, direct.body)


@pytest.mark.parametrize("case", CASES)
async def test_the_fold_of_a_stream_is_field_by_field_what_vllm_answers(app: App, engine: str, case: str) -> None:
    path, ask = body(case)
    await post_json(engine, path, ask)
    direct = (await post_json(engine, path, ask)).json()
    async with streaming(app.url, path, ask | {"stream": True}) as stream:
        await until(lambda: app.group.subscribers == 1)
        whole = await post_json(app.url, path, ask)
        await stream.read()
    assert whole.status == 200
    # Whether a call folds shows at its end: with tools nobody waits for that.
    assert whole.head["x-gateway-cache"] == ("miss" if "tools" in ask else "attached")
    assert _comparable(whole.json()) == _comparable(direct)


def _comparable(answer: dict[str, Any]) -> dict[str, Any]:
    text = re.sub(r'"(chatcmpl|cmpl)-(tool-)?[^"]*"', r'"\1"', json.dumps(answer))
    found: dict[str, Any] = json.loads(text)
    found["created"] = 0
    details = (found.get("usage") or {}).get("prompt_tokens_details")
    if details:
        details["cached_tokens"] = details["created_cache_tokens"] = 0  # what the prefix cache knew by then
    return found


@pytest.mark.parametrize(
    "ask",
    [
        {"model": "nope", "messages": MESSAGES},
        {"model": "nope", "messages": MESSAGES, "stream": True, "temperature": 0},
        {"model": "smollm2", "messages": MESSAGES, "temperature": -2},
        {"model": "smollm2", "messages": [{"role": "user", "content": "word " * 5000}], "temperature": 0},
    ],
    ids=["unknown model", "unknown model, streaming", "temperature", "context too long"],
)
async def test_vllm_s_own_errors_are_passed_on(app: App, engine: str, ask: dict[str, Any]) -> None:
    direct, through = await post_json(engine, CHAT, ask), await post_json(app.url, CHAT, ask)
    assert (through.status, through.json()) == (direct.status, direct.json())
    assert through.status >= 400


async def test_a_hundred_twins_are_one_generation_by_vllm_s_own_counter(app: App, engine: str) -> None:
    before = await counted(engine)
    _, ask = body("chat", max_tokens=48, stream=True, user="twins")
    async with streaming(app.url, CHAT, ask) as first:
        await first.event()
        others = await asyncio.gather(*(post_json(app.url, CHAT, ask) for _ in range(99)))
        rest = await first.read()
    assert {answer.head["x-gateway-cache"] for answer in others} == {"attached"}
    assert len({answer.body for answer in others}) == 1
    assert others[0].body.endswith(rest.events()[-1])
    assert await counted(engine) - before == 1


async def sampled(url: str, k: int, **more: Any) -> list[Answer]:
    ask = {"model": "smollm2", "messages": MESSAGES, "temperature": 1.0} | more
    return list(await asyncio.gather(*(post_json(url, CHAT, ask) for _ in range(k))))


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole body"])
async def test_sampled_twins_are_one_request_and_as_many_different_samples(engine: str, stream: bool) -> None:
    async with gateway(engine, batch_window_ms=100.0) as app:
        for n in range(4):
            ask = {"messages": [{"role": "user", "content": f"Tell me fact {n} about the sea."}], "max_tokens": 12}
            options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
            answers = await sampled(app.url, 6, **ask, **options)
            assert {answer.head["x-gateway-cache"] for answer in answers} == {"merged"}
            if stream:
                events = [[json.loads(event[6:]) for event in answer.events()[:-1]] for answer in answers]
                texts = [
                    "".join(c["delta"].get("content") or "" for e in own for c in e["choices"]) for own in events
                ]
                used = [own[-1]["usage"] for own in events]
            else:
                texts = [answer.json()["choices"][0]["message"]["content"] for answer in answers]
                used = [answer.json()["usage"] for answer in answers]
            assert len(set(texts)) >= 5
            assert all(
                usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] for usage in used
            )
            if stream:
                assert all(0 < usage["completion_tokens"] <= 12 for usage in used)
            assert app.group.subscribers == 0


async def test_merged_samples_are_distributed_as_those_of_separate_requests(engine: str) -> None:
    """The share of each first token, over 160 samples each way: apart by less than five standard errors."""
    async with gateway(engine, batch_window_ms=100.0) as app:
        first: list[Counter[str]] = []
        for url in (engine, app.url):
            found: Counter[str] = Counter()
            for _ in range(10):
                for answer in await sampled(url, 16, max_tokens=1):
                    found[answer.json()["choices"][0]["message"]["content"]] += 1
            first.append(found)
    apart, merged = first
    for token in apart.keys() | merged.keys():
        share = (apart[token] + merged[token]) / 320
        assert abs(apart[token] - merged[token]) / 160 < 5 * (2 * share * (1 - share) / 160) ** 0.5 + 1e-9


async def test_a_hit_costs_no_generation(engine: str) -> None:
    redis = EmbeddedRedis(8)
    url = await redis.start()
    try:
        async with gateway(engine, redis=url) as app:
            _, ask = body("chat", stream=True)
            first = await post_json(app.url, CHAT, ask)
            await until(lambda: len(app.group) == 0)
            before = await counted(engine)
            again = await post_json(app.url, CHAT, ask)
            whole = await post_json(app.url, CHAT, body("chat")[1])
            assert [a.head["x-gateway-cache"] for a in (first, again, whole)] == ["miss", "hit", "hit"]
            assert again.body == first.body
            assert await counted(engine) == before
    finally:
        await redis.stop()


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole body"])
async def test_the_last_reader_leaving_stops_vllm_generating(app: App, engine: str, stream: bool) -> None:
    _, ask = body("chat", max_tokens=2000, ignore_eos=True, stream=stream)
    async with streaming(app.url, CHAT, ask) as client:
        while not await running(engine):
            pass
        await client.abort()
    while await running(engine):
        pass
    await until(lambda: len(app.group) == 0)


@pytest.mark.parametrize(
    ("method", "path", "ask"),
    [
        ("POST", "/v1/responses", {"model": "smollm2", "input": "Name a colour", "max_output_tokens": 8}),
        ("POST", "/v1/messages", {"model": "smollm2", "messages": MESSAGES, "max_tokens": 8}),
        ("POST", "/tokenize", {"model": "smollm2", "prompt": "hello world"}),
        ("POST", "/detokenize", {"model": "smollm2", "tokens": [28120, 905]}),
        ("GET", "/version", None),
        ("POST", "/v1/nothing", {"a": 1}),
    ],
)
async def test_the_rest_of_vllm_passes_through(
    app: App, engine: str, method: str, path: str, ask: dict[str, Any] | None
) -> None:
    data = json.dumps(ask | {"temperature": 0} if ask else ask).encode() if ask else b""
    headers = (("content-type", "application/json"),) if ask else ()
    direct = await call(engine, method, path, data, headers)
    through = await call(app.url, method, path, data, headers)
    assert through.status == direct.status
    assert through.head["content-type"] == direct.head["content-type"]
    assert _shape(through.json()) == _shape(direct.json())


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_ping_takes_what_it_takes_at_vllm(app: App, engine: str, method: str) -> None:
    """What is in the body of the answer is the gateway's own."""
    direct, through = await call(engine, method, "/ping"), await call(app.url, method, "/ping")
    assert through.status == direct.status == 200


def _shape(value: Any) -> Any:
    """An answer's structure, which ids and times do not change."""
    if isinstance(value, dict):
        return {name: _shape(member) for name, member in value.items()}
    return [_shape(member) for member in value] if isinstance(value, list) else type(value).__name__

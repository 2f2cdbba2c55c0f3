"""Streams of a real vLLM that break, through a relay that cuts them: continued, they are what vLLM answers whole.

Run by `tox -e vllm`. Both engines of the gateway are relays to the same vLLM."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest

from proxy.app import App
from tests.kit.client import Answer, call, get, post_json, streaming
from tests.kit.cutting_relay import CuttingRelay, Shears
from tests.kit.missing import lacking
from tests.kit.running import gateway
from tests.proxy.flights.continuing.test_comparison import merged
from tests.real.test_vllm import CASES, CHAT, COMPLETIONS, MESSAGES, TOOL, body

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]
DONE = b"data: [DONE]\n\n"
T = TypeVar("T")

FEATURES: dict[str, dict[str, Any]] = {
    name: {"case": name}
    for name in CASES
    if name not in ("completion of ids", "completion of a list")  # as "completion"
} | {
    "penalties": {"case": "chat", "frequency_penalty": 0.5, "presence_penalty": 0.2, "repetition_penalty": 1.1},
    "a seed": {"case": "chat", "temperature": 0.9, "seed": 11},
    "usage": {"case": "chat", "stream_options": {"include_usage": True}},
    "usage in each chunk": {
        "case": "chat",
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    },
    "tools, any": {"case": "chat", "tools": [TOOL], "tool_choice": "auto"},
    "a long text": {"case": "chat", "max_tokens": 96},
}


@pytest.fixture
def shears() -> Shears:
    return Shears()


@pytest.fixture
async def relays(engine: str, shears: Shears) -> AsyncIterator[tuple[str, str]]:
    """URLs of two engines."""
    async with CuttingRelay(engine, shears) as one, CuttingRelay(engine, shears) as two:
        yield one.url, two.url


def contents(answer: Answer) -> dict[str, Any]:
    """What a client makes of it. Ids of tool calls are random; the counts say what the prefix cache knew."""
    *frames, last = answer.events()
    assert last == DONE, last
    whole = merged(frames)
    assert len(whole.pop("head")) == 1
    whole["usage"] = [usage["completion_tokens"] for usage in whole["usage"]][-1:]
    for choice in whole["choices"].values():
        for tool_call in choice.get("delta", {}).get("tool_calls", {}).values():
            assert tool_call.pop("id")
    return whole


async def outcomes(app: App, how: str = "replay") -> dict[str, int]:
    page = (await get(app.url, "/metrics")).body.decode()
    found = re.findall(
        rf'^gateway_streams_continued_total\{{how="{how}",outcome="(\w+)"\}} (\d+)', page, re.MULTILINE
    )
    return {outcome: int(count) for outcome, count in found if count != "0"}


async def all_of(waits: Iterable[Coroutine[Any, Any, T]], *, alone: bool = False) -> list[T]:
    """Their results. The engine has them in one batch: six take 1.6 times as long as one. `alone`: one after the
    other, for log probabilities, whose last digits depend on the batch."""
    if alone:
        return [await wait for wait in waits]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(wait) for wait in waits]
    return [task.result() for task in tasks]


@dataclass
class Cut:
    """A request whose stream was cut: its answer, how often, the outcomes, and what the gateway was sent."""

    answer: Answer
    cuts: int
    outcomes: dict[str, int]
    passed: bytes


async def cut(engine: str, at: int, path: str, ask: dict[str, Any], how: str = "replay", **more: Any) -> Cut:
    """Its stream is cut after so many events, in front of a gateway of its own."""
    shears = Shears()
    async with (
        CuttingRelay(engine, shears) as one,
        CuttingRelay(engine, shears) as two,
        gateway(
            *(one.url, two.url),
            refresh_seconds=600.0, load_seconds=0.0, breaker_failures=0, breaker_rate=0.0, **more,
        ) as app,
    ):  # fmt: skip
        shears.cut_after(at)
        answer = await post_json(app.url, path, ask, [("x-gateway-share", "off")] if how == "ids" else ())
        return Cut(answer, shears.cuts, await outcomes(app, how), b"".join(shears.passed))


@pytest.mark.parametrize("feature", FEATURES)
async def test_a_stream_that_is_cut_is_what_vllm_answers_whole(
    engine: str, feature: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut after the first frame, in the middle, at the last tokens, and between all of it and [DONE]."""
    more, alone = dict(FEATURES[feature]), "logprobs" in feature
    path, ask = body(more.pop("case"), stream=True, **more)
    await post_json(engine, path, ask)  # from here on all find the prompt in the prefix cache
    counted = ask | {"stream_options": {"include_usage": True}}  # as the gateway asks
    direct, other = await all_of((post_json(engine, path, each) for each in (ask, counted)), alone=alone)
    events = len(other.events())
    places = sorted({1, 2, events // 2, events - 3, events - 2, events - 1} - {0})
    told: dict[int, str] = {}
    for at, one in zip(
        places, await all_of((cut(engine, at, path, ask) for at in places), alone=alone), strict=True
    ):
        told[at] = next(iter(one.outcomes), "not continued")
        assert one.cuts == 1
        if told[at] == "exact":
            assert contents(one.answer) == contents(direct)
        else:
            assert b'"error"' in one.answer.events()[-1]
            assert DONE not in one.answer.body
    with capsys.disabled():
        print(f"\n{feature}: {told}")
    assert set(told.values()) <= {"exact", *(["differs"] if "logprobs" in feature else [])}


async def test_sampled_streams_that_are_cut_end_in_an_error(relays: tuple[str, str], shears: Shears) -> None:
    async with gateway(*relays, refresh_seconds=600.0, load_seconds=0.0) as app:
        shears.cut_after(3)
        ask = {"model": "smollm2", "messages": MESSAGES, "max_tokens": 12, "temperature": 1.0, "stream": True}
        answer = await post_json(app.url, CHAT, ask)
        assert b"upstream_truncated" in answer.events()[-1]
        assert DONE not in answer.body
        assert shears.cuts == 1


SAMPLED: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {"messages": MESSAGES, "max_tokens": 16}),
    "chat, to its end": (CHAT, {"messages": [{"role": "user", "content": "Say hi."}], "max_tokens": 48}),
    "completion": (COMPLETIONS, {"prompt": "Once upon a time", "max_tokens": 16}),
    "characters of several tokens": (COMPLETIONS, {"prompt": "🦊" * 12, "max_tokens": 16}),
    "max_completion_tokens": (CHAT, {"messages": MESSAGES, "max_completion_tokens": 12}),
    "parameters": (
        CHAT,
        {"messages": MESSAGES, "max_tokens": 16, "top_p": 0.9, "top_k": 40, "min_p": 0.01, "min_tokens": 12,
         "repetition_penalty": 1.1, "logit_bias": {"28": -5}, "stop_token_ids": [2], "n": 1},
    ),
    "ignore_eos": (CHAT, {"messages": MESSAGES, "max_tokens": 20, "ignore_eos": True}),
}  # fmt: skip
WITH_USAGE = {"stream_options": {"include_usage": True}}


def text_of(answer: Answer) -> tuple[str, str, dict[str, Any]]:
    """Its text, its finish_reason, and its usage."""
    assert answer.events()[-1] == DONE, answer.body
    chunks = [json.loads(event[6:]) for event in answer.events()[:-1]]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert len({(chunk["id"], chunk["object"], chunk["created"]) for chunk in chunks}) == 1
    (finish,) = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    text = "".join(choice.get("text", choice.get("delta", {}).get("content")) or "" for choice in choices)
    return text, finish, chunks[-1]["usage"]


def ids_in(data: bytes) -> tuple[list[int], list[int]]:
    """The ids of the prompt, and those of the answer, in frames of one engine or of two: the second one's prompt
    has the first one's tokens that were kept."""
    found = list(re.finditer(rb'"prompt_token_ids":\[([\d,]+)\]', data))
    first, last = (list(map(int, match[1].split(b","))) for match in (found[0], found[-1]))
    own = re.findall(rb'"token_ids":\[([\d,]+)\]', data[found[-1].end() :])
    return first, [*last[len(first) :], *(int(number) for numbers in own for number in numbers.split(b","))]


async def text_shown(engine: str, ids: list[int]) -> str:
    """By /detokenize, without special tokens. vLLM shows a token that ends within a character (a space and half of
    an emoji) when the character is whole, so none of those at the end is in a text."""
    for end in range(len(ids), 0, -1):
        asked = {"model": "smollm2", "tokens": ids[:end]}
        text = re.sub(r"<\|\w+\|>", "", (await post_json(engine, "/detokenize", asked)).json()["prompt"])
        if not text.endswith("\ufffd"):
            return text
    return ""


@pytest.mark.parametrize("feature", SAMPLED)
async def test_a_sampled_stream_that_is_cut_is_the_text_of_the_tokens_that_vllm_made(
    engine: str, feature: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its ids at both engines, in one text by /detokenize; each token counted once; no id shown. Without
    temperature, it is what vLLM answers whole."""
    path, members = SAMPLED[feature]
    ask = {"model": "smollm2", "stream": True} | WITH_USAGE | members
    places = [(1.0, 1), (1.0, 2), (1.0, 4), (1.0, 9), (0.0, 3), (0.0, 7)]
    asks = {temperature: ask | {"temperature": temperature} for temperature in (1.0, 0.0)}
    directs = await all_of(post_json(engine, path, each) for each in asks.values())
    whole = {temperature: text_of(direct) for temperature, direct in zip(asks, directs, strict=True)}
    cuts = await all_of(
        cut(engine, at, path, asks[temperature], "ids", resume="ids") for temperature, at in places
    )
    told: dict[float, list[int]] = {}
    ended: dict[float, list[int]] = {}
    for (temperature, at), one in zip(places, cuts, strict=True):
        direct, answer = whole[temperature], one.answer
        assert one.cuts == 1
        prompt, ids = ids_in(one.passed)
        if answer.events()[-1] != DONE:  # no text has come, or several tokens at once
            assert b"upstream_truncated" in answer.events()[-1]
            ended.setdefault(temperature, []).append(at)
            continue
        text, finish, usage = text_of(answer)
        shown = ids[:-1] if finish == "stop" else ids
        assert text == await text_shown(engine, shown)
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(prompt), len(ids))
        assert len(prompt) == direct[2]["prompt_tokens"]
        assert b'token_ids":[' not in answer.body
        if temperature == 0.0:
            assert (text, finish, usage) == direct
        if one.outcomes:
            told.setdefault(temperature, []).append(at)
    with capsys.disabled():
        print(f"\n{feature}: continued after {told}, ended after {ended}")
    assert told


async def test_what_vllm_aborts_when_it_is_paused_is_continued_when_it_resumes(app: App, engine: str) -> None:
    path, ask = body("chat", stream=True, max_tokens=200)
    direct = await post_json(engine, path, ask)
    async with streaming(app.url, path, ask) as client:
        first = [await client.event() for _ in range(4)]
        paused = await call(engine, "POST", "/pause?mode=abort&clear_cache=false")
        if paused.status == 404:
            lacking("a vLLM with /pause", "VLLM_SERVER_DEV_MODE=1 python ops/vllm.py serve")
        assert paused.status == 200
        assert (await call(engine, "POST", "/resume")).status == 200
        rest = [event.raw async for event in client.events()]
    frames = [event.raw for event in first if event is not None] + rest
    assert not any(b'"abort"' in frame for frame in frames)
    assert merged(frames[:-1])["choices"] == merged(direct.events()[:-1])["choices"]
    assert await outcomes(app) == {"exact": 1}


@pytest.fixture
async def app(engine: str) -> AsyncIterator[App]:
    async with gateway(engine) as app:
        yield app

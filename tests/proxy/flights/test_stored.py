"""What the store keeps of an answer, and how a flight lands from it: as what, for whom, and when not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.errors import Code
from proxy.flights import stored as kept
from proxy.flights.flight import FREE, Flight, Subscriber
from proxy.flights.memory import Memory
from proxy.flights.phase import Phase
from proxy.flights.spec import FlightSpec, Head, Mode
from proxy.redis.cache import Stored
from proxy.wire.fold.shape import LLAMA, VLLM, Shape
from proxy.wire.frames import Usage
from proxy.wire.openai import Endpoint, decode
from proxy.wire.sse import chunk
from tests.golden import load

SSE_HEAD = (("content-type", "text/event-stream; charset=utf-8"),)
JSON_HEAD = (("content-type", "application/json"),)


def flight(
    mode: Mode = Mode.STREAM, endpoint: Endpoint | None = "chat", memory: Memory | None = None, **fields: Any
) -> Flight:
    prompts: dict[str, dict[str, Any]] = {"chat": {"messages": []}, "completions": {"prompt": "x"}}
    prompt = prompts.get(str(endpoint), {"input": "x"})
    api_request = (
        None if endpoint is None else decode(endpoint, json.dumps({"model": "m", **prompt, **fields}).encode())
    )
    made = Flight(FlightSpec("POST", "/", b"", mode, "r", key=b"k", api_request=api_request), lambda: 5.0, memory)
    made.subscribers.add(Subscriber(made))
    return made


def frame(finish: str | None = None, index: int = 0, content: str = "a") -> bytes:
    choice = {"index": index, "delta": {"role": "assistant", "content": content}, "finish_reason": finish}
    body = {"id": "i", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: %b\n\n" % json.dumps(body).encode()


DONE = b"data: [DONE]\n\n"
STREAM = b"".join(map(chunk, [frame(), frame("stop"), DONE]))
TWO = b"".join(map(chunk, [frame("stop"), frame("stop", 1), DONE]))
BODY = b'{"choices":[{"index":0,"finish_reason":"stop","message":{"content":"a"}}]}'


def stored(kind: Any = "stream", body: bytes = STREAM, **more: Any) -> Stored:
    return Stored(kind=kind, created=7.0, body=body, **more)


def test_a_stream_lands_as_the_stream_that_it_was() -> None:
    one = flight()
    entry = stored(cut=10, tail=b"end", prompt_tokens=3, shape=VLLM)
    one.log_without_usage, one._view = (
        [],
        Flight(FlightSpec("", "", b"", Mode.STREAM, "r", usage_added=True))._view,
    )
    assert kept.replay(one, entry)
    assert (one.phase, one.stored_at, one.times.first, one.shape) == (Phase.LANDED, 7.0, 5.0, VLLM)
    assert one.head == Head(200, SSE_HEAD)
    assert (one.view(usage=True), one.view(usage=False)) == ([STREAM], [STREAM[:10] + b"end"])
    assert one.usage == Usage(prompt_tokens=3, completion_tokens=0)
    assert {reader.verdict for reader in one.subscribers} == {"hit"}
    assert not one.replace


@pytest.mark.parametrize(
    ("counts", "usage"),
    [
        ({}, None),
        ({"prompt_tokens": 2}, Usage(prompt_tokens=2, completion_tokens=0)),
        ({"completion_tokens": 4}, Usage(prompt_tokens=0, completion_tokens=4)),
        ({"prompt_tokens": 0, "completion_tokens": 4}, Usage(prompt_tokens=0, completion_tokens=4)),
    ],
)
def test_a_body_lands_with_its_length_and_its_usage(counts: dict[str, int], usage: Usage | None) -> None:
    one = flight(Mode.WHOLE)
    assert kept.replay(one, stored("whole", BODY, **counts))
    assert (one.head, one.log, one.usage) == (Head(200, JSON_HEAD, len(BODY)), [BODY], usage)
    assert (one.phase, one.mode, one.replace) == (Phase.LANDED, Mode.WHOLE, False)


def test_one_body_is_no_stream_and_who_waits_for_one_is_let_go() -> None:
    one: Any = flight()
    one.look = lambda frame: None
    assert not kept.replay(one, stored("whole", BODY))
    assert (one.phase, one.folds, one.look, one.replace) == (Phase.QUEUED, False, None, False)


def test_a_short_stream_serves_one_body_as_its_fold() -> None:
    one = flight(Mode.WHOLE)
    frames = load("chat-greedy-stream-usage").frames()
    assert kept.replay(one, stored(body=b"".join(map(chunk, frames)), shape=VLLM))
    (body,) = one.log
    assert json.loads(body)["choices"] == load("chat-greedy").json()["choices"]
    assert (one.head, one.mode) == (Head(200, JSON_HEAD, len(body)), Mode.WHOLE)


def test_a_long_stream_serves_one_body_as_the_stream_that_it_is() -> None:
    many = b"".join(map(chunk, [frame()] * 5000 + [frame("stop"), DONE]))
    one, unknown = flight(Mode.WHOLE), flight(Mode.WHOLE)
    assert kept.replay(one, stored(body=many, shape=VLLM))
    assert (one.mode, one.log, one.shape, one.head) == (Mode.STREAM, [many], VLLM, Head(200, SSE_HEAD))
    assert not kept.replay(unknown, stored(body=many, shape=Shape("none")))
    assert (unknown.phase, unknown.mode, unknown.log) == (Phase.QUEUED, Mode.WHOLE, [])


def test_what_does_not_fold_serves_no_one_body_and_what_is_no_answer_is_replaced() -> None:
    odd = chunk(b'data: {"choices":[{"index":0,"delta":{"new":1},"finish_reason":"stop"}],"odd":1}\n\n') + chunk(
        DONE
    )
    for body, replace in ((odd, False), (b"no chunks", True)):
        one = flight(Mode.WHOLE)
        assert not kept.replay(one, stored(body=body))
        assert (one.replace, one.phase, one.log) == (replace, Phase.QUEUED, [])
    for endpoint in ("embeddings", None):
        one = flight(Mode.WHOLE, endpoint)
        assert not kept.replay(one, stored())
        assert one.replace, "no stream is an embedding's answer, or one that nobody can fold"


@pytest.mark.parametrize(
    ("kind", "body", "n", "serves"),
    [
        ("stream", STREAM, 1, True),
        ("stream", STREAM, 2, False),
        ("stream", TWO, 2, True),
        ("stream", b"no chunks", 2, False),
        ("whole", BODY, 2, False),
        ("whole", BODY, 1, True),
        ("whole", b"no JSON", 2, False),
        ("whole", b'{"a":' * 100_000, 2, False),
        ("whole", BODY.replace(b"]", b"," + BODY[12:-2].replace(b"0", b"1", 1) + b"]"), 2, True),
    ],
)
def test_what_has_fewer_choices_than_are_asked_for_is_replaced(
    kind: str, body: bytes, n: int, serves: bool
) -> None:
    one = flight(Mode.STREAM if kind == "stream" else Mode.WHOLE, n=n)
    assert kept.replay(one, stored(kind, body)) is serves
    assert one.replace is not serves


def test_of_completions_the_prompts_are_counted() -> None:
    one = flight(Mode.WHOLE, "completions", prompt=["a", "b"])
    assert not kept.replay(one, stored("whole", b'{"choices":[{"index":0,"finish_reason":"stop","text":"a"}]}'))
    assert one.replace


@pytest.mark.parametrize(
    ("size", "room", "code"),
    [(FREE, 0, None), (FREE + 1, 2 * FREE, Code.MEMORY_FULL), (FREE + 1, 100 * FREE, None)],
)
def test_a_large_answer_is_charged_twice_its_size_or_fails(size: int, room: int, code: Code | None) -> None:
    one = flight(Mode.WHOLE, memory=Memory(max(1, room)))
    body = BODY.ljust(size)
    assert kept.replay(one, stored("whole", body))
    assert (one.error and one.error.code) is code
    assert one.phase is (Phase.LANDED if code is None else Phase.FAILED)
    assert (one.held.size if one.held is not None else 0) == (2 * size if size > FREE and code is None else 0)


@pytest.mark.parametrize(
    ("mode", "shape", "keeps"),
    [
        (Mode.STREAM, None, None),
        (Mode.STREAM, VLLM, None),
        (Mode.STREAM, LLAMA, None),
        (Mode.STREAM, Shape("vllm", version="9"), Shape("vllm", version="9")),
        (Mode.WHOLE, Shape("vllm", version="9"), None),
    ],
)
def test_what_is_kept_is_the_answer_and_what_its_frames_do_not_tell(
    mode: Mode, shape: Shape | None, keeps: Shape | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.flights.stored.wall_clock", lambda: 9.0)
    one = flight(mode)
    one.log += [b"a", b"b"]
    if mode is Mode.STREAM:
        one.log_without_usage = [b"a", b"c"]
    one.shape, one.usage = shape, Usage(prompt_tokens=3, completion_tokens=4)
    entry = kept.snapshot(one, b"B")
    assert (entry.kind, entry.created, entry.body) == ("stream" if mode is Mode.STREAM else "whole", 9.0, b"ab")
    assert (entry.cut, entry.tail) == ((1, b"c") if mode is Mode.STREAM else (None, b""))
    assert (entry.prompt_tokens, entry.completion_tokens, entry.shape, entry.build) == (3, 4, keeps, b"B")
    one.usage = None
    assert (kept.snapshot(one, b"B").prompt_tokens, kept.snapshot(one, b"B").completion_tokens) == (None, None)

"""The ids of a stream's tokens: which requests ask for them, what they cost, and what is made of them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.flights.continuing.comparison import Differs
from proxy.flights.continuing.ids import MOST_PROMPT, IdsIngest, Rest, TokenIds, asks_for_ids
from proxy.flights.flight import FREE, Flight
from proxy.flights.ingest import Callbacks, StreamLimits, Timeouts
from proxy.flights.memory import Memory
from proxy.flights.phase import Phase
from proxy.flights.spec import FlightSpec, Mode
from proxy.wire.openai import decode
from tests.kit.clock import virtual
from tests.kit.engine_wire import sse

MESSAGES = [{"role": "user", "content": "x"}]
ASK: dict[str, Any] = {"model": "m", "messages": MESSAGES, "stream": True, "max_tokens": 9}


def asks(**more: Any) -> bool:
    return asks_for_ids(decode("chat", json.dumps(ASK | more).encode()))


def frame(*ids: int, content: str = "a", prompt: list[int] | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": None, "token_ids": list(ids), **more}
    return sse({"id": "i", "choices": [choice], "prompt_token_ids": prompt})


@pytest.mark.parametrize(
    "more",
    [
        {"temperature": 0.5, "top_p": 0.9, "top_k": 4, "min_p": 0.1, "logit_bias": {"1": 2}, "user": "u"},
        {"presence_penalty": 0, "frequency_penalty": 0.0, "repetition_penalty": 1.2, "stop": None, "n": 1},
        {"max_completion_tokens": 4, "min_tokens": 2, "ignore_eos": True, "stop_token_ids": [1]},
        {"stream_options": {"include_usage": True}, "response_format": {"type": "text"}, "tools": None},
    ],
)
def test_requests_whose_parameters_mean_the_same_for_the_rest_ask(more: dict[str, Any]) -> None:
    assert asks(**more)


@pytest.mark.parametrize(
    "more",
    [
        {"stream": False},
        {"max_tokens": None},
        {"max_tokens": "9"},
        {"max_tokens": 9.5},
        {"max_tokens": True},
        {"min_tokens": "2"},
        {"seed": 1},
        {"seed": -1},
        {"stop": ["x"]},
        {"stop": "x"},
        {"logprobs": True},
        {"n": 2},
        {"n": "1"},
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        {"a member": None},
        {"messages": [{"role": "user", "content": "x" * MOST_PROMPT}]},
    ],
)
def test_all_others_do_not(more: dict[str, Any]) -> None:
    assert not asks(**more)


@given(st.lists(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4), min_size=1, max_size=20), st.data())
def test_whatever_ids_come_the_rest_is_asked_for_after_them(parts: list[list[int]], data: st.DataObject) -> None:
    token_ids, every = TokenIds(b""), [number for part in parts for number in part]
    prompt = data.draw(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=9))
    api_request = decode("chat", json.dumps(ASK | {"max_tokens": 100, "min_tokens": 3}).encode())
    for number, part in enumerate(parts):
        shown = json.loads(token_ids.hide(frame(*part, prompt=None if number else prompt))[6:])
        assert shown["prompt_token_ids"] is shown["choices"][0]["token_ids"] is None
        assert shown["choices"][0]["delta"] == {"content": "a"}
    assert token_ids.continues(api_request) == (len(parts[-1]) == 1)
    token_ids.hide(frame(7))
    every.append(7)
    assert token_ids.continues(api_request)
    token_ids.hide(frame(8, 9, content=""))
    assert token_ids.counts().completion_tokens == len(every) + 2
    asked = json.loads(token_ids.request(api_request))
    assert asked["prompt"] == prompt + every
    assert asked["max_tokens"] == 100 - len(every)
    assert asked.get("min_tokens", 0) == max(0, 3 - len(every))
    assert token_ids.counts().prompt_tokens == len(prompt)
    assert token_ids.counts().completion_tokens == len(every)


@given(st.binary(max_size=200), st.booleans())
def test_no_frame_raises_or_is_lost(data: bytes, json_like: bool) -> None:
    token_ids = TokenIds(b"")
    given = b"data: " + (json.dumps({"choices": [{"token_ids": data.hex()}]}).encode() if json_like else data)
    token_ids.hide(given + b"\n\n")
    assert not token_ids.continues(decode("chat", json.dumps(ASK).encode()))


def test_an_answer_at_its_limit_is_not_continued() -> None:
    token_ids, api_request = TokenIds(b""), decode("chat", json.dumps(ASK | {"max_tokens": 2}).encode())
    token_ids.hide(frame(1, prompt=[1]))
    assert token_ids.continues(api_request)
    token_ids.hide(frame(2))
    assert not token_ids.continues(api_request)


@pytest.mark.parametrize("late", [frame(2, content=""), frame(content="", finish_reason="stop")])
def test_a_rest_is_none_where_the_first_engine_has_said_more_since(late: bytes) -> None:
    token_ids = TokenIds(b"")
    token_ids.hide(frame(1, prompt=[1]))
    rest = Rest(token_ids, chat=True)
    token_ids.hide(late)
    with pytest.raises(Differs):
        rest.feed(sse({"choices": [{"index": 0, "text": "b", "finish_reason": None, "token_ids": [2]}]}))


@pytest.mark.parametrize(("budget", "kept"), [(1 << 30, True), (FREE, False)])
@virtual
async def test_what_is_kept_counts_to_the_memory_budget(budget: int, kept: bool) -> None:
    loop = asyncio.get_running_loop()
    memory = Memory(budget)
    flight = Flight(FlightSpec("POST", "/", b"{}", Mode.STREAM, "r"), loop.time, memory)
    flight.enter(Phase.PREFILL)
    timeouts, token_ids = Timeouts(StreamLimits(), loop), TokenIds(b"")
    ingest = IdsIngest(flight, timeouts, Callbacks(lambda error: None), token_ids)
    ingest.head(200, [("content-type", "text/event-stream")])
    ingest.body(frame(1, prompt=[100_000] * 20_000))
    assert (token_ids.usable, bool(token_ids.size), memory.held > FREE) == (kept, kept, kept)
    ingest.close()
    timeouts.close()


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("inside", [True, False], ids=["in the choice", "in the chunk"])
def test_the_rest_is_of_the_prompt_that_was_sent_and_shows_no_ids_of_it(inside: bool, chat: bool) -> None:
    def rest(prompt: list[int]) -> bytes:
        choice = {"index": 0, "text": "b", "finish_reason": None, "token_ids": [8]}
        ids = {"prompt_token_ids": prompt}
        return sse({"id": "j", "choices": [choice | ids if inside else choice]} | ({} if inside else ids))

    token_ids = TokenIds(b"")
    token_ids.hide(frame(7, prompt=[1, 2]))
    shown = Rest(token_ids, chat=chat).feed(rest([1, 2, 7]))
    assert shown is not None
    chunk = json.loads(shown[6:])
    assert not chunk.get("prompt_token_ids")
    assert not chunk["choices"][0].get("prompt_token_ids")
    assert chunk["choices"][0]["token_ids"] is None
    assert list(token_ids.ids) == [7, 8]
    with pytest.raises(Differs, match="another prompt"):
        Rest(token_ids, chat=chat).feed(rest([1, 3, 7]))

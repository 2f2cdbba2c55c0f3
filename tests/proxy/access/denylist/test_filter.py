"""Answers that are checked as they stream: nothing denied gets out, nothing else is changed."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.access.denylist.filter import FilteringIngest, texts_of
from proxy.access.denylist.rules import DenyList, read_deny_list
from proxy.errors import Code, GatewayError
from proxy.flights.flight import Flight
from proxy.flights.ingest import Callbacks, StreamLimits, Timeouts
from proxy.flights.phase import Phase
from proxy.flights.spec import FlightSpec, Mode
from proxy.wire.openai import decode
from proxy.wire.sse import unchunks
from tests.kit.client import Answer, call, get, post_json, streaming
from tests.kit.clock import run_virtual
from tests.kit.engine import Engine, Turn
from tests.kit.engine_scripts import echo_script
from tests.kit.running import HELLO, HELLO_STREAM, gateway, lines, until

CHAT = "/v1/chat/completions"
SSE = [("content-type", "text/event-stream")]
DONE = b"data: [DONE]\n\n"


def frame(text: str, choice: int = 0, **more: Any) -> bytes:
    delta = {"content": text, **more}
    body = {"choices": [{"index": choice, "delta": delta, "finish_reason": None}]}
    return b"data: %b\n\n" % json.dumps(body).encode()


def fed(
    deny: DenyList, data: list[bytes], window: int = 16, *, ended: bool = False, turns: int = 0, n: int = 1
) -> tuple[list[bytes], GatewayError | None, list[int]]:
    """The frames that got out, how it ended, and the rules that were broken."""

    async def feed() -> tuple[list[bytes], GatewayError | None, list[int]]:
        loop = asyncio.get_running_loop()
        ends: list[GatewayError | None] = []
        hits: list[int] = []
        api_request = decode("chat", b'{"messages": [], "n": %d}' % n)
        flight = Flight(
            FlightSpec("POST", "/", b"", Mode.STREAM, "r", key=b"k", api_request=api_request), loop.time
        )
        flight.enter(Phase.CONNECTING)
        flight.enter(Phase.PREFILL)
        limits = StreamLimits()
        watch = Timeouts(limits, loop)
        ingest = FilteringIngest(
            flight,
            watch,
            Callbacks(ends.append),
            deny=deny,
            window=window,
            on_hit=lambda _, line: hits.append(line),
        )
        ingest.head(200, SSE)
        for piece in data:
            ingest.body(piece)
            for _ in range(turns):
                await asyncio.sleep(0)
        if ended:
            ingest.end()
        await until(lambda: bool(ends))
        watch.close()
        assert len(ends) == 1
        return unchunks(b"".join(flight.log)), ends[0], hits

    return run_virtual(feed())


def split(data: bytes, at: list[int]) -> list[bytes]:
    cuts = [0, *sorted({cut % (len(data) + 1) for cut in at}), len(data)]
    return [piece for a, b in pairwise(cuts) if (piece := data[a:b])]


ENDS = [
    b'data: {"choices":[{"index":%d,"delta":{},"finish_reason":"stop"}]}\n\n' % choice for choice in range(2)
]  # an answer that is not whole would get an error for that
RULES = read_deny_list("bad\nre: c[ao]t\n", "d")
FRAMES = st.lists(
    st.builds(frame, st.text("badcot \u0301", max_size=4), st.integers(0, 1)) | st.just(b": ping\n\n"), max_size=15
)


@given(FRAMES, st.lists(st.integers(0, 3000), max_size=8))
@example([b": ping\n\n", frame(""), frame("cat")], [92])
def test_however_the_bytes_are_cut_what_is_denied_is_denied_and_all_else_gets_out_as_it_was(
    frames: list[bytes], at: list[int]
) -> None:
    texts: dict[object, str] = {}
    for each in frames:
        for channel, text in texts_of(each):
            texts[channel] = texts.get(channel, "") + text
    verdict = any(RULES.find(text) is not None for text in texts.values())
    out, error, hits = fed(RULES, split(b"".join([*frames, *ENDS, DONE]), at), n=2)
    assert (error is not None) == verdict == bool(hits)
    answer = [*(each for each in frames if each != b": ping\n\n"), *ENDS, DONE]  # comments are no answer
    if error is None:
        assert out == answer
    else:
        assert error.code is Code.CONTENT_DENIED
        assert out == answer[: len(out)]
        shown: dict[object, str] = {}
        for each in out:
            for channel, text in texts_of(each):
                shown[channel] = shown.get(channel, "") + text
        assert all(RULES.find(text) is None for text in shown.values())


LONG = frame("fine " * 20_000)


@pytest.mark.parametrize("frames", [[LONG], [frame("a"), LONG, frame("b"), LONG], [frame("fine ")] * 2000])
@pytest.mark.parametrize("size", [1000, 70_000, 10_000_000])
@pytest.mark.parametrize("turns", [0, 1, 2])
def test_what_is_too_much_for_one_turn_gets_out_as_it_was(frames: list[bytes], size: int, turns: int) -> None:
    answer = [*frames, ENDS[0], DONE]
    data = b"".join(answer)
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    out, error, hits = fed(RULES, pieces, turns=turns)
    assert (out, error, hits) == (answer, None, [])


@pytest.mark.parametrize(
    "frames", [[LONG, frame("ba"), frame("d")], [frame("fine " * 20_000 + "bad"), frame("x")]]
)
def test_what_is_too_much_for_a_turn_is_denied_as_ever(frames: list[bytes]) -> None:
    _, error, hits = fed(RULES, [b"".join([*frames, DONE])])
    assert (error is not None and error.code, hits) == (Code.CONTENT_DENIED, [1])


def test_an_end_that_comes_before_all_is_looked_at_is_told_afterwards() -> None:
    texts = read_deny_list("bad", "d")  # no pattern, of which a match might still begin
    out, error, _ = fed(texts, [LONG + frame("a")], ended=True)
    assert error is not None
    assert error.code is Code.UPSTREAM_TRUNCATED
    assert out == [LONG, frame("a")]


async def test_a_long_body_is_looked_at_in_another_process(tmp_path: Path) -> None:
    (tmp_path / "deny.txt").write_text("bad")
    text = ["fine " * 20_000]

    async def script(turn: Turn) -> None:
        await turn.answer(text[0])

    async with (
        Engine(script=script) as engine,
        gateway(engine, deny_file=str(tmp_path / "deny.txt"), deny_answers=True) as app,
    ):
        answer = await post_json(app.url, CHAT, HELLO)
        assert answer.json()["choices"][0]["message"]["content"] == text[0]
        assert app.large is not None
        assert len(app.large.pool.pids) == 1
        text[0] += "bad"
        answer = await post_json(app.url, CHAT, HELLO)
        assert (answer.status, answer.json()["error"]["code"]) == (400, "content_denied")


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        (b'{"choices":[{"index":1,"delta":{"role":"assistant","content":"a"}}]}', ["a"]),
        (b'{"choices":[{"index":0,"delta":{"reasoning":"r","content":"c"}}]}', ["r", "c"]),
        (
            b'{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"x","type":"function",'
            b'"function":{"name":"f","arguments":"{"}}]}}]}',
            ["f", "{"],
        ),
        (b'{"choices":[{"text":"t","finish_reason":"stop"}]}', ["t"]),
        (b'{"choices":[],"usage":{"prompt_tokens":1}}', []),
        (b'{"choices":[7]}', []),
        (b'{"error":{"message":"m"}}', ["m"]),
        (b'["x"]', ["x"]),
        (b"no json", ["no json"]),
        (b"[DONE]", ["[DONE]"]),
    ],
)
def test_the_texts_of_a_frame(data: bytes, texts: list[str]) -> None:
    assert [text for _, text in texts_of(b"data: " + data + b"\n\n")] == texts


def test_a_frame_without_data_has_no_text() -> None:
    assert list(texts_of(b": ping\n\n")) == []


# -- over loopback


@pytest.fixture
def guarded(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "deny").write_text("forbidden\nre: s[3e]cret\\d\n")
    return {"deny_file": str(tmp_path / "deny"), "deny_answers": True, "deny_window": 32}


def ended_as_denied(answer: Answer) -> bool:
    error = json.loads(answer.events()[-1].removeprefix(b"data: "))["error"]
    assert b"[DONE]" not in answer.body
    return bool(error["code"] == "content_denied")


@pytest.mark.parametrize(
    "tokens", [["forbidden"], ["so for", "bid", "den yes"], ["a FOR", "\u200bBIDDEN"], ["s3cret7", "x"]]
)
async def test_a_denied_answer_ends_for_all_its_readers_is_cancelled_and_not_kept(
    engine: Engine, guarded: dict[str, Any], tmp_path: Path, tokens: list[str]
) -> None:
    log = tmp_path / "log"
    async with gateway(engine, **guarded, log_to=log) as app:
        async with streaming(app.url, CHAT, HELLO_STREAM) as one, streaming(app.url, CHAT, HELLO_STREAM) as two:
            turn = await engine.next_request()
            await until(lambda: app.group.subscribers == 2)
            await turn.send("Well, ")
            for client in (one, two):
                assert (await client.event()) is not None
            await turn.send(*tokens, " and so on" * 10)
            for client in (one, two):
                answer = await client.read()
                assert ended_as_denied(answer)
                assert b"bidden" not in answer.body.lower()
                assert b"s3cret" not in answer.body
            await turn.cancelled()
        again = asyncio.ensure_future(post_json(app.url, CHAT, HELLO_STREAM))
        turn = await engine.next_request()
        await turn.send("fine")
        await turn.finish()
        assert (await again).events()[-1] == DONE
        page = (await get(app.url, "/metrics")).body.decode()
    assert 'gateway_content_denied_total{where="answer"} 1' in page
    assert "gateway_upstream_errors_total{" not in page
    told = [line for line in lines(log) if line["msg"] == "content denied"]
    assert [(line["where"], line["rule"]) for line in told] == [("answer", 2 if tokens[0].startswith("s3") else 1)]
    assert b"orbidden" not in log.read_bytes()


async def test_denied_before_anything_went_out_it_is_a_400(engine: Engine, guarded: dict[str, Any]) -> None:
    async with gateway(engine, **guarded) as app:
        body = {"model": "m1", "prompt": "a", "stream": True}
        async with streaming(app.url, "/v1/completions", body) as client:
            turn = await engine.next_request()
            await turn.send("forbidden", " it is")
            answer = await client.read()
            assert (answer.status, answer.json()["error"]["code"]) == (400, "content_denied")
            await turn.cancelled()


async def test_a_body_is_checked_whole(engine: Engine, guarded: dict[str, Any]) -> None:
    async with gateway(engine, **guarded) as app:
        for text, status in (("all is forbidden", 400), ("all is fine", 200)):
            answer = asyncio.ensure_future(post_json(app.url, CHAT, HELLO))
            await (await engine.next_request()).answer(text)
            assert (await answer).status == status


@pytest.mark.parametrize("body", [HELLO_STREAM, HELLO, HELLO_STREAM | {"n": 3, "seed": 1}])
async def test_an_answer_that_breaks_no_rule_is_the_same_byte_for_byte(
    engine: Engine, guarded: dict[str, Any], body: dict[str, Any]
) -> None:
    engine.auto(echo_script(tokens=20))
    bodies = []
    for changes in ({}, guarded):
        async with gateway(engine, **changes) as app:
            answer = await post_json(app.url, CHAT, body)
            bodies.append(_without_ids(answer.body))
    assert bodies[0] == bodies[1]


def _without_ids(body: bytes) -> bytes:
    return re.sub(rb'"(id|created)":\s*("[^"]*"|\d+)', rb'"\1":0', body)


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages", "/v1/respons%65s", "/detokenize"])
async def test_what_cannot_be_checked_is_not_passed_through(
    engine: Engine, guarded: dict[str, Any], path: str
) -> None:
    async with gateway(engine, **guarded) as app:
        answer = await post_json(app.url, path, {"input": "a"})
        error = answer.json()["error"]
        kind = error["type"] if path == "/v1/messages" else error["code"]  # Anthropic's errors have no code
        assert (answer.status, kind) == (404, "not_found_error" if path == "/v1/messages" else "not_found")
        assert engine.requests == []
        engine.auto(echo_script())
        await post_json(app.url, "/tokenize", {"prompt": "a"})
        assert len(engine.requests) == 1


async def test_an_answer_that_is_too_large_to_be_held_is_refused_however_it_was_padded(
    engine: Engine, guarded: dict[str, Any]
) -> None:
    body = json.dumps(HELLO | {"prompt_logprobs": 20}).encode() + b" " * 200_000
    async with gateway(engine, **guarded, max_flight_bytes=2**24) as app:
        answer = await call(app.url, "POST", CHAT, body, [("content-type", "application/json")])
        error = answer.json()["error"]
        assert (answer.status, error["code"], error["param"]) == (400, "invalid_value", "prompt_logprobs")
        assert engine.requests == []


async def test_a_response_that_an_engine_has_kept_is_not_read(engine: Engine, guarded: dict[str, Any]) -> None:
    async with gateway(engine, **guarded) as app:
        for path in ("/v1/responses/resp_1", "/v1/responses/resp_1/input_items"):
            answer = await get(app.url, path)
            assert (answer.status, answer.json()["error"]["code"]) == (404, "not_found")
        assert engine.requests == []


@pytest.mark.parametrize(
    "logprobs",
    [
        {"content": [{"token": "for", "logprob": 0}, {"token": "bidden", "logprob": 0}]},
        {"tokens": ["for", "bidden"], "token_logprobs": [0, 0]},
    ],
)
async def test_a_text_that_stands_in_its_tokens_alone_is_denied(
    engine: Engine, guarded: dict[str, Any], logprobs: dict[str, Any]
) -> None:
    """As that of a reasoning that the client did not want."""
    async with gateway(engine, **guarded) as app:
        asked = asyncio.ensure_future(post_json(app.url, CHAT, HELLO | {"logprobs": True}))
        turn = await engine.next_request()
        choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
        await turn.respond(
            200, {"id": "c", "object": "chat.completion", "choices": [choice | {"logprobs": logprobs}]}
        )
        assert (await asked).json()["error"]["code"] == "content_denied"


async def test_under_another_list_older_answers_are_not_found(engine: Engine, guarded: dict[str, Any]) -> None:
    write: Callable[[str], int] = Path(guarded["deny_file"]).write_text
    async with gateway(engine, **guarded) as app, streaming(app.url, CHAT, HELLO_STREAM) as one:
        first = await engine.next_request()
        await first.send("hi")
        await one.event()
        write("other\n")
        await app.reload()
        async with streaming(app.url, CHAT, HELLO_STREAM) as two:
            second = await engine.next_request()
            for turn, client in ((first, one), (second, two)):
                await turn.finish()
                assert (await client.read()).events()[-1] == DONE


async def test_vectors_pass_where_answers_are_checked(engine: Engine, guarded: dict[str, Any]) -> None:
    async with gateway(engine, **guarded) as app:
        post = asyncio.create_task(post_json(app.url, "/v1/embeddings", {"model": "m1", "input": "bad"[::-1]}))
        turn = await engine.next_request()
        vector = {"data": [{"index": 0, "embedding": [0.5]}], "usage": {"prompt_tokens": 1, "total_tokens": 1}}
        await turn.respond(200, vector)
        answer = await post
        assert (answer.status, answer.json()["data"]) == (200, vector["data"])

"""One answer is judged by every byte of what it says; every lie of the chaos engine is what its name says."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from random import Random

import pytest

from ops.chaos import lies
from ops.chaos.client import Client
from ops.chaos.engine import Engine, Options
from ops.chaos.lies import LIES, fits
from ops.chaos.verdict import Answer, judge
from ops.chaos.wire import Ask, Endpoint, Shape, dumps, embeddings, read_spec, tags_of, tokenized, vector, words

STREAM = Ask(7, tokens=4)
WHOLE = Ask(7, tokens=4, stream=False)
VECTORS = Ask(7, "embeddings", stream=False, texts=2)
TOKENS = Ask(7, "tokenize", stream=False, tokens=4)


def shaped(ask: Ask) -> lies.Answer:
    if ask.endpoint == "embeddings":
        return lies.Answer(False, [], embeddings("x", [vector(text) for text in ask.inputs], ask.tag))
    nonces = [f"n{at}" if ask.sampled else "" for at in range(ask.n)]
    columns = [words(ask.tag, ask.tokens, at, nonce) for at, nonce in enumerate(nonces)]
    shape = Shape(ask.endpoint, "x", ask.tag)
    frames = shape.frames(columns, usage_asked=ask.usage, continuous=False)
    return lies.Answer(ask.stream, frames, shape.whole(columns), per_pause=ask.n)


def told(ask: Ask, lie: str = "", seed: int = 1) -> Answer:
    """What a client would read if the engine's bytes came straight to it."""
    steps = LIES[lie](shaped(ask), Random(seed)) if lie else lies.honest(shaped(ask))
    answer = Answer()

    async def read() -> None:
        reader = asyncio.StreamReader(limit=1 << 20)
        reader.feed_data(b"".join(step for step in steps if isinstance(step, bytes)))
        reader.feed_eof()
        client = Client("x", 1, bound=1.0)
        try:
            await client._head(reader, answer)
            await client._body(reader, answer)
            answer.end = "whole"
        except EOFError:
            answer.end = "cut"
        except Exception:  # noqa: BLE001 - framing that is none
            answer.end = "garbled"

    asyncio.run(read())
    return answer


def asks() -> list[Ask]:
    generated: list[Endpoint] = ["chat", "completions"]
    return [
        VECTORS,
        *(
            Ask(9, endpoint, stream=stream, n=n, sampled=sampled, usage=stream and n == 2, tokens=5)
            for endpoint in generated
            for stream in (True, False)
            for n in (1, 2)
            for sampled in (True, False)
        ),
    ]


@pytest.mark.parametrize("ask", asks(), ids=str)
def test_an_honest_answer_is_exact(ask: Ask) -> None:
    verdict = judge(ask, told(ask))
    assert (verdict.kind, verdict.why) == ("exact", "")
    assert len(verdict.nonces) == (ask.n if ask.sampled else 0)


def test_an_answer_that_passed_through_is_compared_too() -> None:
    answer = Answer(200, {}, dumps(tokenized(7, 4)), "whole")
    assert judge(TOKENS, answer).kind == "exact"
    assert judge(TOKENS, Answer(200, {}, dumps(tokenized(8, 4)), "whole")).why == "other tokens"


HARMLESS = {"usage odd", "interim answers", "odd chunks", "second answer", "second answer at once", "infinity"}
"""The first answer itself is right in these; what comes after it is no part of it."""


@pytest.mark.parametrize("ask", asks(), ids=str)
@pytest.mark.parametrize("lie", LIES)
def test_no_lie_is_taken_for_an_exact_answer(lie: str, ask: Ask) -> None:
    if not fits(lie, stream=ask.stream, vectors=ask.endpoint == "embeddings"):
        return
    if lie in HARMLESS or (lie == "length too short" and ask.stream):
        return
    assert judge(ask, told(ask, lie)).kind in ("wrong", "error")


@pytest.mark.parametrize("lie", ["interim answers", "second answer"])
def test_what_http_allows_is_read(lie: str) -> None:
    assert judge(STREAM, told(STREAM, lie)).kind == "exact"


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        ("finish abort", "[DONE] or an end after a half answer"),
        ("finish none", "[DONE] or an end after a half answer"),
        ("no done", "ended with neither [DONE] nor an error"),
        ("frames after done", "what nobody asked for"),
        ("error under 200", "[DONE] after an error"),
    ],
)
def test_a_half_answer_with_done_is_wrong(lie: str, why: str) -> None:
    assert judge(STREAM, told(STREAM, lie)).why == why


def test_the_end_of_a_choice_is_looked_at_too() -> None:
    answer = told(STREAM)
    answer.body = answer.body.replace(b'"finish_reason":"length"', b'"finish_reason":null')
    assert judge(STREAM, answer).why == "[DONE] after a half answer"
    body = told(WHOLE)
    body.body = body.body.replace(b'"finish_reason":"length"', b'"finish_reason":"abort"')
    assert judge(WHOLE, body).why == "finish_reason ['abort']"


def test_another_text_is_wrong_in_a_part_too() -> None:
    answer = told(replace(STREAM, tag=8))
    assert judge(STREAM, answer).why == "another text"
    answer.end, answer.body = "cut", answer.body[: len(answer.body) // 2]
    assert judge(STREAM, answer).why == "another text"


def test_a_cut_an_error_frame_and_an_error_status_are_honest() -> None:
    answer = told(STREAM)
    whole = answer.body
    answer.body, answer.end = whole[: len(whole) // 2], "cut"
    assert judge(STREAM, answer).kind == "error"
    event = b'data: {"error":{"message":"m","type":"t","param":null,"code":"upstream_truncated"}}\n\n'
    answer.body, answer.end = whole[: whole.index(b"\n\n") + 2] + event, "whole"
    assert judge(STREAM, answer).why == "error frame upstream_truncated"
    refused = Answer(503, {}, event[6:], "whole")
    assert judge(STREAM, refused).why == "503 upstream_truncated"
    assert judge(STREAM, Answer(500, {}, b"oops", "whole")).why == "500 without an OpenAI error"


def test_another_client_s_id_is_wrong_and_one_s_own_is_not() -> None:
    mine = replace(STREAM, request_id=f"client-{1:016x}")
    answer = told(STREAM)
    answer.body = answer.body.replace(b"chatcmpl-x", b"chatcmpl-" + mine.request_id.encode())
    assert judge(mine, answer).kind == "exact"
    assert judge(STREAM, answer).why == "another client's id"


def test_usage_is_compared_where_it_was_asked_for() -> None:
    asked = replace(STREAM, usage=True)
    assert judge(asked, told(STREAM)).why == "usage: none"
    assert judge(STREAM, told(asked)).why == "usage: not asked for"
    assert judge(replace(WHOLE, n=1), told(WHOLE, "usage odd")).why.startswith("usage: ")


def test_the_usage_of_a_sampled_body_may_be_a_share() -> None:
    sampled = replace(WHOLE, sampled=True)
    for ask, tokens, sound in ((sampled, 5, True), (sampled, 40, False), (WHOLE, 5, False)):
        answer = told(ask)
        shared = f'"total_tokens":{17 + tokens},"completion_tokens":{tokens}'.encode()
        answer.body = answer.body.replace(b'"total_tokens":21,"completion_tokens":4', shared)
        assert (judge(ask, answer).kind == "exact") is sound


def test_who_left_and_what_hung_is_told_apart() -> None:
    assert judge(STREAM, Answer(end="left")).kind == "left"
    assert judge(STREAM, Answer(end="hung")).kind == "hung"
    assert judge(STREAM, Answer(200, end="garbled")).kind == "wrong"


def test_a_prompt_says_what_it_wants_of_the_engine() -> None:
    spec = read_spec(STREAM.body())
    assert spec is not None
    assert (spec.tag, spec.tokens, spec.gap) == (7, 4, 0.005)
    assert tags_of(dumps([*VECTORS.inputs, *replace(VECTORS, tag=8).inputs])) == {7, 8}


def test_the_engine_tells_its_lies_in_order_to_whom_they_fit() -> None:
    engine = Engine(Options(port=0))
    engine.obey({"lies": ["null vector", "finish abort"]})
    steps = engine._steps("chat", b"", STREAM.body())
    assert b'"finish_reason":"abort"' in b"".join(step for step in steps if isinstance(step, bytes))
    assert list(engine.lies) == ["null vector"]
    assert engine._steps("chat", b"", STREAM.body())[0] == lies.SSE
    engine.obey({"well": True})
    assert not engine.lies


def test_a_flood_is_a_stream_whose_chunks_are_as_long_as_they_say() -> None:
    engine = Engine(Options(port=0, frames=5, frame_bytes=600))
    steps = engine._steps("chat", b"x-request-id: longer-than-the-mark\r\n", STREAM.body())
    (data,) = (step for step in steps if isinstance(step, bytes))
    answer = Answer()

    async def read() -> None:
        reader = asyncio.StreamReader(limit=1 << 20)
        reader.feed_data(data)
        client = Client("x", 1, bound=1.0)
        await client._head(reader, answer)
        await client._body(reader, answer)

    asyncio.run(read())
    assert answer.body.count(b"chatcmpl-longer-than-the-mark") == 6
    assert answer.body.endswith(b"data: [DONE]\n\n")

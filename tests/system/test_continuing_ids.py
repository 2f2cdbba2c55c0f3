"""Sampled streams that break, continued by the ids of their tokens (`--resume ids`): one answer or an honest
error. The engine's tokens are characters: an id is a code point, and a character above U+FFFF is two tokens."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from proxy.app import App
from tests.kit.client import Answer, get, post_json
from tests.kit.engine import Engine
from tests.kit.engine_turn import Turn
from tests.kit.engine_wire import DONE, sse
from tests.kit.running import HELLO_STREAM, gateway, until
from tests.system.test_continuing import CHAT, TEXT, abort, cut, fail, honest

Json = dict[str, Any]
PROMPT = [7, 8, 9]
ANSWER = "Grüße 👍 an alle."
ASK = HELLO_STREAM | {"temperature": 0.8, "max_tokens": 100}


def tokens(text: str) -> list[int]:
    ids: list[int] = []
    for character in text:
        code = ord(character)
        ids += [code] if code < 0x10000 else [0x110000 + (code >> 12), 0x120000 + (code & 0xFFF)]
    return ids


def steps(ids: list[int]) -> list[tuple[str, list[int]]]:
    """The texts of tokens, each with its ids: the first half of a character has none yet."""
    found, half = [], 0
    for token in ids:
        if token >= 0x120000:
            found.append((chr((half << 12) + token - 0x120000), [token]))
        elif token >= 0x110000:
            half = token - 0x110000
            found.append(("", [token]))
        else:
            found.append((chr(token), [token]))
    return found


class Model:
    """All engines: each generates the rest of one answer, and the first `breaks` break after `at` tokens."""

    def __init__(self, *, at: int, how: Callable[[Turn], Awaitable[None]] = cut, breaks: int = 1) -> None:
        self.turns: list[Turn] = []
        self.at, self.how, self.breaks = at, how, breaks
        self.ready: Callable[[], bool] = lambda: True
        self.answer = ANSWER
        self.lists_ids = True

    async def __call__(self, turn: Turn) -> None:
        ask = turn.json()
        self.turns.append(turn)
        ids = bool(ask.get("return_token_ids")) and self.lists_ids
        given = ask.get("prompt") if isinstance(ask.get("prompt"), list) else PROMPT
        done = given[len(PROMPT) :]
        assert given[: len(PROMPT)] == PROMPT
        assert not 0x110000 <= given[-1] < 0x120000, "vLLM would repeat the text of the prompt"
        assert done == tokens(self.answer)[: len(done)]
        left = steps(tokens(self.answer))[len(done) :]
        limit = ask.get("max_completion_tokens") or ask["max_tokens"]
        finish = "length" if limit < len(left) else "stop"
        left = left[:limit]
        breaks = len(self.turns) <= self.breaks
        await turn.start()
        if turn.is_chat:
            await turn.frame(self.chunk(turn, {"index": 0, "delta": {"role": "assistant", "content": ""},
                "logprobs": None, "finish_reason": None}, prompt_token_ids=given if ids else None))  # fmt: skip
        for number, (text, own) in enumerate(left[: self.at] if breaks else left):
            last = number == len(left) - 1
            choice: Json = {"index": 0, "logprobs": None, "finish_reason": finish if last else None}
            choice |= {"delta": {"content": text}} if turn.is_chat else {"text": text}
            choice |= {"stop_reason": None} if last or not turn.is_chat else {}
            if not turn.is_chat:
                choice["prompt_token_ids"] = given if ids and not number else None
            choice["token_ids"] = own if ids else None
            await turn.frame(self.chunk(turn, choice))
        if breaks and self.at <= len(left):
            await until(self.ready)
            await self.how(turn)
            return
        if ask.get("stream_options", {}).get("include_usage"):
            usage = {"prompt_tokens": len(given), "completion_tokens": len(left),
                     "total_tokens": len(given) + len(left)}  # fmt: skip
            await turn.frame(self.chunk(turn, usage=usage))
        if breaks:
            await self.how(turn)
        else:
            await turn.end(DONE)

    @staticmethod
    def chunk(turn: Turn, *choices: Json, **more: Any) -> bytes:
        kind, prefix = ("chat.completion.chunk", "chatcmpl") if turn.is_chat else ("text_completion", "cmpl")
        head = {"id": f"{prefix}-{id(turn)}", "object": kind, "created": id(turn) % 1000, "model": "m1"}
        return sse({**head, "choices": choices, **more})


@pytest.fixture
async def engines() -> AsyncIterator[tuple[Engine, Engine]]:
    async with Engine() as one, Engine() as two:
        yield one, two


def play(engines: tuple[Engine, ...], app: App, **more: Any) -> Model:
    model = Model(**more)
    first = sum(bool(text) for text, _ in steps(tokens(ANSWER))[: model.at])

    def seen() -> bool:
        return max((flight.content_events for flight in app.group.live), default=0) >= first

    model.ready = seen
    for engine in engines:
        engine.auto(model)
    return model


def asked(path: str, **more: Any) -> Json:
    ask = ASK | more
    if path == TEXT:
        ask = {name: value for name, value in ask.items() if name != "messages"} | {"prompt": "hello"}
    return ask


def frames(answer: Answer) -> list[Json]:
    assert answer.status == 200
    assert answer.events()[-1] == DONE, answer.body
    return [json.loads(frame[6:]) for frame in answer.events()[:-1] if not frame.startswith(b":")]


def text_of(chunks: list[Json]) -> str:
    texts = [
        choice.get("text", choice.get("delta", {}).get("content")) for one in chunks for choice in one["choices"]
    ]
    return "".join(text or "" for text in texts)


async def counted(app: App) -> dict[str, int]:
    page = (await get(app.url, "/metrics")).body.decode()
    rows = [line.split() for line in page.splitlines() if 'streams_continued_total{how="ids"' in line]
    return {name.split('outcome="')[1].rstrip('"}'): int(count) for name, count in rows if count != "0"}


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("usage", [False, True])
async def test_a_sampled_stream_that_breaks_after_any_token_is_one_answer(
    engines: tuple[Engine, Engine], path: str, usage: bool
) -> None:
    every = tokens(ANSWER)
    more: Json = {"stream_options": {"include_usage": True}} if usage else {}
    async with gateway(*engines, resume="ids", breaker_failures=0, breaker_rate=0.0) as app:
        direct = play(engines, app, at=0, breaks=0)
        whole = frames(await post_json(app.url, path, asked(path, **more)))
        assert len(direct.turns) == 1
        for at in range(1, len(every) + 1):
            model = play(engines, app, at=at)
            answer = await post_json(app.url, path, asked(path, **more))
            chunks = frames(answer)
            assert text_of(chunks) == ANSWER, at
            assert len({(one["id"], one["object"], one["created"], one["model"]) for one in chunks}) == 1
            ends = [choice["finish_reason"] for one in chunks for choice in one["choices"]]
            assert [end for end in ends if end] == ["stop"]
            shown = [one.get("usage") for one in chunks if one.get("usage")]
            assert shown == [one["usage"] for one in whole if one.get("usage")]
            assert {tuple(one) for one in chunks} == {tuple(one) for one in whole}
            assert b'token_ids":[' not in answer.body
            first, *others = model.turns
            assert first.json()["return_token_ids"] is True
            assert len(others) == (at < len(every))
            for turn in others:
                ask = turn.json()
                assert turn.path == TEXT
                known = at - (0x110000 <= every[at - 1] < 0x120000)  # half of a character is generated again
                assert ask["prompt"] == PROMPT + every[:known]
                assert ask["max_tokens"] == 100 - known
                assert "messages" not in ask
        assert set(await counted(app)) == {"exact"}


@pytest.mark.parametrize("how", [cut, fail, abort])
@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_every_break_is_continued_and_a_second_one_too(
    engines: tuple[Engine, Engine], path: str, how: Callable[[Turn], Awaitable[None]]
) -> None:
    async with gateway(*engines, resume="ids", breaker_failures=0) as app:
        model = play(engines, app, at=4, how=how, breaks=2)
        answer = await post_json(app.url, path, asked(path))
        assert text_of(frames(answer)) == ANSWER
        assert b"abort" not in answer.body
        assert [turn.path for turn in model.turns] == [path, TEXT, TEXT]
        assert await counted(app) == {"exact": 1}


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
async def test_the_limit_of_tokens_counts_once(engines: tuple[Engine, Engine], limit: str) -> None:
    async with gateway(*engines, resume="ids") as app:
        play(engines, app, at=3)
        ask = {name: value for name, value in ASK.items() if name != "max_tokens"}
        chunks = frames(await post_json(app.url, CHAT, ask | {limit: 5, "min_tokens": 4}))
        assert text_of(chunks) == ANSWER[:5]
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        assert engines[0].generations + engines[1].generations == 2
        rest = next(turn for one in engines for turn in one.requests if turn.path == TEXT)
        assert rest.json()["min_tokens"] == 1


NOT_CONTINUED: dict[str, Json] = {
    "no limit": {"max_tokens": None},
    "a stop string": {"stop": ["x"]},
    "a presence penalty": {"presence_penalty": 0.5},
    "a frequency penalty": {"frequency_penalty": 0.1},
    "logprobs": {"logprobs": True},
    "a JSON schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}}},
    "structured outputs": {"structured_outputs": {"regex": "a*"}},
    "tools": {"tools": [{"type": "function", "function": {"name": "f"}}]},
    "its own ids": {"return_token_ids": True},
    "several choices": {"n": 2},
    "usage in each chunk": {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    "a member that is not known": {"new_thing": 1},
    "a limit that is no number": {"min_tokens": "x"},
    "banned words": {"bad_words": ["x"]},
}


@pytest.mark.parametrize("feature", NOT_CONTINUED)
async def test_what_cannot_be_right_is_not_asked_for_ids_and_ends_in_the_error(
    engines: tuple[Engine, Engine], feature: str
) -> None:
    async with gateway(*engines, resume="ids") as app:
        model = play(engines, app, at=3)
        model.lists_ids = "return_token_ids" in NOT_CONTINUED[feature]

        async def unlimited(turn: Turn) -> None:
            await turn.start()
            await turn.frame(Model.chunk(turn, {"index": 0, "delta": {"content": "Grü"}, "finish_reason": None}))
            await until(lambda: any(flight.content_events for flight in app.group.live))
            await turn.drop()

        if feature == "no limit":
            for engine in engines:
                engine.auto(unlimited)
        honest(await post_json(app.url, CHAT, ASK | NOT_CONTINUED[feature]), "upstream_truncated", "")
        (turn,) = [turn for engine in engines for turn in engine.requests]
        assert ("return_token_ids" in turn.json()) == model.lists_ids
        assert await counted(app) == {}


IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({"resume": "auto"}, {}),
        ({}, {"messages": IMAGE}),
        ({"retries": 0}, {}),
    ],
    ids=["auto", "an image", "no retries"],
)
async def test_what_is_no_plain_text_or_not_allowed_ends_in_the_error(
    engines: tuple[Engine, Engine], changes: Json, more: Json
) -> None:
    settings: Json = {"resume": "ids"} | changes
    async with gateway(*engines, **settings) as app:
        model = play(engines, app, at=3)
        honest(await post_json(app.url, CHAT, ASK | more), "upstream_truncated", "")
        assert len(model.turns) == 1


async def parsed(turn: Turn) -> None:
    """A parser of reasoning makes other text of the tokens."""
    await turn.start()
    role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    await turn.frame(Model.chunk(turn, role, prompt_token_ids=PROMPT))
    for delta in ({"reasoning": "G"}, {"content": "r"}):
        await turn.frame(Model.chunk(turn, {"index": 0, "delta": delta, "finish_reason": None, "token_ids": [1]}))


async def held_back(turn: Turn) -> None:
    await turn.start()
    role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    await turn.frame(Model.chunk(turn, role, prompt_token_ids=PROMPT))
    for delta in ({"content": "G"}, {}):
        await turn.frame(Model.chunk(turn, {"index": 0, "delta": delta, "finish_reason": None, "token_ids": [1]}))


async def without_ids(turn: Turn) -> None:
    await turn.start()
    await turn.frame(Model.chunk(turn, {"index": 0, "delta": {"content": "r"}, "finish_reason": None}))


async def ids_now_and_then(turn: Turn) -> None:
    await turn.start()
    for ids in ([1], None, [1]):
        choice = {"index": 0, "delta": {"content": "r"}, "finish_reason": None, "token_ids": ids}
        await turn.frame(Model.chunk(turn, choice, prompt_token_ids=PROMPT))


async def very_many_ids(turn: Turn) -> None:
    await turn.start()
    choice = {"index": 0, "delta": {"content": "r"}, "finish_reason": None, "token_ids": [1] * 1_000_000}
    await turn.frame(Model.chunk(turn, choice, prompt_token_ids=PROMPT))


async def several_at_once(turn: Turn) -> None:
    """The last one may be part of a character."""
    await turn.start()
    choice = {"index": 0, "delta": {"content": "r"}, "finish_reason": None, "token_ids": [1, 2]}
    await turn.frame(Model.chunk(turn, choice, prompt_token_ids=PROMPT))


async def odd_ids(turn: Turn) -> None:
    await turn.start()
    for ids in ([-1], [2**40], "x", {"a": 1}, [1.5]):
        choice = {"index": 0, "delta": {"content": "r"}, "finish_reason": None, "token_ids": ids}
        await turn.frame(Model.chunk(turn, choice, prompt_token_ids=PROMPT))


NO_TEXT_OF_IDS = [parsed, held_back, without_ids, ids_now_and_then, several_at_once, very_many_ids, odd_ids]


@pytest.mark.parametrize("begins", NO_TEXT_OF_IDS)
async def test_ids_that_are_not_the_text_continue_nothing(
    engines: tuple[Engine, Engine], begins: Callable[[Turn], Awaitable[None]]
) -> None:
    async with gateway(*engines, resume="ids") as app:

        async def script(turn: Turn) -> None:
            await begins(turn)
            await until(lambda: any(flight.content_events for flight in app.group.live))
            await turn.drop()

        for engine in engines:
            engine.auto(script)
        answer = await post_json(app.url, CHAT, ASK)
        honest(answer, "upstream_truncated", "")
        assert b"[7,8,9]" not in answer.body
        assert b'"token_ids":[' not in answer.body
        assert engines[0].generations + engines[1].generations == 1


async def other_prompt(turn: Turn) -> None:
    choice = {"index": 0, "text": "x", "finish_reason": None, "prompt_token_ids": [1], "token_ids": [2]}
    await turn.start()
    await turn.end(Model.chunk(turn, choice), DONE)


async def no_end(turn: Turn) -> None:
    await turn.start()
    await turn.end(Model.chunk(turn, {"index": 0, "text": "x", "finish_reason": None, "token_ids": [2]}), DONE)


async def garbage(turn: Turn) -> None:
    await turn.start()
    await turn.end(b'data: {"choices":[{"index":0,"text":5}]}\n\n', DONE)


async def other_choice(turn: Turn) -> None:
    await turn.start()
    await turn.end(Model.chunk(turn, {"index": 1, "text": "x", "finish_reason": "stop"}), DONE)


async def refuses(turn: Turn) -> None:
    await turn.respond(400, {"error": {"message": "no ids", "code": 400}})


@pytest.mark.parametrize("rest", [other_prompt, no_end, garbage, other_choice, refuses])
async def test_a_rest_that_is_not_one_ends_in_the_error(
    engines: tuple[Engine, Engine], rest: Callable[[Turn], Awaitable[None]]
) -> None:
    async with gateway(*engines, resume="ids") as app:
        model = play(engines, app, at=5)

        async def script(turn: Turn) -> None:
            await (rest(turn) if model.turns else model(turn))

        for engine in engines:
            engine.auto(script)
        honest(await post_json(app.url, CHAT, ASK), "upstream_truncated", "cannot be continued")
        assert sum((await counted(app)).values()) == 1


async def test_an_engine_that_refuses_ids_is_asked_without_and_not_again(engine: Engine) -> None:
    async def script(turn: Turn) -> None:
        if "return_token_ids" in turn.json():
            await turn.respond(400, {"error": {"message": "unknown member", "code": 400}})
        else:
            await turn.send("x")
            await turn.finish()

    engine.auto(script)
    async with gateway(engine, resume="ids") as app:
        for asks in (2, 3):
            assert text_of(frames(await post_json(app.url, CHAT, ASK))) == "x"
            assert engine.generations == asks


async def test_a_request_that_is_refused_for_itself_says_nothing_of_ids(engine: Engine) -> None:
    async with gateway(engine, resume="ids") as app:
        engine.auto(refuses)
        answer = await post_json(app.url, CHAT, ASK)
        assert (answer.status, answer.json()["error"]["message"]) == (400, "no ids")
        model = play((engine,), app, at=0, breaks=0)
        assert text_of(frames(await post_json(app.url, CHAT, ASK))) == ANSWER
        assert "return_token_ids" in model.turns[0].json()


async def test_another_build_does_not_continue_it(engines: tuple[Engine, Engine]) -> None:
    one, two = engines
    one.root, two.root = "/weights/a", "/weights/b"
    async with gateway(*engines, resume="ids") as app:
        await until(lambda: all(backend.build.digests for backend in app.backends.all))
        model = play(engines, app, at=3)

        async def dies(turn: Turn) -> None:
            (here,) = [one for one in engines if turn in one.requests]
            here.stop_listening()
            await turn.drop()

        model.how = dies
        honest(await post_json(app.url, CHAT, ASK), "upstream_truncated", "cannot be continued")
        assert len(model.turns) == 1

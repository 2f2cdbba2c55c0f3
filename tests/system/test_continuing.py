"""Streams that break, continued at another engine: readers get one answer or an honest error, at any break."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from proxy.app import App
from tests.kit.client import Answer, get, post_json, streaming
from tests.kit.engine import Engine, Script
from tests.kit.engine_scripts import echo_script
from tests.kit.engine_turn import Turn
from tests.kit.engine_wire import CREATED, DONE, FINGERPRINT, error_frame, sse
from tests.kit.redis_server import redis_server
from tests.kit.running import HELLO_STREAM, gateway, lines, until
from tests.proxy.flights.continuing.test_comparison import merged

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
Json = dict[str, Any]
Break = Callable[[Turn], Awaitable[None]]


@pytest.fixture
async def engines() -> AsyncIterator[tuple[Engine, Engine]]:
    async with Engine() as one, Engine() as two:
        yield one, two


# -- one answer, as two engines cut it -----------------------------------------------------------------


def chunk(turn: Turn, choices: list[Json], **more: Any) -> bytes:
    """A chunk by the engine of this turn: its id and time are its own."""
    kind = "chat.completion.chunk" if turn.is_chat else "text_completion"
    id_ = f"{'chatcmpl' if turn.is_chat else 'cmpl'}-{id(turn)}"
    created = CREATED + id(turn) % 1000
    return sse({"id": id_, "object": kind, "created": created, "model": "m1", "choices": choices, **more})


def delta(members: Json, index: int = 0, finish: str | None = None, **more: Any) -> Json:
    return {"index": index, "delta": members, "logprobs": None, "finish_reason": finish, **more}


def usage(tokens: int) -> Json:
    return {"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": 3 + tokens}


Frames = list[tuple[list[Json], Json]]
"""Chunks: choices, and other members."""
ROLE, ROLE_1 = (delta({"role": "assistant", "content": ""}, index) for index in (0, 1))
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}}


def ended(*frames: list[Json], tokens: int, finish: str = "stop", index: int = 0, **more: Any) -> Frames:
    end = [delta({}, index, finish, stop_reason=None, **more)]
    return [
        *((frame, {}) for frame in (*frames, end)),
        ([], {"usage": usage(tokens), "system_fingerprint": FINGERPRINT}),
    ]


def says(*texts: str, index: int = 0, kind: str = "content") -> list[list[Json]]:
    return [[delta({kind: text}, index)] for text in texts]


def logged(*tokens: str) -> list[Json]:
    entries = [{"token": token, "logprob": -0.25, "bytes": [1], "top_logprobs": []} for token in tokens]
    return [delta({"content": "".join(tokens)}) | {"logprobs": {"content": entries}}]


def call(id_: str, arguments: str, number: int = 0) -> list[Json]:
    function = {"name": f"f{number}", "arguments": arguments}
    return [delta({"tool_calls": [{"index": number, "id": id_, "type": "function", "function": function}]})]


def argues(*texts: str, number: int = 0) -> list[list[Json]]:
    return [[delta({"tool_calls": [{"index": number, "function": {"arguments": text}}]})] for text in texts]


def completion(*texts: str) -> list[list[Json]]:
    return [[{"index": 0, "text": text, "logprobs": None, "finish_reason": None}] for text in texts]


PLAIN = (
    ended([ROLE], *says("one", " two", " three", " four"), tokens=4),
    ended([ROLE], *says("on", "e two three", " fo", "ur"), tokens=4),
)
JSON_TEXT = (
    ended([ROLE], *says('{"a"', ":", " 1", "}"), tokens=4),
    ended([ROLE], *says('{"a":', " 1}"), tokens=4),
)
CALLS = (
    ended([ROLE], call("c-1", ""), *argues('{"x"', ": 1}"), call("c-2", "", 1), *argues("{}", number=1), tokens=9,
          finish="tool_calls"),
    ended([ROLE], call("d-1", '{"x": '), *argues("1}"), call("d-2", "{", 1), *argues("}", number=1), tokens=9,
          finish="tool_calls"),
)  # fmt: skip
FEATURES: dict[str, tuple[Json, tuple[Frames, Frames]]] = {
    "plain": ({}, PLAIN),
    "usage": ({"stream_options": {"include_usage": True}}, PLAIN),
    "a seed": ({"temperature": 0.9, "seed": 5}, PLAIN),
    "stop strings": (
        {"stop": ["five"]},
        (
            [*ended([ROLE], *says("one", " two"), tokens=3)[:-2],
             ([delta({}, finish="stop", stop_reason="five")], {}), ([], {"usage": usage(3)})],
            [*ended([ROLE], *says("one t", "wo"), tokens=3)[:-2],
             ([delta({}, finish="stop", stop_reason="five")], {}), ([], {"usage": usage(3)})],
        ),
    ),
    "penalties": ({"frequency_penalty": 0.5, "presence_penalty": 0.1}, PLAIN),
    "max_tokens": (
        {"max_tokens": 4},
        (
            ended([ROLE], *says("one", " two", " three", " four"), tokens=4, finish="length"),
            ended([ROLE], *says("one two", " three four"), tokens=4, finish="length"),
        ),
    ),
    "logprobs": (
        {"logprobs": True, "top_logprobs": 0},
        (
            ended([ROLE], logged("a"), logged("b"), logged("c"), tokens=3),
            ended([ROLE], logged("a", "b"), logged("c"), tokens=3),
        ),
    ),
    "n": (
        {"n": 2},
        (
            [([ROLE], {}), ([ROLE_1], {}), *((f, {}) for f in says("a", "b")),
             *((f, {}) for f in says("A", "B", index=1)), ([delta({}, 1, "length")], {}), *ended(tokens=4)],
            [([ROLE_1], {}), ([ROLE], {}), *((f, {}) for f in says("AB", index=1)),
             *((f, {}) for f in says("ab")), *ended(tokens=4)[:-1], ([delta({}, 1, "length")], {}),
             ended(tokens=4)[-1]],
        ),
    ),
    "tools": ({"tools": [{"type": "function", "function": {"name": "f0"}}]}, CALLS),
    "a JSON schema": ({"response_format": SCHEMA}, JSON_TEXT),
    "reasoning": (
        {},
        (
            ended([ROLE], *says("hm", "m", kind="reasoning"), *says("yes", "!"), tokens=4),
            ended([ROLE], *says("hmm", kind="reasoning"), *says("y", "es!"), tokens=4),
        ),
    ),
}  # fmt: skip


async def cut(turn: Turn) -> None:
    await turn.drop()


async def reset(turn: Turn) -> None:
    await turn.drop(reset=True)


async def end_without_done(turn: Turn) -> None:
    await turn.end()


async def fail(turn: Turn) -> None:
    await turn.frame(error_frame("out of memory"))
    await turn.cancelled()


async def abort(turn: Turn) -> None:
    """As vLLM does when it is paused or shut down."""
    if turn.is_chat:
        await turn.frame(chunk(turn, [delta({"content": ""}, finish="abort")]), DONE)
    else:
        await turn.frame(chunk(turn, [{"index": 0, "text": "", "logprobs": None, "finish_reason": "abort"}]), DONE)
    await turn.cancelled()


class Play:
    """A script for all engines: the first `breaks` requests are answered up to a place, then broken; later ones
    whole. It waits until it is `ready`: what comes with a reset may be lost."""

    def __init__(self, first: Frames, second: Frames, at: int, how: Break = cut, *, breaks: int = 1) -> None:
        self.turns: list[Turn] = []
        self.first, self.second, self.at, self.how, self.breaks = first, second, at, how, breaks
        self.ready: Callable[[], bool] = lambda: True

    async def __call__(self, turn: Turn) -> None:
        self.turns.append(turn)
        if len(self.turns) > self.breaks:
            await turn.start()
            await turn.end(*(chunk(turn, choices, **more) for choices, more in self.second), DONE)
            return
        await turn.start()
        await turn.frame(*(chunk(turn, choices, **more) for choices, more in self.first[: self.at]))
        await until(self.ready)
        await self.how(turn)


def asked(path: str = CHAT, **more: Any) -> Json:
    body = HELLO_STREAM | more
    if path == TEXT:
        body = {name: value for name, value in body.items() if name != "messages"} | {"prompt": "hello"}
    return body


def told(play: Play, *, with_usage: bool) -> Json:
    """What a client has to make of the answer: the second's content with the first's name."""
    frames = [chunk(play.turns[0], choices, **more) for choices, more in play.first]
    return _contents(frames, with_usage=with_usage)


def _contents(frames: Sequence[bytes], *, with_usage: bool) -> Json:
    whole = merged(frames)
    if not with_usage:
        whole["usage"] = []
    for choice in whole["choices"].values():
        choice.pop("system_fingerprint", None)
        for each in choice.get("delta", {}).get("tool_calls", {}).values():
            each["id"] = each["id"][1:]
    return whole


def got(answer: Answer, *, with_usage: bool = False) -> Json:
    assert answer.status == 200
    *frames, last = answer.events()
    assert last == DONE, last
    return _contents(frames, with_usage=with_usage)


def flying_log(app: App) -> Callable[[], int]:
    """The number of log entries of the one stream under way."""
    return lambda: sum(len(flight.log) for flight in app.group.live)


async def page(app: App) -> str:
    return (await get(app.url, "/metrics")).body.decode()


@pytest.mark.parametrize("feature", FEATURES)
async def test_a_stream_that_breaks_after_any_frame_is_one_answer(
    engines: tuple[Engine, Engine], feature: str
) -> None:
    more, (first, second) = FEATURES[feature]
    with_usage = "stream_options" in more
    async with gateway(*engines, retry_burst=0, retry_budget=0.0, breaker_failures=0, breaker_rate=0.0) as app:
        for at in range(1, len(first) + 1):
            play = Play(first, second, at)
            play.ready = lambda at=at: flying_log(app)() >= at  # type: ignore[misc]
            for engine in engines:
                engine.auto(play)
            answer = await post_json(app.url, CHAT, asked(user="u", **{"top_p": 1 - at / 100, **more}))
            assert got(answer, with_usage=with_usage) == told(play, with_usage=with_usage), at
            assert len(play.turns) == 2
            assert play.turns[0].body == play.turns[1].body
            await until(lambda: not app.group.live)
        assert f'streams_continued_total{{how="replay",outcome="exact"}} {len(first)}' in await page(app)


@pytest.mark.parametrize("how", [cut, reset, end_without_done, fail, abort])
@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_every_break_is_continued(
    engines: tuple[Engine, Engine], tmp_path: Path, how: Break, path: str
) -> None:
    if path == CHAT:
        first, second = PLAIN
    else:
        end: Frames = [([{"index": 0, "text": "", "finish_reason": "stop"}], {})]
        first = [*((frame, {}) for frame in completion("one", " two", " three")), *end]
        second = [*((frame, {}) for frame in completion("one two", " three")), *end]
    async with gateway(*engines, log_to=tmp_path / "log") as app:
        play = Play(first, second, 2, how)
        play.ready = lambda: flying_log(app)() >= 2
        for engine in engines:
            engine.auto(play)
        answer = await post_json(app.url, path, asked(path))
        assert got(answer) == told(play, with_usage=False)
        assert b"abort" not in answer.body
        assert 'outcome="exact"} 1' in await page(app)
    (line,) = [line for line in lines(tmp_path / "log") if line.get("endpoint") in ("chat", "completions")]
    assert (line["continued"], line["attempts"], line.get("error")) == ("replay", 2, None)


async def test_an_engine_that_is_silent_between_tokens_is_left_for_another(engines: tuple[Engine, Engine]) -> None:
    async def hang(turn: Turn) -> None:
        await turn.cancelled()

    async with gateway(*engines, token_timeout=1.0) as app:
        play = Play(*PLAIN, 3, hang)
        for engine in engines:
            engine.auto(play)
        assert got(await post_json(app.url, CHAT, asked())) == told(play, with_usage=False)


async def test_all_readers_and_the_store_have_the_same_whole_answer(engines: tuple[Engine, Engine]) -> None:
    async with (
        redis_server() as path,
        gateway(*engines, redis=f"unix://{path}", probe="on") as app,
        AsyncExitStack() as stack,
    ):
        play = Play(*PLAIN, 3)
        for engine in engines:
            engine.auto(play)
        ready = asyncio.Event()
        go = asyncio.Event()
        play.ready = go.is_set
        counted = await stack.enter_async_context(
            streaming(app.url, CHAT, asked(stream_options={"include_usage": True}))
        )
        await until(lambda: flying_log(app)() >= 3)
        plain = asyncio.create_task(post_json(app.url, CHAT, asked()))
        body = asyncio.create_task(post_json(app.url, CHAT, asked(stream=False)))
        await until(lambda: app.group.subscribers == 3)

        async def held(turn: Turn) -> None:
            """The second answer: another reader joins in the middle of what it repeats."""
            play.turns.append(turn)
            await turn.start()
            frames = [chunk(turn, choices, **more) for choices, more in play.second]
            await turn.frame(*frames[:2])
            ready.set()
            await until(lambda: app.group.subscribers == 4)
            await turn.end(*frames[2:], DONE)

        for engine in engines:
            engine.auto(held)
        go.set()
        await ready.wait()
        late = asyncio.create_task(post_json(app.url, CHAT, asked()))
        answers = [await counted.read(), await plain, await late]
        assert got(answers[0], with_usage=True) == told(play, with_usage=True)
        for answer in answers[1:]:
            assert got(answer) == told(play, with_usage=False)
        whole = (await body).json()
        assert whole["choices"][0]["message"]["content"] == "one two three four"
        first = json.loads(chunk(play.turns[0], [])[6:])
        assert (whole["usage"]["completion_tokens"], whole["created"]) == (4, first["created"])
        await until(lambda: not app.group.live)
        hit = await post_json(app.url, CHAT, asked())
        assert hit.head["x-gateway-cache"] == "hit"
        assert hit.body == answers[1].body
        assert len(play.turns) == 2


# -- what is no continuation ---------------------------------------------------------------------------


def honest(answer: Answer, code: str, words: str) -> None:
    last = answer.events()[-1]
    assert json.loads(last[6:])["error"]["code"] == code
    assert words in json.loads(last[6:])["error"]["message"]
    assert b"[DONE]" not in answer.body
    assert b'"abort"' not in answer.body


ANOTHER = ended([ROLE], *says("uno", " dos"), tokens=4)
OTHER = ended([ROLE], *says("one two", " 3", " four"), tokens=4)


async def not_found(turn: Turn) -> None:
    await turn.respond(404, {"error": {"message": "no such model"}})


@pytest.mark.parametrize(
    ("second", "words", "outcome"),
    [
        (OTHER, "another content", "differs"),
        (ended([ROLE], *says("one two"), tokens=2), "an earlier end", "differs"),
        (not_found, "status 404", "differs"),
    ],
    ids=["text", "end", "status"],
)
async def test_another_answer_ends_in_the_error_that_broke_the_first_and_is_not_stored(
    engines: tuple[Engine, Engine], second: Frames | Script, words: str, outcome: str
) -> None:
    async with redis_server() as path, gateway(*engines, redis=f"unix://{path}") as app:
        play = Play(PLAIN[0], second if isinstance(second, list) else [], 4)
        play.ready = lambda: flying_log(app)() >= 4

        async def script(turn: Turn) -> None:
            if play.turns and not isinstance(second, list):
                await second(turn)
            else:
                await play(turn)

        for engine in engines:
            engine.auto(script)
        answer = await post_json(app.url, CHAT, asked())
        honest(answer, "upstream_truncated", words)
        assert _contents(answer.events()[:-1], with_usage=False) == _contents(
            [chunk(play.turns[0], choices, **more) for choices, more in PLAIN[0][:4]], with_usage=False
        )
        assert f'outcome="{outcome}"}} 1' in await page(app)
        for engine in engines:
            engine.auto(echo_script())
        assert (await post_json(app.url, CHAT, asked())).head["x-gateway-cache"] == "miss"


SAMPLED = {"temperature": 1}
PRIVATE = (("x-gateway-share", "off"),)


@pytest.mark.parametrize(
    ("more", "headers", "changes"),
    [
        (SAMPLED, (), {}),
        (SAMPLED, (("x-gateway-share", "all"),), {}),
        ({}, PRIVATE, {}),
        ({}, (), {"resume": "off"}),
        ({}, (), {"retries": 0}),
    ],
    ids=["sampled", "sampled and shared", "private", "off", "no retries"],
)
@pytest.mark.parametrize("how", [cut, abort])
async def test_what_cannot_be_continued_ends_in_an_honest_error_at_once(
    engines: tuple[Engine, Engine], how: Break, more: Json, headers: Any, changes: Json
) -> None:
    async def ends(turn: Turn) -> None:
        if how is abort:
            await turn.end(chunk(turn, [delta({"content": ""}, finish="abort")]), DONE)
        else:
            await how(turn)

    async with gateway(*engines, **changes) as app:
        play = Play(*PLAIN, 3, ends)
        play.ready = lambda: any(flight.content_events == 2 for flight in app.group.live)
        for engine in engines:
            engine.auto(play)
        answer = await post_json(app.url, CHAT, asked(**more), headers)
        honest(answer, "upstream_incomplete" if how is abort else "upstream_truncated", "")
        assert len(play.turns) == 1
        assert 'outcome="exact"} 0' in await page(app)


async def test_an_error_that_is_the_request_s_own_is_passed_on(engines: tuple[Engine, Engine]) -> None:
    refused = sse({"error": {"message": "too long", "type": "BadRequestError", "code": 400}})

    async def refuse(turn: Turn) -> None:
        await turn.end(refused, DONE)

    async with gateway(*engines) as app:
        play = Play(*PLAIN, 3, refuse)
        for engine in engines:
            engine.auto(play)
        answer = await post_json(app.url, CHAT, asked())
        assert answer.events()[-1] == refused
        assert len(play.turns) == 1


# -- where, how often, and until when ------------------------------------------------------------------


async def test_with_one_engine_the_same_is_asked_again(engine: Engine) -> None:
    async with gateway(engine) as app:
        play = Play(*PLAIN, 3)
        engine.auto(play)
        assert got(await post_json(app.url, CHAT, asked())) == told(play, with_usage=False)


async def test_a_continuation_that_breaks_is_continued_as_often_as_a_request_is_retried(
    engines: tuple[Engine, Engine],
) -> None:
    async with gateway(*engines, retries=2, breaker_failures=0) as app:
        for breaks, whole in ((2, True), (3, False)):
            play = Play(*PLAIN, 4, breaks=breaks)
            play.ready = lambda: flying_log(app)() >= 4
            for engine in engines:
                engine.auto(play)
            answer = await post_json(app.url, CHAT, asked(seed=breaks))
            assert len(play.turns) == 3
            if whole:
                assert got(answer) == told(play, with_usage=False)
            else:
                honest(answer, "upstream_truncated", "cannot be continued")
        counted = await page(app)
        assert 'outcome="exact"} 1' in counted
        assert 'outcome="failed"} 1' in counted


async def test_it_waits_in_the_queue_for_an_engine_that_is_full(engines: tuple[Engine, Engine]) -> None:
    async with gateway(*engines, max_inflight=1, routing="round-robin") as app:
        reading = asyncio.create_task(post_json(app.url, CHAT, asked()))
        occupied = asyncio.create_task(post_json(app.url, CHAT, asked(seed=1)))
        await until(lambda: all(engine.requests for engine in engines))
        turns = {b"seed" in engine.requests[0].body: (engine, engine.requests[0]) for engine in engines}
        here, broken = turns[False]
        _, other = turns[True]
        play = Play(*PLAIN, 3)
        for engine in engines:
            engine.auto(play)
        here.stop_listening()
        await play(broken)
        await until(lambda: len(app.scheduler.queue) == 1)
        await other.finish("x")
        await occupied
        assert got(await reading) == told(play, with_usage=False)


async def test_the_last_reader_that_leaves_cancels_the_continuation(engines: tuple[Engine, Engine]) -> None:
    async with gateway(*engines) as app, streaming(app.url, CHAT, asked()) as client:
        play = Play(*PLAIN, 3)
        asking = asyncio.Event()

        async def script(turn: Turn) -> None:
            if not play.turns:
                await play(turn)
            else:
                await turn.start()
                await turn.frame(*(chunk(turn, choices, **more) for choices, more in PLAIN[1][:2]))
                asking.set()
                await turn.cancelled()
                asking.clear()

        for engine in engines:
            engine.auto(script)
        await client.read_head()
        await asking.wait()
        await client.abort()
        await until(lambda: not asking.is_set())
        assert 'outcome="cancelled"} 1' in await page(app)


async def test_a_client_s_time_limit_holds_across_the_seam(engines: tuple[Engine, Engine]) -> None:
    async def hang(turn: Turn) -> None:
        await turn.start()
        await turn.frame(*(chunk(turn, choices, **more) for choices, more in PLAIN[1][:3]))
        await turn.cancelled()

    async with gateway(*engines, total_timeout=5.0) as app:
        play = Play(*PLAIN, 3)
        for engine in engines:
            engine.auto(lambda turn: hang(turn) if play.turns else play(turn))
        honest(await post_json(app.url, CHAT, asked()), "upstream_truncated", "within 5 s")


async def test_all_streams_of_an_engine_that_dies_are_continued_whatever_the_retry_budget(
    engines: tuple[Engine, Engine],
) -> None:
    one, two = engines
    async with gateway(*engines, retry_burst=0, retry_budget=0.0, breaker_failures=0, breaker_rate=0.0) as app:
        plays = [Play(*PLAIN, 3) for _ in range(40)]
        dies = asyncio.Event()

        async def script(turn: Turn) -> None:
            play = plays[turn.json()["seed"]]
            play.ready = dies.is_set
            await play(turn)

        one.auto(script)
        two.auto(script)
        reading = [asyncio.create_task(post_json(app.url, CHAT, asked(seed=n))) for n in range(40)]
        await until(lambda: flying_log(app)() == 120)
        for play in plays:
            if play.turns[0] in two.requests:
                play.how = finish
        broken = one.generations
        assert broken >= 10
        one.stop_listening()
        dies.set()
        for play, answer in zip(plays, await asyncio.gather(*reading), strict=True):
            assert got(answer) == told(play, with_usage=False)
        assert f'outcome="exact"}} {broken}' in await page(app)


async def test_one_client_s_prompts_take_two_engines_and_not_a_third(
    engines: tuple[Engine, Engine], tmp_path: Path
) -> None:
    """Each engine dies of the prompt. Other clients' streams at the second one are continued at the third."""
    async with Engine() as third, gateway(*engines, third, routing="round-robin", retries=5) as app:
        every = (*engines, third)
        died: list[Engine] = []

        async def script(turn: Turn) -> None:
            (here,) = [one for one in every if turn in one.requests]
            await turn.start()
            await turn.frame(*(chunk(turn, choices, **more) for choices, more in PLAIN[0][:3]))
            await until(lambda: flying_log(app)() >= 3)
            died.append(here)
            here.stop_listening()
            await turn.drop(reset=True)

        for one in every:
            one.auto(script)
        honest(await post_json(app.url, CHAT, asked()), "upstream_truncated", "is gone too")
        assert len(died) == 2
        honest(await post_json(app.url, CHAT, asked()), "upstream_truncated", "")
        assert len(died) == 3
        assert 'outcome="failed"} 1' in await page(app)


async def test_streams_beyond_half_of_what_an_engine_takes_are_continued_after_the_others(
    engines: tuple[Engine, Engine],
) -> None:
    """Nobody gets an error, and new requests find places."""
    one, two = engines
    async with gateway(*engines, max_inflight=4, routing="round-robin") as app:
        go, free = asyncio.Event(), asyncio.Event()
        plays = [Play(*PLAIN, 3) for _ in range(8)]

        async def script(turn: Turn) -> None:
            if turn.json()["seed"] == 8:
                await turn.finish()
                return
            play = plays[turn.json()["seed"]]
            play.ready = go.is_set
            if play.turns:
                await free.wait()
            elif turn in two.requests:
                play.how = finish
            await play(turn)

        one.auto(script)
        two.auto(script)
        reading = [asyncio.create_task(post_json(app.url, CHAT, asked(seed=n))) for n in range(8)]
        await until(lambda: flying_log(app)() == 24)
        assert (one.generations, two.generations) == (4, 4)
        one.stop_listening()
        (dead,) = [backend for backend in app.backends.all if backend.name == one.url]
        app.backends.record_unreachable(dead, "refused")
        go.set()
        await until(lambda: two.generations == 6)
        assert (await post_json(app.url, CHAT, asked(seed=8), PRIVATE)).status == 200
        assert two.generations == 7
        free.set()
        for play, answer in zip(plays, await asyncio.gather(*reading), strict=True):
            assert got(answer) == told(play, with_usage=False)
        assert two.generations == 9


async def test_readers_of_a_stream_that_waits_to_be_continued_get_keep_alives(
    engines: tuple[Engine, Engine],
) -> None:
    async with gateway(*engines, keepalive_seconds=0.05) as app, streaming(app.url, CHAT, asked()) as client:
        play = Play(*PLAIN, 3)
        seen = asyncio.Event()

        async def script(turn: Turn) -> None:
            if play.turns:
                await seen.wait()
            await play(turn)

        for engine in engines:
            engine.auto(script)
        await client.read_head()
        while (event := await client.event()) is not None and not event.raw.startswith(b":"):
            pass
        seen.set()
        rest = [event.raw async for event in client.events() if not event.raw.startswith(b":")]
        assert rest[-1] == DONE


async def finish(turn: Turn) -> None:
    """The rest of a stream that does not break."""
    await turn.end(*(chunk(turn, choices, **more) for choices, more in PLAIN[0][3:]), DONE)


@pytest.mark.parametrize(("how", "generations"), [(finish, 1), (cut, 2)], ids=["ends", "breaks"])
async def test_a_removed_engine_s_stream_ends_there_or_is_continued_elsewhere(
    engines: tuple[Engine, Engine], how: Break, generations: int
) -> None:
    async with gateway(*engines) as app:
        play = Play(*PLAIN, 3, how)
        go = asyncio.Event()
        play.ready = go.is_set
        for engine in engines:
            engine.auto(play)
        reading = asyncio.create_task(post_json(app.url, CHAT, asked()))
        await until(lambda: flying_log(app)() == 3)
        (removed,) = [backend for backend in app.backends.all if backend.inflight]
        app.backends.change([], [removed])
        go.set()
        assert got(await reading) == told(play, with_usage=False)
        assert len(play.turns) == generations
        await until(lambda: removed.inflight == 0)


@pytest.mark.parametrize("second", [PLAIN[1], ANOTHER], ids=["repeats it", "says something else"])
async def test_a_removed_engine_hands_its_stream_over_or_keeps_it(
    engines: tuple[Engine, Engine], second: Frames
) -> None:
    async with gateway(*engines, hand_over_seconds=0.0) as app, streaming(app.url, CHAT, asked()) as client:
        handed = second is PLAIN[1]
        play = Play(PLAIN[0], second, 3, Turn.cancelled if handed else finish)
        play.ready = lambda: len(play.turns) == 2 and (play.turns[1].done or play.turns[1].is_cancelled)
        for engine in engines:
            engine.auto(play)
        await client.read_head()
        events = [await client.event() for _ in range(3)]
        (removed,) = [backend for backend in app.backends.all if backend.inflight]
        app.backends.change([], [removed])
        await until(lambda: len(play.turns) == 2)
        rest = [event.raw async for event in client.events()]
        frames = [event.raw for event in events if event is not None] + rest
        assert frames[-1] == DONE
        whole = _contents(frames[:-1], with_usage=False)
        assert whole == told(play, with_usage=False)
        await until(lambda: removed.inflight == 0)
        outcome = "exact" if handed else "stayed"
        assert f'outcome="{outcome}"}} 1' in await page(app)


async def test_an_engine_that_is_added_again_in_time_keeps_its_streams(engines: tuple[Engine, Engine]) -> None:
    async with gateway(*engines, hand_over_seconds=0.0) as app, streaming(app.url, CHAT, asked()) as client:
        play, looks = Play(*PLAIN, 3, finish), asyncio.Event()
        play.ready = looks.is_set
        for engine in engines:
            engine.auto(play)
        await client.read_head()
        await client.event()
        (removed,) = [backend for backend in app.backends.all if backend.inflight]
        app.backends.change([], [removed])
        app.backends.change([removed], [])
        removed.check_soon.set()
        await until(lambda: bool(removed.up))  # a health check later
        looks.set()
        assert [event.raw async for event in client.events()][-1] == DONE
        assert len(play.turns) == 1
        assert removed in app.backends.all


async def test_a_removed_engine_keeps_its_streams_while_no_other_has_room(engines: tuple[Engine, Engine]) -> None:
    async with gateway(*engines, hand_over_seconds=0.0, max_inflight=1, routing="round-robin") as app:
        play = Play(*PLAIN, 3, finish)
        ready = asyncio.Event()
        play.ready = ready.is_set
        others: list[Turn] = []

        async def script(turn: Turn) -> None:
            if "seed" in turn.json():
                others.append(turn)
                await turn.cancelled()
            else:
                await play(turn)

        for engine in engines:
            engine.auto(script)
        reading = asyncio.create_task(post_json(app.url, CHAT, asked()))
        await until(lambda: flying_log(app)() == 3)
        busy = asyncio.create_task(post_json(app.url, CHAT, asked(seed=1)))
        await until(lambda: len(others) == 1)
        (here,) = [engine for engine in engines if play.turns[0] in engine.requests]
        (removed,) = [backend for backend in app.backends.all if backend.name == here.url]
        app.backends.change([], [removed])
        app.scheduler._hand_over(removed)
        assert len(play.turns) == 1
        ready.set()
        assert got(await reading) == told(play, with_usage=False)
        assert len(play.turns) == 1
        busy.cancel()


@pytest.mark.parametrize("rule", ["three", "nothing of this"])
async def test_the_rest_of_an_answer_is_searched_for_denied_content(
    engines: tuple[Engine, Engine], tmp_path: Path, rule: str
) -> None:
    rules = tmp_path / "deny"
    rules.write_text(f"{rule}\n")
    async with gateway(*engines, deny_file=str(rules), deny_answers=True, deny_window=8) as app:
        play = Play(*PLAIN, 3)
        for engine in engines:
            engine.auto(play)
        answer = await post_json(app.url, CHAT, asked())
        if rule == "three":
            honest(answer, "content_denied", "")
        else:
            assert got(answer) == told(play, with_usage=False)


@pytest.mark.parametrize("more", [{}, SAMPLED], ids=["deterministic", "sampled"])
async def test_a_whole_body_whose_connection_breaks_is_retried(engines: tuple[Engine, Engine], more: Json) -> None:
    async with gateway(*engines) as app:
        turns: list[Turn] = []

        async def script(turn: Turn) -> None:
            turns.append(turn)
            if len(turns) == 1:
                await turn.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
                await turn.drop()
            else:
                await turn.answer("whole")

        for engine in engines:
            engine.auto(script)
        answer = await post_json(app.url, CHAT, asked(stream=False, **more))
        assert answer.json()["choices"][0]["message"]["content"] == "whole"
        assert len(turns) == 2

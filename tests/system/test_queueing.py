"""Waiting for a place, as clients see it: classes, turns, deadlines, a full queue, and who is told what."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from proxy.app import App
from proxy.config.keys_file import hash_of
from proxy.flights.queue.estimates import MIN_SAMPLES
from tests.kit.client import Answer, Connection, get, post_json, streaming
from tests.kit.engine import Engine
from tests.kit.engine_turn import Turn
from tests.kit.engine_wire import embeddings_body
from tests.kit.running import HELLO_STREAM, gateway, lines, until

CHAT = "/v1/chat/completions"


def asks(name: str, **more: Any) -> dict[str, Any]:
    return {"model": "m1", "messages": [{"role": "user", "content": name}], "temperature": 0} | more


def name_of(turn: Turn) -> str:
    return str(turn.json()["messages"][0]["content"])


def error_of(answer: Answer) -> tuple[int, str, str | None]:
    return answer.status, answer.json()["error"]["code"], answer.head.get("retry-after")


class Waiting:
    """A gateway whose engine has one place, which is taken: what comes next waits."""

    def __init__(self, app: App, engine: Engine, first: Turn) -> None:
        self.app = app
        self.engine = engine
        self.first = first
        self.posts: list[asyncio.Task[Answer]] = []

    async def post(self, name: str, *headers: tuple[str, str], **more: Any) -> asyncio.Task[Answer]:
        count = len(self.app.scheduler.queue)
        task = asyncio.create_task(post_json(self.app.url, CHAT, asks(name, **more), headers))
        self.posts.append(task)
        await until(lambda: len(self.app.scheduler.queue) > count or task.done())
        return task

    async def order(self) -> list[str]:
        """Let everything through; the order in which the engine was asked."""
        await self.first.finish()
        names = []
        done: asyncio.Future[Any] = asyncio.gather(*self.posts)
        while not done.done():
            turn = asyncio.create_task(self.engine.next_request())
            either: list[asyncio.Future[Any]] = [done, turn]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if turn.done():
                names.append(name_of(turn.result()))
                await turn.result().answer("x")
            else:
                turn.cancel()
                await asyncio.wait([turn])
        return names


async def waiting(
    stack: AsyncExitStack, engine: Engine, *first_headers: tuple[str, str], **changes: Any
) -> Waiting:
    app = await stack.enter_async_context(gateway(engine, **({"max_inflight": 1} | changes)))
    client = await stack.enter_async_context(streaming(app.url, CHAT, asks("first", stream=True), first_headers))
    assert client is not None
    return Waiting(app, engine, await engine.next_request())


async def test_a_more_urgent_class_goes_first(engine: Engine) -> None:
    async with AsyncExitStack() as stack:
        line = await waiting(stack, engine, top_priority="high")
        for name, priority in (("a", "low"), ("b", "normal"), ("c", "high"), ("d", " Normal ")):
            await line.post(name, ("x-gateway-priority", priority))
        await line.post("e")
        assert await line.order() == ["c", "b", "d", "e", "a"]


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (("x-gateway-priority", "urgent"), "must be one of high, normal, low"),
        (("x-gateway-priority", "0"), "must be one of high, normal, low"),
        (("x-gateway-priority", "high"), "exceeds your highest priority, normal"),
        (("x-request-timeout", "0"), "a number of seconds above 0"),
        (("x-request-timeout", "-1"), "a number of seconds above 0"),
        (("x-request-timeout", "nan"), "a number of seconds above 0"),
        (("x-request-timeout", "1e3"), "a number of seconds above 0"),
        (("x-request-timeout", "86401"), "up to 86400"),
    ],
)
async def test_what_a_header_says_wrong_is_told(engine: Engine, header: tuple[str, str], says: str) -> None:
    async with gateway(engine) as app:
        answer = await post_json(app.url, CHAT, asks("x"), [header])
        assert error_of(answer) == (400, "invalid_header", None)
        assert says in answer.json()["error"]["message"]
        assert engine.requests == []


KEYS = """
[[keys]]
name = "heavy"
sha256 = "{heavy}"
[[keys]]
name = "light"
sha256 = "{light}"
[[keys]]
name = "boss"
sha256 = "{boss}"
priority = "high"
[[keys]]
name = "batch"
sha256 = "{batch}"
priority = "low"
top_priority = "normal"
"""


def keys_file(folder: Path) -> str:
    path = folder / "keys.toml"
    path.write_text(KEYS.format(**{name: hash_of(name).hex() for name in ("heavy", "light", "boss", "batch")}))
    path.chmod(0o600)
    return str(path)


def key(name: str) -> tuple[str, str]:
    return "authorization", f"Bearer {name}"


async def test_keys_take_turns_and_their_classes_hold(engine: Engine, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        line = await waiting(stack, engine, key("heavy"), api_keys_file=keys_file(tmp_path))
        for n in range(4):
            await line.post(f"heavy {n}", key("heavy"), max_tokens=1000)
        await line.post("batch", key("batch"))
        await line.post("light", key("light"), max_tokens=1000)
        await line.post("boss", key("boss"))
        refused = await (await line.post("x", key("batch"), ("x-gateway-priority", "high")))
        assert error_of(refused)[:2] == (400, "invalid_header")
        line.posts.pop()
        await line.post("raised", key("batch"), ("x-gateway-priority", "normal"))
        order = await line.order()
        assert order[0] == "boss"
        assert order.index("light") <= 2
        assert order.index("raised") < order.index("batch") == len(order) - 1
        assert [name for name in order if name.startswith("heavy")] == [f"heavy {n}" for n in range(4)]


async def test_the_keys_of_one_tenant_take_turns_within_its_turns(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    names = {"heavy": "team", "light": "team", "other": "else"}
    path.write_text(
        "".join(
            f'[[keys]]\nname = "{name}"\ntenant = "{tenant}"\nsha256 = "{hash_of(name).hex()}"\n'
            for name, tenant in names.items()
        )
    )
    path.chmod(0o600)
    async with AsyncExitStack() as stack:
        line = await waiting(stack, engine, key("heavy"), api_keys_file=str(path))
        for n in range(6):
            await line.post(f"heavy {n}", key("heavy"), max_tokens=1000)
        for n in range(3):
            await line.post(f"other {n}", key("other"), max_tokens=1000)
        await line.post("light", key("light"), max_tokens=1000)
        order = await line.order()
        assert order.index("light") <= 3, "the tenant's second turn, and the other tenant's before each"
        assert order.index("other 2") <= 6, "a second key is no second share"


async def test_an_earlier_deadline_goes_first_among_one_caller_s(engine: Engine) -> None:
    async with AsyncExitStack() as stack:
        line = await waiting(stack, engine)
        await line.post("whenever")
        await line.post("later", ("x-request-timeout", "500"))
        await line.post("sooner", ("x-request-timeout", "100.5"))
        assert await line.order() == ["sooner", "later", "whenever"]


async def test_a_more_urgent_twin_moves_what_waits_up(engine: Engine) -> None:
    async with AsyncExitStack() as stack:
        line = await waiting(stack, engine, top_priority="high")
        await line.post("a")
        await line.post("b")
        line.posts.append(
            asyncio.create_task(post_json(line.app.url, CHAT, asks("b"), [("x-gateway-priority", "high")]))
        )
        await until(lambda: line.app.group.subscribers == 4)
        assert await line.order() == ["b", "a"]
        assert b"gateway_queue_promoted_total 1" in (await get(line.app.url, "/metrics")).body


async def test_its_time_over_while_it_waits_it_is_told_so_and_forgotten(engine: Engine, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        line = await waiting(stack, engine, log_to=tmp_path / "log")
        answer = await (await line.post("late", ("x-request-timeout", "0.05")))
        assert error_of(answer) == (504, "deadline_exceeded", None)
        assert "0.05 s" in answer.json()["error"]["message"]
        assert len(line.app.scheduler.queue) == 0
        assert b'gateway_deadlines_missed_total{phase="queued"} 1' in (await get(line.app.url, "/metrics")).body
        line.posts.clear()
        assert await line.order() == []
    (logged,) = [line for line in lines(tmp_path / "log") if line.get("status") == 504]
    assert logged["error"] == "deadline_exceeded"


async def test_no_engine_having_room_in_time_is_said_with_when_to_come_again(engine: Engine) -> None:
    async with AsyncExitStack() as stack:
        line = await waiting(stack, engine, queue_timeout=0.05)
        answer = await (await line.post("late"))
        assert error_of(answer) == (503, "queue_timeout", "1")
        assert "within 0.05 s" in answer.json()["error"]["message"]
        assert b'gateway_queue_refused_total{why="queue_timeout"} 1' in (await get(line.app.url, "/metrics")).body
        line.posts.clear()
        assert await line.order() == []


async def test_no_engine_works_for_who_cannot_be_answered_in_time(engine: Engine) -> None:
    async with AsyncExitStack() as stack:
        line = await waiting(stack, engine)
        late = await line.post("late", ("x-request-timeout", "30"))
        await line.post("patient")
        for _ in range(MIN_SAMPLES):
            line.app.scheduler.queue.estimates.record_answer("m1", 60.0)
        assert await line.order() == ["patient"]
        assert error_of(await late)[:2] == (503, "deadline_unmeetable")


async def test_a_stream_whose_time_is_over_ends_honestly_and_the_engine_is_told(engine: Engine) -> None:
    async with gateway(engine) as app:
        limit = [("x-request-timeout", "1")]  # long enough for what comes before, on a busy machine
        async with streaming(app.url, CHAT, HELLO_STREAM, limit) as client:
            turn = await engine.next_request()
            await turn.send("a", "b")
            events = [event async for event in client.events()]
            assert json.loads(events[-1].data)["error"]["code"] == "deadline_exceeded"
            assert not any(event.is_done for event in events)
            assert await client.at_eof()
            await turn.cancelled()


async def test_a_generation_outlives_one_reader_s_time_for_the_sake_of_the_others(engine: Engine) -> None:
    async with (
        gateway(engine) as app,
        streaming(app.url, CHAT, HELLO_STREAM) as patient,
        streaming(app.url, CHAT, HELLO_STREAM, [("x-request-timeout", "1")]) as hurried,
    ):
        turn = await engine.next_request()
        await turn.send("a")
        ended = [event async for event in hurried.events()]
        assert json.loads(ended[-1].data)["error"]["code"] == "deadline_exceeded"
        await turn.finish()
        assert [event async for event in patient.events()][-1].is_done
        assert engine.generations == 1


async def test_a_body_that_comes_too_slowly_is_over_in_time_too(engine: Engine) -> None:
    async with gateway(engine) as app, await Connection.open(app.url) as client:
        await client.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"x-request-timeout: 0.05\r\nContent-Length: 100\r\n\r\n{"
        )
        assert error_of(await client.read()) == (504, "deadline_exceeded", None)


async def test_a_whole_answer_in_time_is_as_it_would_be_without_a_limit(engine: Engine) -> None:
    async with gateway(engine) as app:
        post = asyncio.create_task(post_json(app.url, CHAT, asks("x"), [("x-request-timeout", "60")]))
        await (await engine.next_request()).answer("yes")
        answer = await post
        assert answer.json()["choices"][0]["message"]["content"] == "yes"


async def test_a_full_queue_says_429_to_who_has_its_share_and_503_to_who_is_alone(
    engine: Engine, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        settings = {"queue_limit": 4, "api_keys_file": keys_file(tmp_path), "metrics_key": False}
        line = await waiting(stack, engine, key("heavy"), **settings)
        heavy = [await line.post(f"heavy {n}", key("heavy")) for n in range(4)]
        alone = await post_json(line.app.url, CHAT, asks("heavy 4"), [key("heavy")])
        assert error_of(alone) == (503, "queue_full", "1")
        line.posts.append(asyncio.create_task(post_json(line.app.url, CHAT, asks("light"), [key("light")])))
        # Its share is 2: the newest of the other's makes room.
        assert error_of(await heavy[3]) == (429, "queue_share_exceeded", "1")
        share = await post_json(line.app.url, CHAT, asks("heavy 5"), [key("heavy")])
        assert error_of(share) == (429, "queue_share_exceeded", "1")
        page = (await get(line.app.url, "/metrics")).body
        assert b'gateway_queue_refused_total{why="pushed_out"} 1' in page
        assert b'gateway_queue_refused_total{why="queue_share_exceeded"} 1' in page
        assert b'gateway_queue_waiting{priority="normal"} 4' in page
        assert b"gateway_queue_owners 2" in page
        assert "light" in (await line.order())[:2]


async def test_by_default_an_engine_s_report_adapts_its_limit_and_one_without_a_report_has_256_places(
    engine: Engine,
) -> None:
    async with Engine() as full:
        full.metrics = b"vllm:num_requests_running 8\nvllm:num_requests_waiting 9\n"
        async with gateway(full, engine, load_seconds=0.01) as app:
            adapted, fixed = app.backends.all
            assert (adapted.max_inflight, fixed.max_inflight) == (256, 256)
            await until(lambda: adapted.max_inflight == 128)
            assert fixed.max_inflight == 256


async def test_with_auto_the_limit_is_found_and_shown(engine: Engine) -> None:
    async with gateway(engine, pace_ttft_ms=60_000) as app:
        (backend,) = app.backends.all
        assert backend.adaptive_limit is not None
        assert backend.max_inflight == backend.adaptive_limit.limit
        page = (await get(app.url, "/metrics")).body.decode()
        assert f'gateway_backend_max_inflight{{backend="{backend.name}"}} {backend.max_inflight}' in page
        post = asyncio.create_task(post_json(app.url, CHAT, asks("x", stream=True)))
        turn = await engine.next_request()
        await turn.send("yes")
        await turn.finish()
        await post
        assert len(backend.adaptive_limit._ttfts) == 1
        async with streaming(app.url, CHAT, HELLO_STREAM) as client:  # one that leaves once it has begun
            turn = await engine.next_request()
            await turn.send("a")
            await client.event()
        await turn.cancelled()
        await until(lambda: backend.inflight == 0)
        assert len(backend.adaptive_limit._ttfts) == 2


def at(address: str) -> tuple[str, str]:
    """A caller without a key, behind a proxy that is trusted."""
    return "x-forwarded-for", address


async def test_who_joined_a_request_that_makes_room_keeps_it(engine: Engine) -> None:
    async with AsyncExitStack() as stack:
        line = await waiting(stack, engine, at("10.0.0.1"), queue_limit=4, trusted_proxies=("127.0.0.0/8",))
        heavy = [await line.post(f"heavy {n}", at("10.0.0.1")) for n in range(4)]
        url = line.app.url
        follower = asyncio.create_task(post_json(url, CHAT, asks("heavy 3"), [at("10.0.0.2")]))
        await until(lambda: line.app.group.subscribers == 6)
        other = asyncio.create_task(post_json(url, CHAT, asks("other"), [at("10.0.0.3")]))
        assert error_of(await heavy[2]) == (429, "queue_share_exceeded", "1")
        line.posts += [follower, other]
        order = await line.order()
        assert (await follower).status == (await heavy[3]).status == (await other).status == 200
        assert order.index("heavy 3") < order.index("heavy 1"), "it takes the follower's turn"


async def test_an_embedding_of_a_light_caller_is_taken_into_a_queue_full_of_another_s(engine: Engine) -> None:
    async with gateway(engine, embed_batch_calls=1, queue_limit=4, trusted_proxies=("127.0.0.0/8",)) as app:

        def embed(text: str, address: str) -> asyncio.Task[Answer]:
            return asyncio.create_task(
                post_json(app.url, "/v1/embeddings", {"model": "m1", "input": text}, [at(address)])
            )

        first = embed("first", "10.0.0.1")
        turn = await engine.next_request()
        heavy = []
        for n in range(4):
            heavy.append(embed(f"heavy {n}", "10.0.0.1"))
            await until(lambda: app.embedder is not None and len(app.embedder.queue) == len(heavy))
        light = embed("light", "10.0.0.2")
        assert error_of(await heavy[3]) == (429, "queue_share_exceeded", "1")
        full = await embed("heavy 4", "10.0.0.1")
        assert error_of(full) == (429, "queue_share_exceeded", "1")
        await turn.respond(200, embeddings_body(["first"], "m1", 1))
        turn = await engine.next_request()
        assert sorted(turn.json()["input"]) == ["heavy 0", "heavy 1", "heavy 2", "light"]
        await turn.respond(200, embeddings_body(turn.json()["input"], "m1", 2))
        assert [(await post).status for post in (first, light, *heavy[:3])] == [200] * 5
        page = (await get(app.url, "/metrics")).body
        assert b'gateway_queue_refused_total{why="pushed_out"} 1' in page

"""The memory budget and the limits through the gateway: what a head can tell is judged before the body is read."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from proxy.app import App
from proxy.flights.memory import Held
from proxy.server.body import AHEAD, BODY_COST
from tests.kit.client import Connection, get, post_json, request_bytes
from tests.kit.engine import Engine, Turn
from tests.kit.engine_scripts import echo_script
from tests.kit.redis_server import redis_server
from tests.kit.running import HELLO, HELLO_STREAM, gateway, lines, until
from tests.proxy.server.listener.test_listener_times import small

CHAT = "/v1/chat/completions"
MIB = 1024 * 1024
SLOW = 0.0001  # requests a second: nothing leaks while a test runs


def large(size: int = 100_000, **fields: Any) -> dict[str, Any]:
    return HELLO | {"temperature": 1, "messages": [{"role": "user", "content": "x" * size}]} | fields


def code(answer: Any) -> tuple[int, str]:
    return answer.status, answer.json()["error"]["code"]


def filled(app: App) -> Held:
    """All that one owner may have, and the rest by another: what is new finds no room."""
    memory = app.memory
    memory.hold("another", "uploads", memory.budget // 2)
    return memory.hold("a third", "uploads", memory.budget - memory.held)


async def test_a_large_body_is_refused_before_it_is_read_and_its_connection_serves_on(engine: Engine) -> None:
    engine.auto(echo_script())
    async with gateway(engine, memory_budget=16 * MIB) as app:
        filled(app)
        body = json.dumps(large()).encode()
        async with await Connection.open(app.url) as client:
            head = request_bytes("POST", CHAT, b"", [("Content-Length", str(len(body)))])
            await client.send(head)
            answer = await client.read()
            assert code(answer) == (503, "memory_full")
            assert answer.head["retry-after"] == "1"
            await client.send(body)  # it had not been told yet
            await client.request("POST", CHAT, json.dumps(HELLO).encode())
            assert (await client.read()).status == 200  # small ones are served
        page = (await get(app.url, "/metrics")).body
        assert b'gateway_memory_refused_total{kind="uploads"} 1\n' in page
        assert b'gateway_memory_held_bytes{kind="uploads"} %d\n' % app.memory.held in page


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_is_charged_while_it_comes_and_until_its_request_has_ended(
    engine: Engine, chunked: bool
) -> None:
    async with gateway(engine, memory_budget=64 * MIB) as app:
        body = json.dumps(large(3 * MIB)).encode()
        async with await Connection.open(app.url) as client:
            if chunked:
                head = request_bytes("POST", CHAT, b"", [("Transfer-Encoding", "chunked")])
                await client.send(head + b"%x\r\n%b\r\n" % (len(body) - 9, body[:-9]))
            else:
                head = request_bytes("POST", CHAT, b"", [("Content-Length", str(len(body)))])
                await client.send(head + body[:-9])
            await until(lambda: app.memory.held >= BODY_COST * (len(body) - 9))
            await client.send(b"9\r\n%b\r\n0\r\n\r\n" % body[-9:] if chunked else body[-9:])
            turn = await engine.next_request()
            assert app.memory.held >= BODY_COST * len(body)
            await turn.answer("ok")
            await client.read()
        await until(lambda: app.memory.held == 0)


async def test_a_client_that_leaves_in_mid_upload_gives_its_memory_back(engine: Engine) -> None:
    async with gateway(engine, memory_budget=64 * MIB) as app:
        async with await Connection.open(app.url) as client:
            await client.send(request_bytes("POST", CHAT, b"", [("Content-Length", str(MIB))]) + b"x" * 1000)
            await until(lambda: app.memory.held == BODY_COST * AHEAD)
            await client.abort()
        await until(lambda: app.memory.held == 0)


async def test_clients_that_announce_bodies_and_send_nothing_hold_little_of_the_budget(engine: Engine) -> None:
    engine.auto(echo_script())
    head = request_bytes("POST", CHAT, b"", [("Content-Length", str(16 * MIB))])
    async with gateway(engine, memory_budget=80 * MIB) as app, AsyncExitStack() as stack:
        for _ in range(32):
            await (await stack.enter_async_context(await Connection.open(app.url))).send(head)
        await until(lambda: app.memory.held == 32 * BODY_COST * AHEAD)
        assert (await post_json(app.url, CHAT, large(3 * MIB))).status == 200


async def test_the_rate_is_asked_before_a_large_body_is_read_and_once(engine: Engine) -> None:
    engine.auto(echo_script())
    async with gateway(engine, rate_limit_rps=SLOW, rate_limit_burst=2, rate_limit_tokens_per_minute=10**6) as app:
        answer = await post_json(app.url, CHAT, large())
        assert answer.status == 200
        assert answer.head["x-ratelimit-remaining-requests"] == "1"
        assert int(answer.head["x-ratelimit-remaining-tokens"]) < 10**6 - 10_000
        assert (await post_json(app.url, CHAT, HELLO)).status == 200
        async with await Connection.open(app.url) as client:
            await client.send(request_bytes("POST", CHAT, b"", [("Content-Length", str(MIB))]))
            assert code(await client.read()) == (429, "rate_limit_exceeded")  # nothing of its body was sent
        assert engine.generations == 2


async def test_a_large_body_that_its_tokens_refuse_has_taken_no_request(engine: Engine) -> None:
    engine.auto(echo_script())
    async with gateway(engine, rate_limit_rps=SLOW, rate_limit_burst=2, rate_limit_tokens_per_minute=5000) as app:
        refused = await post_json(app.url, CHAT, large())
        assert code(refused)[0] == 429
        for left in ("1", "0"):
            answer = await post_json(app.url, CHAT, HELLO | {"max_tokens": 4})
            assert (answer.status, answer.head["x-ratelimit-remaining-requests"]) == (200, left)


def huge(size: int = 3 * MIB) -> dict[str, Any]:
    message = {"role": "assistant", "content": "y" * size}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return {"id": "x", "object": "chat.completion", "model": "m1", "choices": [choice], "usage": usage}


async def _huge(turn: Turn) -> None:
    await turn.respond(200, huge())


@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
async def test_a_large_body_arrives_whole_with_its_length(engine: Engine, version: bytes) -> None:
    engine.auto(_huge)
    async with gateway(engine) as app:
        async with await Connection.open(app.url) as client:
            data = request_bytes("POST", CHAT, json.dumps(HELLO).encode())
            await client.send(data.replace(b"HTTP/1.1", version, 1))
            answer = await client.read()
        assert answer.json() == huge()
        assert int(answer.head["content-length"]) == len(answer.body)
        await until(lambda: app.memory.held == 0)


async def test_a_large_stream_arrives_whole_over_either_version(engine: Engine) -> None:
    async def script(turn: Turn) -> None:
        for text in ("a" * 10, "b" * 500_000, "c" * 5000, "d"):
            await turn.send(text)
        await turn.finish()

    engine.auto(script)
    async with gateway(engine) as app:
        for number, version in enumerate((b"HTTP/1.1", b"HTTP/1.0")):
            for temperature in (0, 1):
                fields = {"temperature": temperature, "seed": number} if temperature == 0 else {"temperature": 1}
                async with await Connection.open(app.url) as client:
                    data = request_bytes("POST", CHAT, json.dumps(HELLO_STREAM | fields).encode())
                    await client.send(data.replace(b"HTTP/1.1", version, 1))
                    texts = [event.text async for event in client.events() if not event.is_done]
                assert "".join(texts) == "a" * 10 + "b" * 500_000 + "c" * 5000 + "d"


async def test_an_answer_for_which_there_is_no_memory_is_the_gateway_s_failure_not_the_engine_s(
    engine: Engine,
) -> None:
    engine.auto(_huge)
    async with gateway(engine, memory_budget=16 * MIB, breaker_failures=1) as app:
        filled(app)
        for _ in range(3):
            assert code(await post_json(app.url, CHAT, HELLO | {"temperature": 1})) == (503, "memory_full")
        page = (await get(app.url, "/metrics")).body
        assert b'code="memory_full"' not in page
        assert app.backends.all[0].breaker.admits(0.0)


async def test_a_client_that_reads_nothing_is_cut_where_there_is_no_memory_for_its_bytes(engine: Engine) -> None:
    async def script(turn: Turn) -> None:
        for _ in range(400):
            await turn.send("z" * 20_000)
        await turn.finish()

    engine.auto(script)
    async with gateway(engine, memory_budget=16 * MIB) as app:
        filled(app)
        body = json.dumps(HELLO_STREAM | {"temperature": 1}).encode()
        sock = await small(app.url, request_bytes("POST", CHAT, body))
        await until(lambda: engine.generations == 1 and not app.group.live)
        assert app.memory.kinds.get("unread", 0) == 0
        sock.close()


async def test_a_client_that_stalls_in_mid_answer_is_logged_as_such_and_closed(
    engine: Engine, tmp_path: Path
) -> None:
    engine.auto(_huge)
    async with gateway(engine, client_stall_timeout=0.2, log_to=tmp_path / "log") as app:
        sock = await small(app.url, request_bytes("POST", CHAT, json.dumps(HELLO).encode()))
        await until(lambda: engine.generations == 1 and not app.group.live)
        await until(lambda: app.memory.held == 0)
        sock.close()
    (line,) = [line for line in lines(tmp_path / "log") if line.get("endpoint") == "chat"]
    assert (line["status"], line["error"]) == (499, "client_stalled")


async def test_a_stored_answer_is_charged_for_each_who_reads_it_at_a_time_of_its_own(
    engine: Engine,
) -> None:
    async def script(turn: Turn) -> None:
        await turn.respond(200, huge(200_000))

    engine.auto(script)
    async with redis_server() as path, gateway(engine, redis=f"unix://{path}", memory_budget=16 * MIB) as app:
        assert (await post_json(app.url, CHAT, HELLO)).status == 200
        await until(lambda: not app.group.live)
        answer = await post_json(app.url, CHAT, HELLO)
        assert answer.head["x-gateway-cache"] == "hit"
        filled(app)
        assert code(await post_json(app.url, CHAT, HELLO)) == (503, "memory_full")

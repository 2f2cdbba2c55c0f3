"""The end, in its order: against fakes by virtual time, and over loopback."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import pytest

from proxy.errors import Code, GatewayError
from proxy.server.drain import FLUSH_SECONDS, Drain
from tests.kit.client import Connection, IncompleteBody, streaming
from tests.kit.clock import virtual
from tests.kit.engine import Engine
from tests.kit.gateway_stage import Stage as GatewayStage
from tests.kit.running import HELLO, HELLO_STREAM, gateway, lines, until

CHAT = "/v1/chat/completions"


class Stage:
    """Door, runner and gateway in one, that write down what is asked of them and when."""

    def __init__(self, *, takes: float = 0.0) -> None:
        self.told: list[tuple[float, str]] = []
        self.busy = 1 if takes else 0
        self._takes = takes
        self.sites = [self]
        self.gateway = GatewayStage().gateway
        self.enter = self.gateway.enter

    def say(self, what: str) -> None:
        self.told.append((asyncio.get_running_loop().time(), what))

    async def finish(self, seconds: float) -> None:
        self.say(f"finish {seconds:g}")
        await asyncio.sleep(min(seconds, self._takes))
        self._takes -= min(seconds, self._takes)
        self.busy = 1 if self._takes else 0

    async def stop(self) -> None:
        self.sites = []
        self.say("stop listening")

    async def cleanup(self) -> None:
        self.say("cleanup")

    async def end_all(self) -> None:
        self.say("end all")

    def event(self, level: str, msg: str, **fields: object) -> None:
        self.say(f"{msg} {fields}")
        self.level = level

    def drain(self, *, delay: float, timeout: float) -> Drain:
        me = cast(Any, self)
        return Drain(me, me, me, self.end_all, delay=delay, timeout=timeout, log=me)

    def answers(self) -> dict[str, bool]:
        found = {}
        for endpoint in ("ready", "health", "metrics", "chat"):
            try:
                self.gateway._check_stage(endpoint)
                found[endpoint] = True
            except GatewayError as e:
                assert e.code is Code.SHUTTING_DOWN
                found[endpoint] = False
        return found


@virtual
async def test_ready_goes_first_then_new_requests_then_those_that_take_too_long() -> None:
    stage = Stage(takes=30.0)
    task = asyncio.ensure_future(stage.drain(delay=5.0, timeout=10.0)(None, None, None))
    await asyncio.sleep(1.0)
    assert stage.answers() == {"ready": False, "health": True, "metrics": True, "chat": True}
    await asyncio.sleep(5.0)
    assert stage.answers() == {"ready": False, "health": True, "metrics": True, "chat": False}
    await task
    assert [(round(at - stage.told[0][0] + 5), what) for at, what in stage.told] == [
        (5, "stop listening"),
        (5, "finish 10"),
        (15, "end all"),
        (15, f"finish {FLUSH_SECONDS:g}"),
        (15 + int(FLUSH_SECONDS), "cleanup"),
        (15 + int(FLUSH_SECONDS), "drained {'cut': 1}"),
    ]


@virtual
async def test_with_nothing_under_way_nothing_is_waited_for() -> None:
    stage, began = Stage(), asyncio.get_running_loop().time()
    await stage.drain(delay=0.0, timeout=10.0)(None, None, None)
    assert asyncio.get_running_loop().time() - began < 0.01
    assert stage.level == "info"
    at_once = Stage(takes=3.0)
    await at_once.drain(delay=0.0, timeout=0.0)(None, None, None)
    assert [what for _, what in at_once.told] == [
        "stop listening",
        "end all",
        f"finish {FLUSH_SECONDS:g}",
        "cleanup",
        "drained {'cut': 1}",
    ]
    assert at_once.level == "warning"


@virtual
@pytest.mark.parametrize("after", [1.0, 8.0])
async def test_a_second_signal_cuts_the_delay_and_the_waiting_short(after: float) -> None:
    stage = Stage(takes=3600.0)
    task = asyncio.ensure_future(stage.drain(delay=5.0, timeout=3600.0)(None, None, None))
    await asyncio.sleep(after)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [what for _, what in stage.told][-3:] == [f"finish {FLUSH_SECONDS:g}", "cleanup", "drained {'cut': 1}"]
    assert not stage.answers()["chat"]


@virtual
async def test_left_by_an_error_it_does_not_wait() -> None:
    stage = Stage(takes=3600.0)
    await stage.drain(delay=5.0, timeout=3600.0)(RuntimeError, RuntimeError(), None)
    assert [what for _, what in stage.told][:2] == ["stop listening", "end all"]


# -- over loopback


async def test_a_kept_connection_is_told_and_closed_while_a_stream_goes_on(engine: Engine, tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(gateway(engine, drain_timeout=50.0, log_to=log))
        idle = await stack.enter_async_context(await Connection.open(app.url))
        await idle.request("GET", "/ready")
        assert (await idle.read()).status == 200
        client = await stack.enter_async_context(streaming(app.url, CHAT, HELLO_STREAM))
        turn = await engine.next_request()
        await turn.send("a")
        await client.event()
        probe = await stack.enter_async_context(await Connection.open(app.url))
        closing = asyncio.ensure_future(app_end(stack))
        await until(lambda: not _listens(app.port))
        for connection, path, body in ((idle, CHAT, b"{}"), (probe, "/ready", b"")):
            await connection.request("POST" if body else "GET", path, body)
            answer = await connection.read()
            assert (answer.status, answer.json()["error"]["code"]) == (503, "shutting_down")
            assert (answer.head["connection"], answer.head["retry-after"]) == ("close", "1")
            assert await connection.at_eof()
        await turn.send(" b")
        await turn.finish()
        assert (await client.read()).events()[-1] == b"data: [DONE]\n\n"
        await closing
    assert lines(log)[-1]["cut"] == 0


async def app_end(stack: AsyncExitStack) -> None:
    """Ends the gateway, the first that was entered, and leaves the clients to the test."""
    callbacks = cast(Any, stack)._exit_callbacks
    _, leave = callbacks.popleft()
    await leave(None, None, None)


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_what_takes_too_long_is_ended_honestly_and_its_engine_told(engine: Engine, stream: bool) -> None:
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(gateway(engine, drain_timeout=0.1))
        client = await stack.enter_async_context(streaming(app.url, CHAT, HELLO_STREAM if stream else HELLO))
        turn = await engine.next_request()
        if stream:
            await turn.send("a")
            await client.event()
        await app_end(stack)
        answer = await client.read()
        if stream:
            error = answer.events()[-1]
            assert b'"code":"shutting_down"' in error
            assert b"[DONE]" not in answer.body
        else:
            assert (answer.status, answer.json()["error"]["code"]) == (503, "shutting_down")
        await turn.cancelled()


async def test_a_stream_that_is_passed_through_is_cut_without_a_clean_end(engine: Engine) -> None:
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(gateway(engine, drain_timeout=0.0))
        client = await stack.enter_async_context(streaming(app.url, "/v1/a/b", {"input": "a", "stream": True}))
        turn = await engine.next_request()
        await turn.start()
        await turn.frame(b"data: {}\n\n")
        await client.event()
        await app_end(stack)
        with pytest.raises(IncompleteBody):
            await client.read()
        await turn.cancelled()


async def test_a_request_whose_body_is_still_coming_is_answered(engine: Engine) -> None:
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(gateway(engine, drain_timeout=50.0))
        client = await stack.enter_async_context(await Connection.open(app.url))
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\ncontent-type: application/json\r\n"
        await client.send(head + b"expect: 100-continue\r\ncontent-length: 30\r\n\r\n")
        await client.reader.readuntil(b"\r\n\r\n")
        closing = asyncio.ensure_future(app_end(stack))
        await until(lambda: not _listens(app.port))
        await client.send(b'{"model": "m1", "messages":[]}')
        turn = await engine.next_request()
        await turn.answer("a")
        assert (await client.read()).status == 200
        await closing

"""The drill's engine: vLLM's streaming API with a behaviour that a fault changes while it runs. For errors at byte
level see the tests' engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from aiohttp import web


@dataclass
class Mood:
    """How the engine answers from now on; times in seconds."""

    ttft: float = 0.0
    gap: float = 0.0  # between two tokens
    tokens: int = 8
    fail: float = 0.0  # share of requests that fail
    status: int = 500  # their status
    cut: bool = False  # close in the middle of the stream
    hold: asyncio.Event | None = None  # no answer until it is set


class Engine:
    """Listens on a loopback port, the same after an outage."""

    def __init__(self) -> None:
        self.mood = Mood()
        self.port = 0
        self.served = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def up(self) -> None:
        """Listen, always on the same port."""
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()
        self.port = self._runner.addresses[0][1]

    async def down(self) -> None:
        """As if killed: stop listening and close all connections."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _metrics(self, request: web.Request) -> web.Response:
        """The load metrics that the gateway reads."""
        waiting = 0 if self.mood.hold is None else 3
        lines = (
            "vllm:num_requests_running 1",
            f"vllm:num_requests_waiting {waiting}",
            "vllm:kv_cache_usage_perc 0.2",
        )
        return web.Response(text="\n".join(lines) + "\n")

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "m1", "object": "model", "owned_by": "vllm"}]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        mood = self.mood
        asked = await request.json()
        self.served += 1
        if self.served % 10 < mood.fail * 10:
            return web.json_response(
                {"error": {"message": "drill", "type": "e", "code": mood.status}}, status=mood.status
            )
        if mood.hold is not None:
            await mood.hold.wait()
        await asyncio.sleep(mood.ttft)
        answer = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        with suppress(ConnectionResetError):  # the client may have disconnected
            await self._stream(request, answer, mood, asked)
        return answer

    async def _stream(
        self, request: web.Request, answer: web.StreamResponse, mood: Mood, asked: dict[str, Any]
    ) -> None:
        await answer.prepare(request)
        await answer.write(_frame(_delta({"role": "assistant", "content": ""})))
        for at in range(mood.tokens):
            if mood.cut and at == 3 and request.transport is not None:
                request.transport.abort()
                return
            await asyncio.sleep(mood.gap)
            await answer.write(_frame(_delta({"content": f" w{at}"})))
        await answer.write(_frame(_delta({}, "stop")))
        if (asked.get("stream_options") or {}).get("include_usage"):
            usage = {"prompt_tokens": 4, "completion_tokens": mood.tokens, "total_tokens": 4 + mood.tokens}
            await answer.write(_frame({**_chunk([]), "usage": usage}))
        await answer.write(b"data: [DONE]\n\n")
        await answer.write_eof()


def _chunk(choices: list[Any]) -> dict[str, Any]:
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m1", "choices": choices}


def _delta(delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
    return _chunk([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}])


def _frame(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


@asynccontextmanager
async def engine() -> AsyncIterator[Engine]:
    """A running engine."""
    one = Engine()
    await one.up()
    try:
        yield one
    finally:
        await one.down()

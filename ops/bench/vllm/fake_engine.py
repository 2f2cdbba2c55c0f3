"""A fake vLLM with a fixed number of slots: further requests wait, and /metrics reports both. For dry runs of the
benchmarks, in seconds instead of hours."""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any, Final

from aiohttp import web

MODEL: Final = "toy"
BLOCK: Final = 64  # characters of a prompt in one cache block


class FakeEngine:
    """Runs `slots` requests at once: the first token after `prefill` seconds, then one every `step` seconds."""

    def __init__(self, slots: int, prefill: float, step: float) -> None:
        self._slots = asyncio.Semaphore(slots)
        self._prefill = prefill
        self._step = step
        self._running = self._waiting = self._queries = self._hits = 0
        self._ended = self._prompt = self._generated = 0
        self._known: dict[str, None] = {}

    def app(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/v1/models", self._models),
                web.get("/metrics", self._metrics),
                web.post("/v1/chat/completions", self._chat),
            ]
        )
        return app

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "toy"}]})

    async def _metrics(self, request: web.Request) -> web.Response:
        lines = {
            "vllm:num_requests_running": self._running,
            "vllm:num_requests_waiting": self._waiting,
            "vllm:request_success_total": self._ended,
            "vllm:prompt_tokens_total": self._prompt,
            "vllm:generation_tokens_total": self._generated,
            "vllm:prefix_cache_queries_total": self._queries,
            "vllm:prefix_cache_hits_total": self._hits,
        }
        return web.Response(text="".join(f'{name}{{engine="0"}} {value}.0\n' for name, value in lines.items()))

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self._count_prefix(json.dumps(body["messages"]))
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        self._running += 1
        try:
            return await self._answer(request, body)
        finally:
            self._running -= 1
            self._slots.release()

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        """One token a frame. The prompt has as many tokens as words."""
        tokens = int(body.get("max_tokens") or 16)
        prompt = len(json.dumps(body["messages"]).split())
        answer = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await asyncio.sleep(self._prefill)
        self._prompt += prompt
        await answer.prepare(request)
        plain = {"id": "toy", "object": "chat.completion.chunk", "model": MODEL}
        for n in range(tokens):
            if n:
                await asyncio.sleep(self._step)
            self._generated += 1
            end = "length" if n == tokens - 1 else None
            choice = {"index": 0, "delta": {"role": "assistant", "content": f"{n} "}, "finish_reason": end}
            await answer.write(b"data: %b\n\n" % json.dumps(plain | {"choices": [choice]}).encode())
        if (body.get("stream_options") or {}).get("include_usage"):
            usage = {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}
            await answer.write(b"data: %b\n\n" % json.dumps(plain | {"choices": [], "usage": usage}).encode())
        await answer.write(b"data: [DONE]\n\n")
        self._ended += 1
        return answer

    def _count_prefix(self, prompt: str) -> None:
        """Count the leading blocks of the prompt that are cached, and cache all of them."""
        hit = True
        for end in range(BLOCK, len(prompt), BLOCK):
            self._queries += BLOCK
            hit = hit and prompt[:end] in self._known
            self._hits += BLOCK * hit
            self._known[prompt[:end]] = None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.vllm.fake_engine", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--slots", type=int, default=8, help="concurrent requests")
    parser.add_argument("--prefill", type=float, default=0.05, help="seconds to the first token")
    parser.add_argument("--step", type=float, default=0.02, help="seconds between two tokens")
    args = parser.parse_args()

    async def app() -> web.Application:
        return FakeEngine(args.slots, args.prefill, args.step).app()

    web.run_app(app(), host="127.0.0.1", port=args.port, handler_cancellation=True, print=None, access_log=None)


if __name__ == "__main__":
    main()

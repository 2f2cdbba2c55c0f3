"""Servers with a limit by construction, to try `find` on. `python -m ops.bench.find_trial.servers KIND` prints its
URL and serves until it is killed."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

MODEL: Final = "m"
TOKENS: Final = 2
Wait = Callable[[], Awaitable[bool]]
"""Returns when the response may begin; false refuses the request with 429."""


def places(args: argparse.Namespace) -> Wait:
    """So many places, each taken for --seconds, first come first served (M/D/c)."""
    free = asyncio.Semaphore(args.count)

    async def wait() -> bool:
        await free.acquire()
        asyncio.get_running_loop().call_later(args.seconds, free.release)
        return True

    return wait


def sharing(args: argparse.Namespace) -> Wait:
    """All requests in it are served together, --count times as fast as one alone, which takes --seconds (processor
    sharing). The response begins when all of it has been served."""
    served = args.seconds
    inside: dict[asyncio.Future[None], float] = {}  # seconds of service that are left
    loop = asyncio.get_running_loop()
    timer: list[asyncio.TimerHandle] = []
    last = loop.time()

    def advance() -> None:
        nonlocal last
        now = loop.time()
        speed = min(1.0, args.count / len(inside)) if inside else 1.0
        for future in inside:
            inside[future] -= (now - last) * speed
        last = now
        for future in [future for future, left in inside.items() if left <= 1e-6]:
            del inside[future]
            if not future.done():
                future.set_result(None)
        while timer:
            timer.pop().cancel()
        if inside:
            speed = min(1.0, args.count / len(inside))
            timer.append(loop.call_later(min(inside.values()) / speed, advance))

    async def wait() -> bool:
        advance()
        future = loop.create_future()
        inside[future] = served
        advance()
        await future
        return True

    return wait


def cliff(args: argparse.Namespace) -> Wait:
    """Each request is in it for --seconds; one that comes while --count are in it waits a second longer."""
    inside = 0

    async def wait() -> bool:
        nonlocal inside
        late = inside >= args.count
        inside += 1
        asyncio.get_running_loop().call_later(args.seconds, leave)
        if late:
            await asyncio.sleep(1.0)
        return True

    def leave() -> None:
        nonlocal inside
        inside -= 1

    return wait


def bimodal(args: argparse.Namespace) -> Wait:
    """As `places`; --share of the requests waits a second longer, whatever the load."""
    inner, rng = places(args), random.Random(7)  # noqa: S311 - not for secrets

    async def wait() -> bool:
        late = rng.random() < args.share
        await inner()
        if late:
            await asyncio.sleep(1.0)
        return True

    return wait


def cold(args: argparse.Namespace) -> Wait:
    """As `places`; in the first ten seconds each response takes a second longer."""
    inner, loop = places(args), asyncio.get_running_loop()
    warm_at = math.inf

    async def wait() -> bool:
        nonlocal warm_at
        warm_at = min(warm_at, loop.time() + 10)
        if loop.time() < warm_at:
            await asyncio.sleep(1.0)
        return await inner()

    return wait


def refusing(args: argparse.Namespace) -> Wait:
    """A token bucket of --count tokens, one more each --seconds; without a token a request gets 429."""
    loop = asyncio.get_running_loop()
    tokens, last = float(args.count), loop.time()

    async def wait() -> bool:
        nonlocal tokens, last
        now = loop.time()
        tokens, last = min(float(args.count), tokens + (now - last) / args.seconds), now
        if tokens < 1:
            return False
        tokens -= 1
        return True

    return wait


KINDS: Final = {kind.__name__: kind for kind in (places, sharing, cliff, bimodal, cold, refusing)}


def event(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    body = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": [choice]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def app(wait: Wait) -> web.Application:
    async def models(request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    async def chat(request: web.Request) -> web.StreamResponse:
        await request.read()
        if not await wait():
            return web.json_response({"error": {"message": "too many requests"}}, status=429)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(event({"role": "assistant", "content": "a"}))
        await response.write(b"".join(event({"content": "a"}) for _ in range(TOKENS - 1)))
        await response.write(event({}, "stop") + b"data: [DONE]\n\n")
        return response

    serving = web.Application()
    serving.add_routes([web.get("/v1/models", models), web.post("/v1/chat/completions", chat)])
    return serving


async def serve(args: argparse.Namespace) -> None:
    runner = web.AppRunner(app(KINDS[args.kind](args)), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=0.1)
    parser.add_argument("--share", type=float, default=0.03)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()

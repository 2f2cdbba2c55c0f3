"""The drill's engine as a process: vLLM's streaming API, one token each `--pace` seconds. `python -m
ops.drill.fleet.engine`. What it generates is counted in a file that outlives it, as it is killed by the drill."""

from __future__ import annotations

import argparse
import asyncio
import json
import mmap
import os
import struct
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

from aiohttp import web

from ops.drill.fleet.texts import tokens_of

MODEL: Final = "m1"
_COUNT: Final = struct.Struct("=Q")


class Note(NamedTuple):
    at: float  # monotonic seconds
    what: str  # begin, end (complete) or cancel
    prompt: str


class Ledger:
    """What an engine has generated: tokens in a mapped file, and a line for each generation's begin and end. Both
    are there after a SIGKILL. Times are of the monotonic clock, which is one for all processes of a machine."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.lines = folder / f"{name}.generations"
        self._number = os.open(folder / f"{name}.tokens", os.O_RDWR | os.O_CREAT)
        os.truncate(self._number, _COUNT.size)
        self._tokens = mmap.mmap(self._number, _COUNT.size)
        self._log = os.open(self.lines, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    @property
    def tokens(self) -> int:
        return int(_COUNT.unpack_from(self._tokens)[0])

    def token(self, count: int = 1) -> None:
        _COUNT.pack_into(self._tokens, 0, self.tokens + count)

    def note(self, what: str, prompt: str) -> None:
        os.write(self._log, f"{time.monotonic():.3f} {what} {prompt}\n".encode())

    def notes(self) -> list[Note]:
        """All that was noted of prompts of the drill."""
        whole = self.lines.read_text().rpartition("\n")[0]  # an engine may be within the last line
        words = (line.split(" ", 2) for line in whole.splitlines())
        return [Note(float(at), what, prompt) for at, what, prompt in words if prompt.startswith("drill ")]

    def close(self) -> None:
        self._tokens.close()
        os.close(self._number)
        os.close(self._log)


class Engine:
    """Two engines of one drill cut the same tokens into other frames: `stride` tokens each."""

    def __init__(self, name: str, ledger: Ledger, pace: float, stride: int) -> None:
        self._name, self._ledger, self._pace, self._stride = name, ledger, pace, stride
        self._running = 0

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/version", self._version)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        return app

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "0.32.0"})

    async def _models(self, request: web.Request) -> web.Response:
        model = {"id": MODEL, "object": "model", "owned_by": "vllm", "root": MODEL, "max_model_len": 100_000}
        return web.json_response({"object": "list", "data": [model]})

    async def _metrics(self, request: web.Request) -> web.Response:
        counts = (
            f"vllm:num_requests_running {self._running}",
            "vllm:num_requests_waiting 0",
            f"vllm:generation_tokens_total {self._ledger.tokens}",
        )
        return web.Response(text="\n".join(counts) + "\n")

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        prompt = str(asked["messages"][-1]["content"])
        self._running += 1
        self._ledger.note("begin", prompt)
        ended = "cancel"
        try:
            if not asked.get("stream"):
                response: web.StreamResponse = web.json_response(await self._body(request, prompt))
            else:
                response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
                usage = (asked.get("stream_options") or {}).get("include_usage")
                await self._stream(request, response, prompt, usage=bool(usage))
            ended = "end"
            return response
        finally:
            self._running -= 1
            self._ledger.note(ended, prompt)

    async def _body(self, request: web.Request, prompt: str) -> dict[str, Any]:
        tokens = tokens_of(prompt)
        for _ in tokens:
            await self._token(prompt)
        message = {"role": "assistant", "content": "".join(tokens)}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        return self._head(request, "chat.completion", [choice]) | {"usage": _usage(len(tokens))}

    async def _stream(
        self, request: web.Request, response: web.StreamResponse, prompt: str, *, usage: bool
    ) -> None:
        def chunk(choices: list[Any]) -> dict[str, Any]:
            return head | {"choices": choices}

        def delta(words: dict[str, str], finish: str | None = None) -> dict[str, Any]:
            return chunk([{"index": 0, "delta": words, "logprobs": None, "finish_reason": finish}])

        head = self._head(request, "chat.completion.chunk", [])
        await response.prepare(request)
        await response.write(_frame(delta({"role": "assistant", "content": ""})))
        tokens = tokens_of(prompt)
        for at in range(0, len(tokens), self._stride):
            part = tokens[at : at + self._stride]
            await self._token(prompt, len(part))
            await response.write(_frame(delta({"content": "".join(part)})))
        await response.write(_frame(delta({}, "stop")))
        if usage:
            await response.write(_frame(chunk([]) | {"usage": _usage(len(tokens))}))
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()

    async def _token(self, prompt: str, count: int = 1) -> None:
        await asyncio.sleep(self._pace * count)
        if prompt.startswith("drill "):
            self._ledger.token(count)

    def _head(self, request: web.Request, kind: str, choices: list[Any]) -> dict[str, Any]:
        """Its fingerprint names this engine, and the gateway by both addresses of its connection."""
        assert request.transport is not None
        ends = (request.transport.get_extra_info(name)[0] for name in ("peername", "sockname"))
        head = {"id": f"chatcmpl-{os.urandom(8).hex()}", "object": kind, "created": int(time.time())}
        return head | {
            "model": MODEL,
            "choices": choices,
            "system_fingerprint": " ".join((self._name, *ends)),
        }


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": tokens + 3}


def _frame(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


async def serve(engine: Engine, host: str, port: int) -> None:
    """Until it is killed."""
    runner = web.AppRunner(engine.app(), access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, host, port, reuse_address=True).start()
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.drill.fleet.engine", description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="of the file that counts")
    parser.add_argument("--pace", type=float, default=0.05, metavar="SECONDS")
    parser.add_argument("--stride", type=int, default=1, metavar="TOKENS", help="tokens of one frame")
    options = parser.parse_args()
    ledger = Ledger(options.folder, options.name)
    asyncio.run(serve(Engine(options.name, ledger, options.pace, options.stride), options.host, options.port))


if __name__ == "__main__":
    main()

"""The chaos engine: vLLM's wire format, its text a function of the prompt, truthful or lying on command."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import socket
import struct
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import uvloop

from ops.chaos import lies
from ops.chaos.lies import Answer, Step, plain
from ops.chaos.wire import (
    DIMENSIONS,
    FLOODS,
    MODEL,
    PATHS,
    Endpoint,
    Shape,
    Spec,
    dumps,
    embeddings,
    read_spec,
    tags_of,
    tokenized,
    vector,
    words,
)

CONTROL: Final = "/chaos"
FAIL: Final = b"always-fail"
"""Every engine answers a prompt with this with 500."""
MOST_CHOICES: Final = 16_384  # vLLM's VLLM_MAX_N_SEQUENCES
INFINITE: Final = b"always-infinite"
"""Every engine answers a prompt with this with 200 and -Infinity."""
RANK: Final = b"x-data-parallel-rank: 99"
GATHER_SECONDS: Final = 10.0
LONG_NUMBER: Final = "-0.034513987600803375"
_SIZES: Final = re.compile(rb"(?<=\r\n)([0-9a-f]+)\r\ndata: \{")
_MODELS: Final = dumps({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "vllm"}]})


@dataclass(slots=True)
class Options:
    port: int
    number: int = 0
    log: int | None = None  # descriptor for the log of generations
    dimensions: int = DIMENSIONS  # more than the default: numbers of 21 characters
    hold: float = 0.0  # seconds until embeddings are answered
    frame_bytes: int = 0  # size of the text of each frame of a flood; 0: no floods
    frames: int = 0  # frames of a flood
    gather: int = 0  # floods that start together
    body_bytes: int = 0  # size of the text of a large body; 0: none


class Engine:
    """One engine."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.lies: deque[str] = deque(maxlen=64)
        self.slow_until = 0.0
        self.slow_gap = 0.0
        self.ended = False
        self.served = 0
        self._pick = random.Random(options.number)  # noqa: S311 - lies, not secrets
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._gathered = 0
        self._all_here = asyncio.Event()
        self._flood = b""  # a prepared stream of large frames, except its id

    async def serve(self) -> None:
        """Serve until the process is terminated."""
        self._server = await asyncio.start_server(
            self._connection, "127.0.0.1", self.options.port, backlog=1024, limit=1 << 20
        )
        await asyncio.get_running_loop().create_future()

    # -- a connection -----------------------------------------------------------------------------

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            with suppress(OSError, EOFError, ValueError, asyncio.LimitOverrunError):
                while await self._exchange(reader, writer):
                    pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        line, *fields = head.split(b"\r\n")
        method, target, _ = line.decode("latin-1").split(" ")
        length = 0
        for field in fields:
            name, _, value = field.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
            elif name.lower() == b"transfer-encoding":
                return False
        body = await reader.readexactly(length) if length else b""
        if self.ended:  # its core is dead: connections stay open, nothing is answered
            self._log(body, "")
            await reader.read()
            return False
        path = target.partition("?")[0]
        if path in PATHS and method == "POST":
            return await self._play(writer, self._steps(PATHS[path], head, body))
        writer.write(self._plain(path, body))
        await writer.drain()
        return True

    async def _play(self, writer: asyncio.StreamWriter, steps: list[Step]) -> bool:
        for step in steps:
            if self.ended:
                await asyncio.get_running_loop().create_future()  # until the process is killed
            if isinstance(step, bytes):
                writer.write(step)
                if len(step) > 1024:
                    await writer.drain()
            elif isinstance(step, float | int):
                pause = step if time.monotonic() > self.slow_until else step + self.slow_gap
                if pause:
                    await writer.drain()
                    await asyncio.sleep(pause)
            elif step == "gather":
                await self._gather()
            else:
                if step == "reset":
                    _reset(writer)
                return False
            if writer.is_closing():
                return False
        await writer.drain()
        return True

    async def _gather(self) -> None:
        """Wait until `gather` requests wait here, for a bounded time."""
        self._gathered += 1
        if self._gathered >= self.options.gather:
            self._all_here.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(GATHER_SECONDS):
                await self._all_here.wait()

    def _plain(self, path: str, body: bytes) -> bytes:
        if path == "/v1/models":
            return plain(_MODELS)
        if path == "/metrics":
            busy = len(self._writers)
            text = f"vllm:num_requests_running {busy}\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0.2\n"
            return plain(text.encode(), kind="text/plain")
        if path == "/health":
            return plain(b"")
        if path == CONTROL:
            self.obey(json.loads(body))
            return plain(b"{}")
        return plain(b'{"detail":"Not Found"}', "404 Not Found")

    def obey(self, order: dict[str, Any]) -> None:
        """Apply an order of the chaos run."""
        self.lies.extend(order.get("lies", ()))
        if "slow_gap" in order:
            self.slow_gap = float(order["slow_gap"])
            self.slow_until = time.monotonic() + float(order["slow_seconds"])
        if order.get("reset"):
            for writer in list(self._writers):
                _reset(writer)
        if order.get("end") and self._server is not None:
            self.ended = True
            self._server.close()
        if order.get("well"):
            self.lies.clear()
            self.slow_until = 0.0

    # -- an answer --------------------------------------------------------------------------------

    def _steps(self, endpoint: Endpoint, head: bytes, body: bytes) -> list[Step]:
        asked = json.loads(body)
        spec = read_spec(body)
        if FAIL in body:
            return [plain(b'{"error":{"message":"chaos","type":"InternalServerError","code":500}}', "500 Oops")]
        if RANK in head.lower():
            text = b'{"error":{"message":"no such rank","type":"BadRequestError","param":null,"code":400}}'
            return [plain(text, "400 Bad Request")]
        if (asked.get("n") or 1) > MOST_CHOICES:
            text = b'{"error":{"message":"n is too large","type":"BadRequestError","param":"n","code":400}}'
            return [plain(text, "400 Bad Request")]
        self.served += 1
        if endpoint == "tokenize":
            self._log(body, "")
            return [plain(dumps(tokenized(spec.tag, spec.tokens) if spec else {"count": 0, "tokens": []}))]
        name = f"{self.options.number}.{os.getpid()}.{self.served}"
        answer = self._answer(endpoint, asked, spec or Spec(0, 8, 0.0), _id(head) or name, name)
        if self.options.frame_bytes and answer.stream and spec is not None and spec.tag < FLOODS:
            return ["gather", self._flooded(endpoint, _id(head) or name)]
        if INFINITE in body:
            return lies.LIES["infinity"](answer, self._pick)
        lie = self._lie(answer, endpoint) if spec is not None else ""
        self._log(body, lie)
        return lies.LIES[lie](answer, self._pick) if lie else lies.honest(answer)

    def _log(self, body: bytes, lie: str) -> None:
        """Log the tags of the prompts, and the lie in the answer."""
        if self.options.log is not None:
            now = time.monotonic()
            lines = [f"{now:.4f} {self.options.number} {tag:x} {lie}\n" for tag in tags_of(body)]
            os.write(self.options.log, "".join(lines).encode())

    def _lie(self, answer: Answer, endpoint: Endpoint) -> str:
        """Take the first ordered lie that fits this answer."""
        for name in self.lies:
            if lies.fits(name, stream=answer.stream, vectors=endpoint == "embeddings"):
                self.lies.remove(name)
                return name
        return ""

    def _answer(self, endpoint: Endpoint, asked: dict[str, Any], spec: Spec, id_: str, name: str) -> Answer:
        if endpoint == "embeddings":
            texts = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
            found = embeddings(id_, [self._vector(text) for text in texts], spec.tag)
            return Answer(False, [], found, gap=self.options.hold or spec.gap)
        choices = int(asked.get("n") or 1)
        sampled = asked.get("temperature") != 0
        tokens = spec.tokens
        columns = [words(spec.tag, tokens, at, f"{name}.{at}" if sampled else "") for at in range(choices)]
        shape = Shape(endpoint, id_, spec.tag)
        if asked.get("stream"):
            wanted = asked.get("stream_options") or {}
            frames = shape.frames(
                columns,
                usage_asked=bool(wanted.get("include_usage")),
                continuous=bool(wanted.get("continuous_usage_stats")),
            )
            return Answer(True, frames, {}, gap=spec.gap, per_pause=choices)
        if self.options.body_bytes and spec.tag < FLOODS:
            columns = [["x" * self.options.body_bytes] for _ in columns]
        return Answer(False, [], shape.whole(columns), gap=spec.gap * tokens, per_pause=choices)

    def _flooded(self, endpoint: Endpoint, id_: str) -> bytes:
        """A stream of large frames in one write."""
        if not self._flood:
            word = "flood " * (self.options.frame_bytes // 6)
            shape = Shape(endpoint, "@", 0)
            frames = shape.frames([[word] * self.options.frames], usage_asked=False, continuous=False)
            self._flood = b"".join(
                step for step in lies.honest(Answer(True, frames, {})) if isinstance(step, bytes)
            )
        size = len(id_) - 1
        found = self._flood.replace(b"-@", b"-" + id_.encode())
        return _SIZES.sub(lambda size_: b"%x\r\ndata: {" % (int(size_[1], 16) + size), found)

    def _vector(self, text: str) -> Any:
        if self.options.dimensions == DIMENSIONS:
            return vector(text)
        return [float(LONG_NUMBER)] * self.options.dimensions


def _id(head: bytes) -> str:
    """The request's id, from which vLLM makes the id of the answer."""
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"x-request-id":
            return value.strip().decode("latin-1")
    return ""


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.chaos.engine", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--number", type=int, default=0)
    parser.add_argument("--log", default="", help="log file of the generations: time, tag, lie")
    parser.add_argument("--dimensions", type=int, default=DIMENSIONS)
    parser.add_argument("--hold", type=float, default=0.0, help="seconds until embeddings are answered")
    parser.add_argument("--frame-bytes", type=int, default=0)
    parser.add_argument("--frames", type=int, default=0)
    parser.add_argument("--gather", type=int, default=0, help="floods that start together")
    parser.add_argument("--body-bytes", type=int, default=0)
    given = vars(parser.parse_args())
    log = given.pop("log")
    opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if log else None
    uvloop.run(Engine(Options(**given, log=opened)).serve())


if __name__ == "__main__":
    main()

"""Checks that a peer works: one JSON and one streamed answer through it, compared byte by byte (or as text)."""

from __future__ import annotations

import http.client
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ops.bench import subjects
from ops.bench.client import same_bytes, same_text
from ops.bench.peers.base import Peer
from ops.bench.wire import Spec, expected

PLAIN: Final = Spec(0xA, tokens=1, stream=False)
STREAMED: Final = Spec(0xB, tokens=50, itl_us=10_000)  # half a second: long enough to see a peer that buffers
ANSWER_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    pieces: tuple[bytes, ...]  # one per read


@dataclass(frozen=True, slots=True)
class Checked:
    name: str
    version: str
    start_seconds: float
    plain: str  # "same bytes", "same text", or the error
    streamed: str

    @property
    def right(self) -> bool:
        return all(verdict.startswith("same ") for verdict in (self.plain, self.streamed))


def verdict(spec: Spec, answer: Answer, *, reserialises: bool) -> str:
    """The verdict on one answer."""
    body, wanted = b"".join(answer.pieces), expected(spec)
    if answer.status != 200:
        return f"wrong: HTTP {answer.status} {body[:200]!r}"
    if spec.stream and b"[DONE]" in answer.pieces[0]:
        return "wrong: the stream was buffered until its end"
    if same_bytes(body, wanted):
        return "same bytes"
    if reserialises and same_text(body, wanted):
        return "same text"
    return f"wrong: {len(body)} bytes instead of {len(wanted)}: {body[:200]!r}"


def ask(port: int, spec: Spec, headers: dict[str, str]) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    try:
        connection.request(
            "POST", "/v1/chat/completions", spec.body(), {"Content-Type": "application/json", **headers}
        )
        response = connection.getresponse()
        pieces = tuple(iter(lambda: response.read1(65536), b""))
        return Answer(response.status, pieces or (b"",))
    finally:
        connection.close()


def check(peer: Peer, home: Path, asked: Callable[[int, Spec, dict[str, str]], Answer] = ask) -> Checked:
    """Start an engine and the peer in front of it, send two requests, stop both. Raises InstallError, or
    RuntimeError if one of them does not start."""
    cpus = os.sched_getaffinity(0)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engine_port, port = subjects.free_port(), subjects.free_port()
        engine = f"http://127.0.0.1:{engine_port}"
        stack.enter_context(
            subjects.started(
                subjects.engine_command(engine_port), engine_port, cpus, log=work / "engine.log",
                ready=lambda: subjects.answers(engine_port, "/health", {}),
            )
        )  # fmt: skip
        headers = peer.headers(engine)
        command = peer.command(home, work, port, engine)
        start = stack.enter_context(
            subjects.started(
                command, port, cpus, log=work / "peer.log",
                ready=lambda: subjects.answers(port, peer.ready, headers),
            )
        )  # fmt: skip
        verdicts = [
            verdict(spec, asked(port, spec, headers), reserialises=peer.reserialises) for spec in (PLAIN, STREAMED)
        ]
    return Checked(peer.name, peer.version(home), start.seconds, *verdicts)

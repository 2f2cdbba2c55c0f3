"""Owns the table of HTTP/1.1 cases in `corpus/http11.toml` and how one is played against a server.
Must not know the proxy: bytes out, what came back as one line.
Called by tests/system/test_http11.py."""

from __future__ import annotations

import asyncio
import contextlib
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import httptools

from tests.kit.patience import patience

TABLE = Path(__file__).parents[1] / "corpus" / "http11.toml"
QUIET = 1.0  # seconds without a byte after which nothing more is expected
OPEN = 5.0  # the same by the clock: after 10 s the gateway closes a connection whose body it discards
_REPEAT = re.compile(r"<<(.*?)\*(\d+)>>", re.DOTALL)


@dataclass(frozen=True)
class Case:
    """What is sent, in steps on one connection; what the RFC or the suite holds right; what we answer."""

    id: str
    source: str
    right: str
    send: list[str]
    answer: str
    rfc: str = ""
    why: str = ""  # where our answer is not the one held right

    def steps(self, host: str) -> list[bytes]:
        """`HOST` is the server's; `<<text*N>>` is that text N times; characters are bytes."""
        texts = (_REPEAT.sub(lambda m: m[1] * int(m[2]), text.replace("HOST", host)) for text in self.send)
        return [text.encode("latin-1") for text in texts]


def cases() -> list[Case]:
    return [Case(**row) for row in tomllib.loads(TABLE.read_text())["case"]]


@dataclass
class Answers:
    """Answers read strictly, by llhttp."""

    statuses: list[int] = field(default_factory=list)
    whole: int = 0

    def __post_init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)

    def on_headers_complete(self) -> None:
        self.statuses.append(self.parser.get_status_code())

    def on_message_complete(self) -> None:
        self.whole += 1


async def play(case: Case, host: str, port: int) -> str:
    """The statuses in order, then how it ended: `open`, `closed` or, without an answer, `waits`."""
    answers = Answers()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    ended = False
    try:
        steps = case.steps(host)
        for number, step in enumerate(steps, 1):
            whole = answers.whole
            with contextlib.suppress(ConnectionError):
                writer.write(step)
                await writer.drain()
            while not ended and (number == len(steps) or answers.whole == whole):
                try:
                    async with asyncio.timeout(OPEN), patience(QUIET):
                        data = await reader.read(65536)
                except TimeoutError:
                    break
                except ConnectionError:
                    data = b""
                ended = not data
                if data:
                    with contextlib.suppress(httptools.HttpParserUpgrade):
                        answers.parser.feed_data(data)
            if ended:
                break
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    end = "closed" if ended else "open" if answers.statuses else "waits"
    return " ".join([*map(str, answers.statuses), end])

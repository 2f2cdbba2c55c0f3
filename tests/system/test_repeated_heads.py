"""Heads that a client repeats, byte for byte: what one of its headers asks for is done each time."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from proxy.server.handlers.relay import ACTED_ON
from proxy.server.listener.known_heads import PLAIN
from tests.kit.engine import Engine
from tests.kit.engine_scripts import timed_script
from tests.kit.redis_server import redis_server
from tests.kit.running import HELLO, gateway

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ASKING = {
    "x-request-id": ["mine", "no id at all, as it has spaces"],
    "x-request-timeout": ["never", "5"],
    "x-gateway-share": ["off", "all", "some"],
    "x-gateway-priority": ["high", "low", "first"],
    "x-gateway-resume": ["1"],
    "cache-control": ["no-store", "no-cache"],
    "content-encoding": ["gzip", "identity"],
    "content-type": ["text/plain", "application/json; charset=utf-8", "application/json"],
    "origin": ["https://example.org"],
    "sec-fetch-site": ["cross-site", "same-origin"],
    "traceparent": [TRACE, "00-0"],
    "x-session-id": ["s1"],
    "x-vllm-priority": ["3"],
    "connection": ["keep-alive", "x-session-id"],
    "x-unheard-of": ["1"],
}
OWN = re.compile(rb"^(date|x-request-id|age): .*\r\n", re.MULTILINE)
SAID = re.compile(rb"\r\nx-request-id: ([^\r]*)")


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes, body: bytes) -> bytes:
    writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    answer = await reader.readuntil(b"\r\n\r\n")
    size = re.search(rb"content-length: (\d+)", answer)
    assert size is not None
    return answer + await reader.readexactly(int(size[1]))


def head_of(url: str, lines: dict[str, str]) -> bytes:
    asked = {"Host": url.removeprefix("http://"), "Content-Type": "application/json"}
    asked = {name: value for name, value in asked.items() if name.lower() not in lines} | lines
    return ("POST /v1/chat/completions HTTP/1.1\r\n" + "".join(f"{n}: {v}\r\n" for n, v in asked.items())).encode()


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in ASKING.items() for value in values])
async def test_the_fifth_answer_is_as_the_first(name: str, value: str) -> None:
    async with Engine(timed_script(ttft=0.0, itl=0.0, tokens=2)) as engine, gateway(engine) as app:
        reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
        answers, ids, sent = [], [], []
        for number in range(5):
            before = len(engine.requests)
            body = json.dumps(HELLO | {"messages": [{"role": "user", "content": f"hello {number}"}]}).encode()
            answers.append(await ask(reader, writer, head_of(app.url, {name: value}), body))
            (said,) = SAID.findall(answers[-1])
            ids.append(said)
            sent.append([each.headers.get(name) for each in engine.requests[before:]])
            if b"\r\nconnection: close" in answers[-1]:
                reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
        writer.close()
    statuses = {answer[:15] for answer in answers}
    assert len(statuses) == 1
    heads = {OWN.sub(b"", answer.partition(b"\r\n\r\n")[0]) for answer in answers}
    assert len({re.sub(rb"content-length: \d+", b"", head) for head in heads}) == 1
    assert ids == [b"mine"] * 5 if value == "mine" else len({*ids}) == 5
    if name != "x-request-id":
        assert sent == [sent[0]] * 5


def test_no_header_that_asks_for_something_is_a_plain_one() -> None:
    assert not PLAIN & {*ACTED_ON, *ASKING} - {"connection", "content-type"}


@pytest.mark.parametrize("shown", ["authorization", "x-api-key", "api-key"])
async def test_repeated_heads_share_where_they_show_the_same_key_and_nowhere_else(shown: str) -> None:
    verdicts: dict[str, list[bytes]] = {"one": [], "two": [], "": []}
    async with (
        Engine(timed_script(ttft=0.0, itl=0.0, tokens=2)) as engine,
        redis_server() as redis,
        gateway(engine, redis=f"unix://{redis}") as app,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
        for _ in range(4):
            for key, seen in verdicts.items():
                head = head_of(app.url, {shown: f"Bearer {key}"} if key else {})
                answer = await ask(reader, writer, head, json.dumps(HELLO).encode())
                seen += re.findall(rb"x-gateway-cache: ([a-z]+)", answer)
        writer.close()
        assert engine.generations == 3
    for seen in verdicts.values():
        assert seen[0] == b"miss"
        assert {*seen[1:]} <= {b"hit", b"attached"}
        assert len(seen) == 4

"""Keep-alives through nginx and HAProxy that cut a connection after seconds of silence, with the clients that
people use: each gets its whole answer though the engine is silent for longer."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import httpx_sse
import pytest

from proxy.app import App
from proxy.server.respond import SocketPipe
from tests import golden
from tests.kit.client import post_json
from tests.kit.engine import Engine, Turn
from tests.kit.late import late
from tests.kit.ports import free_port
from tests.kit.running import HELLO_STREAM, gateway, until
from tests.ops.test_balancer import TEMPORARY, program, started

if TYPE_CHECKING:
    import anthropic
    import openai
else:
    anthropic = late("anthropic")
    openai = late("openai")

CHAT = "/v1/chat/completions"
MESSAGES, RESPONSES = golden.load("messages-stream"), golden.load("responses-stream")
NGINX = """
events {{}}
http {{
    access_log off; {temporary}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{gateway};
            proxy_http_version 1.1;
            proxy_read_timeout {timeout}s;
        }}
    }}
}}
"""
HAPROXY = """
defaults
    mode http
    timeout connect 5s
    timeout http-request 60s
    timeout client {timeout}s
    timeout server {timeout}s
frontend all
    bind 127.0.0.1:{port}
    default_backend gateway
backend gateway
    server one 127.0.0.1:{gateway}
"""
FILES = {"nginx.conf": NGINX, "haproxy.cfg": HAPROXY}
EVERY = 0.25  # seconds between two keep-alives
CUT = 8  # seconds of silence that a balancer waits for: a busy machine holds a keep-alive up for some
ENOUGH = 34  # keep-alives: the silence is longer than CUT
SHORTEST = 19  # bytes of one in its chunk, at least


@pytest.fixture(autouse=True, scope="module")
def clients() -> None:
    """They are imported before a loop runs, which the import would hold up for seconds."""
    _ = openai.AsyncOpenAI, anthropic.AsyncAnthropic


async def by_openai(url: str) -> str:
    async with openai.AsyncOpenAI(api_key="k", base_url=f"{url}/v1", max_retries=0) as client:
        stream: Any = await client.chat.completions.create(**HELLO_STREAM)  # type: ignore[call-overload]
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


async def by_openai_responses(url: str) -> str:
    async with openai.AsyncOpenAI(api_key="k", base_url=f"{url}/v1", max_retries=0) as client:
        events = await client.responses.create(model="m1", input="hello", stream=True)
        return "".join([event.delta async for event in events if event.type == "response.output_text.delta"])


async def by_anthropic(url: str) -> str:
    async with (
        anthropic.AsyncAnthropic(api_key="k", base_url=url, max_retries=0) as client,
        client.messages.stream(
            model="m1", max_tokens=8, messages=[{"role": "user", "content": "hello"}]
        ) as stream,
    ):
        return "".join([text async for text in stream.text_stream])


async def by_httpx_sse(url: str) -> str:
    async with (
        httpx.AsyncClient(trust_env=False, timeout=None) as client,
        httpx_sse.aconnect_sse(client, "POST", url + CHAT, json=HELLO_STREAM) as source,
    ):
        return _text([event.data async for event in source.aiter_sse()])


async def by_aiohttp_sse_client(url: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from aiohttp_sse_client import client
    events = []
    async with client.EventSource(url + CHAT, option={"method": "POST"}, json=HELLO_STREAM) as source:
        async for event in source:
            events.append(event.data)
            if event.data == "[DONE]":
                break
    return _text(events)


def _text(events: list[str]) -> str:
    assert events[-1] == "[DONE]"
    return "one" if any('"content":"one"' in event for event in events) else ""


CLIENTS: dict[Callable[[str], Awaitable[str]], str] = {
    by_openai: "one",
    by_httpx_sse: "one",
    by_aiohttp_sse_client: "one",
    by_openai_responses: "The colour I am referring to is a",
    by_anthropic: "1. Red: The most obvious colour",
}


def pipes(app: App) -> list[SocketPipe]:
    readers = [reader for flight in app.group.live for reader in flight.subscribers]
    return [reader.pipe for reader in readers if isinstance(reader.pipe, SocketPipe)]


async def silence(app: App, tasks: Sequence[asyncio.Future[str]]) -> None:
    """Wait until each client has had so many keep-alives."""
    await until(lambda: len(pipes(app)) == len(tasks) or any(task.done() for task in tasks))
    sent = {pipe: pipe.sent for pipe in pipes(app)}
    assert len(sent) == len(tasks)
    enough = ENOUGH * SHORTEST
    await until(lambda: all(pipe.sent - at >= enough for pipe, at in sent.items()) or any(t.done() for t in tasks))


@pytest.mark.parametrize("file", FILES)
async def test_every_client_gets_its_answer_after_a_silence_that_the_balancer_cuts(
    engine: Engine, tmp_path: Path, file: str
) -> None:
    program(file)
    speak = asyncio.Event()

    async def script(turn: Turn) -> None:
        if turn.path == "/v1/responses":  # silent after its first events too
            await turn.start()
            await turn.frame(*RESPONSES.frames()[:2])
        await speak.wait()
        if turn.path == "/v1/responses":
            await turn.end(*RESPONSES.frames()[2:])
        elif turn.path == "/v1/messages":
            await turn.start()
            await turn.end(*MESSAGES.frames())
        else:
            await turn.finish("one")

    engine.auto(script)
    port = free_port()
    temporary = "".join(f"{name}_temp_path {tmp_path}/{name}; " for name in TEMPORARY)
    async with gateway(engine, keepalive_seconds=EVERY) as app:
        speak.set()  # once without a balancer: a client that builds its models holds the loop up
        assert [await client(app.url) for client in CLIENTS] == list(CLIENTS.values())
        speak.clear()
        text = FILES[file].format(timeout=CUT, port=port, gateway=app.port, temporary=temporary)
        async with started(file, text, tmp_path, port) as url:
            tasks = [asyncio.ensure_future(client(url)) for client in CLIENTS]
            await silence(app, tasks)
            speak.set()
            assert await asyncio.gather(*tasks) == list(CLIENTS.values())
    speak.clear()
    async with gateway(engine) as app:  # without keep-alives a silence is cut
        text = FILES[file].format(timeout=1, port=port, gateway=app.port, temporary=temporary)
        async with started(file, text, tmp_path, port) as url:
            assert (await post_json(url, CHAT, HELLO_STREAM)).status == 504

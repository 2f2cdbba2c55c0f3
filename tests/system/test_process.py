"""The program as its users run it: a process with the embedded engine, real clients, real signals."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import signal
import socket
import sys
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.kit.client import Connection, get, post_json, request_bytes, streaming
from tests.kit.engine import Engine
from tests.kit.late import late
from tests.kit.running import PATIENT, pause

if TYPE_CHECKING:
    import openai
else:
    openai = late("openai")

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "Name three colours."}],
    "temperature": 0,
    "max_tokens": 12,
}

pytestmark = pytest.mark.e2e


class Gateway:
    """A running `python -m proxy`."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process = process
        self.url = url
        self.logged: list[dict[str, Any]] = []


@asynccontextmanager
async def proxy(*flags: str, descriptors: str = "", **env: str) -> AsyncIterator[Gateway]:
    """Start it on a free port, read where it listens off its greeting, and see that SIGTERM ends it well.
    `descriptors`: how many files it may have open; as many as we by default."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(descriptors), int(descriptors)))

    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "proxy", "--port", "0", *flags),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**PATIENT, **os.environ, **env},
        preexec_fn=limited if descriptors else None,
    )
    assert process.stderr is not None
    assert process.stdout is not None
    url = ""
    said = []
    while not url:
        line = (await process.stderr.readline()).decode()
        said.append(line)
        assert line, f"it ended: {''.join(said)}"
        found = re.match(r"gateway at ((?:https?|unix)://\S+)", line)
        url = found[1] if found else ""
    gateway = Gateway(process, url)
    try:
        yield gateway
        if ended(process):
            return
        process.send_signal(signal.SIGTERM)
        out, err = await process.communicate()
        gateway.logged = [json.loads(line) for line in out.splitlines()]
        assert process.returncode == 0, err.decode()
        assert b"Traceback" not in err, err.decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


def ended(process: asyncio.subprocess.Process) -> bool:
    return process.returncode is not None


async def stored(gateway: Gateway) -> None:
    """Until then a landed flight itself answers: no flight waits to be stored any more."""
    while b"\ngateway_flights 0\n" not in (await get(gateway.url, "/metrics")).body:
        await pause()


async def refused(*flags: str, **env: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "proxy", *flags),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **env},
    )
    _, err = await process.communicate()
    return process.returncode, err.decode()


async def test_with_nothing_given_it_streams_from_its_own_engine_and_hits_its_own_redis() -> None:
    async with proxy() as gateway:
        assert (await get(gateway.url, "/ready")).status == 200
        first = await post_json(gateway.url, CHAT, ASK | {"stream": True})
        assert first.head["x-gateway-cache"] == "miss"
        assert first.events()[-1] == b"data: [DONE]\n\n"
        await stored(gateway)
        second = await post_json(gateway.url, CHAT, ASK | {"stream": True})
        whole = await post_json(gateway.url, CHAT, ASK)
        assert (second.head["x-gateway-cache"], whole.head["x-gateway-cache"]) == ("hit", "hit")
        assert second.body == first.body
        assert whole.json()["usage"]["completion_tokens"] == 12
        embedding = await post_json(gateway.url, "/embed", {"model": "smollm2", "input": "hello"})
        assert len(embedding.json()["data"][0]["embedding"]) > 100
        models = (await get(gateway.url, "/v1/models")).json()
        assert [model["id"] for model in models["data"]] == ["smollm2"]
        page = (await get(gateway.url, "/metrics")).body.decode()
        assert 'gateway_requests_total{endpoint="chat",status="200",verdict="hit"} 2' in page
    records = [line for line in gateway.logged if line["msg"] == "request" and line["endpoint"] == "chat"]
    assert [line["verdict"] for line in records] == ["miss", "hit", "hit"]
    assert {line["model_id"] for line in records} == {"smollm2"}
    assert all(line["completion_tokens"] == 12 for line in records)


async def test_the_official_client_works_streaming_and_not() -> None:
    async with (
        proxy("--redis", "off") as gateway,
        openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key="k") as client,
    ):
        stream = await client.chat.completions.create(**ASK, stream=True)
        texts = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
        whole = await client.chat.completions.create(**ASK)
        assert whole.choices[0].message.content
        assert len("".join(texts)) > 0
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 12
        completion = await client.completions.create(model="smollm2", prompt="Once", max_tokens=3, temperature=0)
        assert completion.choices[0].text
        embeddings = await client.embeddings.create(model="smollm2", input=["a", "b"])
        assert len(embeddings.data) == 2
        assert [model.id async for model in client.models.list()] == ["smollm2"]


async def test_an_sse_client_of_its_own_reads_the_same_events() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from aiohttp_sse_client import client as sse_client
    async with proxy("--redis", "off") as gateway:
        events = []
        async with sse_client.EventSource(
            gateway.url + CHAT, option={"method": "POST"}, json=ASK | {"stream": True}
        ) as source:
            async for event in source:
                events.append(event.data)
                if event.data == "[DONE]":
                    break
        assert json.loads(events[0])["object"] == "chat.completion.chunk"
        assert len(events) > 10


async def test_twins_that_meet_are_one_generation_by_the_engine_s_own_count() -> None:
    async with proxy("--redis", "off") as gateway:
        body = json.dumps(ASK | {"max_tokens": 64, "stream": True}).encode()
        clients = [await Connection.open(gateway.url) for _ in range(20)]
        for client in clients:  # in one turn: a late one would find the generation at its end
            client.writer.write(request_bytes("POST", CHAT, body))
        bodies = [(await client.read()).body for client in clients]
        for client in clients:
            await client.close()
        assert len(set(bodies)) == 1
        page = (await get(gateway.url, "/metrics")).body.decode()
        found = re.search(r"gateway_upstream_requests_total\{backend=\"(http://[^\"]+)\"\} 1$", page, re.MULTILINE)
        assert found is not None
        engine = (await get(found[1], "/metrics")).body.decode()
        tokens = re.search(r"^llamacpp:tokens_predicted_total (\d+)", engine, re.MULTILINE)
        assert tokens is not None
        assert int(tokens[1]) <= 64


async def test_a_client_that_leaves_cancels_the_engine_in_the_running_program(engine: Engine) -> None:
    async with (
        proxy("--backend", engine.url, "--redis", "off") as gateway,
        streaming(gateway.url, CHAT, ASK) as client,
    ):
        turn = await engine.next_request()
        await client.abort()
        await turn.cancelled()


async def test_sigterm_lets_a_stream_end_well(engine: Engine) -> None:
    async with (
        proxy("--backend", engine.url, "--redis", "off") as gateway,
        streaming(gateway.url, CHAT, ASK | {"stream": True}) as client,
    ):
        turn = await engine.next_request()
        await turn.send("a")
        await client.event()
        gateway.process.send_signal(signal.SIGTERM)
        await turn.send(" b")
        await turn.finish()
        assert (await client.read()).events()[-1] == b"data: [DONE]\n\n"
        await gateway.process.wait()


@pytest.mark.parametrize(
    ("flags", "env", "says"),
    [
        (("--port", "x"), {}, "--port"),
        ((), {"GATEWAY_SHARE": "some"}, "GATEWAY_SHARE"),
        (("--prot", "1"), {}, "--port"),
        (("--redis", "mysql://x"), {}, "redis://"),
        (("--config", "no-such-file.toml"), {}, "no-such-file.toml"),
    ],
)
async def test_a_wrong_setting_is_named_and_ends_the_program_with_2(
    flags: tuple[str, ...], env: dict[str, str], says: str
) -> None:
    code, err = await refused(*flags, **env)
    assert code == 2
    assert says in err
    assert "Traceback" not in err


async def test_a_port_that_is_taken_is_said_and_ends_the_program_with_2(engine: Engine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, err = await refused("--backend", engine.url, "--redis", "off", "--port", port)
        assert (code, "cannot listen" in err) == (2, True)
    code, err = await refused("--redis", "off", XDG_CACHE_HOME="/proc/none")
    why = "cannot be kept in /proc/none/streaming-gateway: No such file or directory"
    assert (code, why in err) == (2, True), err


async def test_killed_outright_it_leaves_no_child_behind() -> None:
    async with proxy() as gateway:
        children = [
            int(pid) for pid in os.listdir("/proc") if pid.isdigit() and _parent(int(pid)) == gateway.process.pid
        ]
        assert len(children) == 2
        handles = [os.pidfd_open(child) for child in children]
        gateway.process.kill()
        loop = asyncio.get_running_loop()
        for handle in handles:
            gone = loop.create_future()
            loop.add_reader(handle, gone.set_result, None)
            await gone
            loop.remove_reader(handle)
            os.close(handle)
        await gateway.process.wait()


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return int(stat.read().rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return -1

"""nginx and HAProxy with the files of `ops/balancer/`: identical requests meet at one gateway, another takes over
where one is gone, and what is each gateway's own is not reached through them."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from proxy.app import App
from tests.kit.client import get, post_json
from tests.kit.engine import Engine, Turn
from tests.kit.ports import free_port
from tests.kit.running import HELLO, gateway, until
from tests.ops.kit import OPS, tool

PROMPTS, CLIENTS = 12, 3
BALANCERS = ("nginx.conf", "haproxy.cfg")
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")  # folders that only root can make where they are


@pytest.fixture(params=BALANCERS)
def file(request: pytest.FixtureRequest) -> str:
    """The name of a balancer's file. The test is skipped where its program is missing, before anything starts."""
    found = str(request.param)
    program(found)
    return found


def program(file: str) -> str:
    how = "apt-get install --no-install-recommends nginx-light haproxy"
    name = file.partition(".")[0]
    return tool(shutil.which(name) or f"/usr/sbin/{name}", how)  # where users have no /usr/sbin in their PATH


def command(file: str, config: Path, folder: Path) -> list[str]:
    if file == "haproxy.cfg":
        return [program(file), "-db", "-f", str(config)]
    main = f"daemon off; pid {folder}/nginx.pid; error_log stderr;"
    return [program(file), "-c", str(config), "-e", "stderr", "-g", main]


@asynccontextmanager
async def balancer(file: str, folder: Path, *apps: App) -> AsyncIterator[str]:
    """The program with the file of this name, in front of these gateways. Gives its URL."""
    port = free_port()
    text = (OPS / "balancer" / file).read_text()
    for old, new in zip((8080, 8081, 8082), (port, *(app.port for app in apps)), strict=True):
        assert f"127.0.0.1:{old}" in text
        text = text.replace(f"127.0.0.1:{old}", f"127.0.0.1:{new}")
    if file == "nginx.conf":
        temporary = "".join(f"{name}_temp_path {folder}/{name}; " for name in TEMPORARY)
        text = text.replace("http {", f"http {{\n access_log off; {temporary}")
    async with started(file, text, folder, port) as url:
        yield url


@asynccontextmanager
async def started(file: str, text: str, folder: Path, port: int) -> AsyncIterator[str]:
    """The program with this text as its file, once it listens on the port. Gives its URL."""
    config = folder / file
    config.write_text(text)
    process = await asyncio.create_subprocess_exec(
        *command(file, config, folder), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                assert process.returncode is None, f"{file}: exit {process.returncode}"
                continue
            writer.close()
            break
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def prompts(turns: list[Turn]) -> Counter[str]:
    return Counter(turn.json()["messages"][0]["content"] for turn in turns)


def readers(*apps: App) -> list[int]:
    return [app.group.subscribers for app in apps]


async def test_identical_requests_meet_at_one_gateway(file: str, tmp_path: Path) -> None:
    everyone = asyncio.Event()

    async def script(turn: Turn) -> None:
        await everyone.wait()
        await turn.answer("one")

    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(Engine(script))
        one, two = [await stack.enter_async_context(gateway(engine)) for _ in range(2)]
        url = await stack.enter_async_context(balancer(file, tmp_path, one, two))
        answers = [
            asyncio.create_task(
                post_json(url, "/v1/chat/completions", HELLO | {"messages": [{"role": "user", "content": f"{n}"}]})
            )
            for n in range(PROMPTS)
            for _ in range(CLIENTS)
        ]
        await until(lambda: sum(readers(one, two)) == PROMPTS * CLIENTS)
        assert min(readers(one, two)) >= CLIENTS, "all are at one gateway"
        everyone.set()
        assert {answer.status for answer in await asyncio.gather(*answers)} == {200}
        assert prompts(engine.requests) == {f"{n}": 1 for n in range(PROMPTS)}


async def test_a_gateway_that_is_gone_is_replaced_by_the_other(file: str, tmp_path: Path) -> None:
    async def script(turn: Turn) -> None:
        await turn.answer("one")

    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(Engine(script))
        one = await stack.enter_async_context(gateway(engine))
        first = AsyncExitStack()
        two = await first.enter_async_context(gateway(engine))
        url = await stack.enter_async_context(balancer(file, tmp_path, one, two))
        await first.aclose()
        for n in range(PROMPTS):
            body = HELLO | {"messages": [{"role": "user", "content": f"{n}"}]}
            assert (await post_json(url, "/v1/chat/completions", body)).status == 200
        assert sum(prompts(engine.requests).values()) == PROMPTS


async def test_paths_of_one_gateway_are_not_offered(file: str, tmp_path: Path) -> None:
    async with Engine() as engine, gateway(engine) as one, balancer(file, tmp_path, one, one) as url:
        assert (await get(url, "/v1/models")).status == 200
        for path in ("/metrics", "/-/state"):
            assert (await get(one.url, path)).status == 200
            assert (await get(url, path)).status == 404

"""A run of the program with a canary in each setting and header that can hold a secret: nothing shows it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from proxy.config.keys_file import hash_of
from tests.kit.client import Connection, call, get, post_json
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.patience import patience
from tests.kit.ports import free_port
from tests.kit.running import HELLO, HELLO_STREAM, until

CANARY = "Canary-7f3a91"
CHAT = "/v1/chat/completions"
HEADERS = [
    ("authorization", f"Bearer sk-{CANARY}-0123456789abcdef"),
    ("x-api-key", CANARY),
    ("api-key", CANARY),
    ("cookie", f"session={CANARY}"),
    ("proxy-authorization", f"Basic {CANARY}"),
]

pytestmark = pytest.mark.e2e


class FakeRedis:
    """Refuses each log-in as servers and proxies do that repeat what they do not know."""

    def __init__(self) -> None:
        self.asked = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            self.asked += 1
            words = data.decode().replace("\r\n", " ")
            writer.write(f"-ERR unknown command 'HELLO', with args beginning with: {words}\r\n".encode())
        writer.close()


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.parametrize("fmt", ["json", "text"])
@pytest.mark.parametrize("well", [True, False], ids=["all is well", "all fails"])
async def test_nothing_that_it_says_holds_a_secret(fmt: str, well: bool, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    digest = hash_of(HEADERS[0][1].removeprefix("Bearer ")).hex()
    keys.write_text(f'[[keys]]\nname = "one"\nsha256 = "{digest if well else "0" * 64}"\n')
    keys.chmod(0o600)
    redis = FakeRedis()
    server = await asyncio.start_server(redis, "127.0.0.1", 0)
    redis_port = server.sockets[0].getsockname()[1]
    said = b""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = os.environ | {
        "GATEWAY_BACKEND_API_KEY": f"{CANARY}-engine",
        "GATEWAY_REDIS_URL": f"redis://user-{CANARY}:pw%40{CANARY}@127.0.0.1:{redis_port}/0",
        "GATEWAY_API_KEYS_FILE": str(keys),
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization={CANARY}",
        "HTTP_PROXY": f"http://u:{CANARY}@127.0.0.1:1",
        "GATEWAY_LOG_FORMAT": fmt,
        "GATEWAY_LOG_LEVEL": "debug",
    }
    async with server, Engine(echo_script()) as engine:
        flags = ("--port", str(port), "--backend", engine.url)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "proxy", *flags),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=env,
        )
        try:
            async with patience(60):
                while process.returncode is None:
                    try:
                        await get(url, "/health")
                        break
                    except OSError:
                        continue
            if not well:
                engine.stop_listening()
                await engine.drop_connections()
            answers = [await get(url, path, HEADERS) for path in ("/", "/-/state", "/metrics", "/v1/models", "/x")]
            for body in (HELLO, HELLO_STREAM, HELLO | {"temperature": 1}, {"model": 1}, HELLO | {"model": "none"}):
                answers.append(await post_json(url, CHAT, body, HEADERS))
            answers.append(await call(url, "POST", "/v1/responses", b"{", HEADERS))
            answers.append(await get(url, f"/v1/x?key={CANARY}", [("authorization", "Basic !")]))
            async with await Connection.open(url) as client:
                await client.send(f"GET / HTTP/1.1\r\nhost: h\r\nauthorization: {CANARY}\r\n bad\r\n\r\n".encode())
                answers.append(await client.read())
            answers.append(await get(url, "/metrics", HEADERS))
            await until(lambda: redis.asked > 0)
            assert {answer.status for answer in answers} >= ({200, 400} if well else {401})
            for answer in answers:
                said += answer.body + str(answer.head.headers).encode()
            argv = command_line(process.pid)
            process.send_signal(signal.SIGTERM)
            async with patience(30):
                out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0
        if well:
            sent = [("authorization", f"Bearer {CANARY}-engine")]
            headers = [[(name.lower(), value) for name, value in turn.raw_headers] for turn in engine.requests]
            assert [given for given in headers if sent[0] in given] == headers != [], (
                "the key did go to the engine"
            )
    assert b"redis" in out
    check = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", "--check-config", *flags),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=env,
    )
    everything = said + out + err + argv + b"".join(await check.communicate())
    assert check.returncode == 0
    at = everything.find(CANARY.encode())
    assert at < 0, everything[max(0, at - 200) : at + 60]


async def test_names_of_megabytes_make_lines_of_a_kilobyte(tmp_path: Path) -> None:
    """Of a model, an id, a session, a path, a method, an agent; and none of them moves a terminal's cursor."""
    from tests.kit.running import gateway

    log = tmp_path / "log"
    sly = "\x1b[2J\u202e\u200b\x7f\U000e0041"
    async with Engine(echo_script()) as engine, gateway(engine, log_to=log, max_body_bytes=8 << 20) as app:
        for _ in range(10):
            answer = await post_json(app.url, CHAT, HELLO | {"model": sly + "m" * 3_900_000})
            assert len(answer.body) < 4096 or answer.status == 200
        for headers in (
            [("x-request-id", "r" * 9000)],
            [("x-session-id", "s" * 9000)],
            [("user-agent", "u" * 9000)],
        ):
            await post_json(app.url, CHAT, HELLO | {"model": sly}, headers)
        await get(app.url, "/v1/models/" + "p" * 9000)
        await get(app.url, "/" + "p" * 9000)
        await call(app.url, "M" * 9000, "/v1/x")
        metrics = (await get(app.url, "/metrics")).body
    text = log.read_bytes()
    lines = text.splitlines()
    assert max(map(len, lines)) < 2048
    assert max(map(len, metrics.splitlines())) < 1024
    shown = text.decode()
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert all(json.loads(line) for line in lines)

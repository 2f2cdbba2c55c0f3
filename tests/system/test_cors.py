"""Pages of listed origins: their preflights, and the CORS headers of every answer, whatever the path."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from proxy.app import App
from tests.kit.client import Answer, Connection, call, get, post_json, streaming
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.engine_turn import Turn
from tests.kit.ports import free_port
from tests.kit.redis_server import redis_server
from tests.kit.running import HELLO, HELLO_STREAM, gateway, lines, until
from tests.proxy.server.page.test_page import KEY, keys

CHAT = "/v1/chat/completions"
PAGE, OTHER = "https://chat.example", "https://evil.example"
FROM_PAGE = [("origin", PAGE), ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "cors")]
FROM_OTHER = [("origin", OTHER), *FROM_PAGE[1:]]
ASKS = [
    ("access-control-request-method", "POST"),
    ("access-control-request-headers", "authorization,content-type,x-stainless-os"),
]
ALLOWED = {"access-control-allow-origin": PAGE, "access-control-expose-headers": "*"}
OPERATORS = ["/metrics", "/", "/-/state", "/-/readers", "/-/cache"]
ENGINES = (
    ("access-control-allow-origin", "*"),
    ("access-control-allow-credentials", "true"),
    ("access-control-expose-headers", "x-other"),
    ("x-other", "1"),
)


def cors(answer: Answer) -> dict[str, str]:
    """The answer's CORS headers; each is there once. A list of origins in the settings is told by `Vary`."""
    found = [(n.lower(), v) for n, v in answer.head.headers if n.lower().startswith("access-control-")]
    assert len(found) == len(dict(found)), found
    varies = [v.lower() for n, v in answer.head.headers if n.lower() == "vary"]
    assert not found or "origin" in varies
    return dict(found)


def code(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json()["error"]["code"]


@pytest.mark.parametrize(
    "path", [CHAT, "/v1/embeddings", "/v1/models", "/v1/models/a/b", "/ping", "/v1/responses", "/nothing"]
)
async def test_a_preflight_is_answered_without_a_key_and_without_an_engine(
    engine: Engine, tmp_path: Path, path: str
) -> None:
    async with gateway(engine, cors_origins=(PAGE,), api_keys_file=keys(tmp_path), log_to=tmp_path / "log") as app:
        answer = await call(app.url, "OPTIONS", path, headers=[*FROM_PAGE, *ASKS])
        assert (answer.status, answer.body) == (204, b"")
        assert cors(answer) == ALLOWED | {
            "access-control-allow-methods": "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
            "access-control-allow-headers": "*, authorization",
            "access-control-max-age": "600",
        }
        refused = await call(app.url, "OPTIONS", path, headers=[*FROM_OTHER, *ASKS])
        assert code(refused) == (403, "origin_not_allowed")
        assert "cors_origins" in refused.json()["error"]["message"]
        assert cors(refused) == {}
    assert engine.requests == []
    logged = [line["status"] for line in lines(tmp_path / "log") if line["msg"] == "request"]
    assert logged == [403], "a preflight that is allowed is not logged, as a look at /health is not"


@pytest.mark.parametrize("path", [CHAT, "/v1/responses", "/v1/models"])
@pytest.mark.parametrize("keyed", [False, True])
async def test_without_the_setting_no_origin_is_allowed(
    engine: Engine, tmp_path: Path, path: str, keyed: bool
) -> None:
    async with gateway(engine, api_keys_file=keys(tmp_path) if keyed else "") as app:
        answer = await call(app.url, "OPTIONS", path, headers=[*FROM_PAGE, *ASKS])
        assert (code(answer), cors(answer)) == ((403, "origin_not_allowed"), {})
        assert "vary" not in answer.head
    assert engine.requests == []


@pytest.mark.parametrize("path", OPERATORS)
async def test_paths_of_operators_are_for_no_other_origin(engine: Engine, tmp_path: Path, path: str) -> None:
    async with gateway(engine, cors_origins=("*",)) as app:
        for answer in (
            await get(app.url, path, FROM_PAGE),
            await call(app.url, "OPTIONS", path, headers=[*FROM_PAGE, *ASKS]),
        ):
            assert answer.status in (403, 405)
            assert cors(answer) == {}
    async with gateway(engine, cors_origins=("*",), api_keys_file=keys(tmp_path)) as app:
        key = [("authorization", f"Bearer {KEY}")]
        for answer in (
            await get(app.url, path, [*FROM_PAGE, *key]),
            await call(app.url, "OPTIONS", path, headers=[*FROM_PAGE, *ASKS]),
        ):
            assert cors(answer) == {}


async def test_the_operators_listener_is_for_no_other_origin(engine: Engine) -> None:
    async with gateway(engine, cors_origins=("*",), admin_port=free_port()) as app:
        for method, path in (("GET", "/health"), ("GET", "/-/state"), ("OPTIONS", "/health")):
            answer = await call(app.admin_url, method, path, headers=[*FROM_PAGE, *ASKS])
            assert (code(answer), cors(answer)) == ((403, "origin_not_allowed"), {}), (method, path)


async def everything(app: App, headers: list[tuple[str, str]]) -> dict[str, Answer]:
    """An answer of each kind."""
    sampled = {"temperature": 0.7}
    long, wrong = ({"messages": [{"role": "user", "content": text}]} for text in ("x" * 4000, "wrong"))
    socket = [("upgrade", "websocket"), ("connection", "upgrade"), ("sec-websocket-key", "x")]
    bodies = {
        "miss": HELLO_STREAM, "hit": HELLO_STREAM, "body": HELLO, "sampled stream": HELLO_STREAM | sampled,
        "sampled body": HELLO | sampled, "engine's error": HELLO | wrong,
        "sampled error": HELLO | sampled | wrong, "400": {}, "413": HELLO | long,
    }  # fmt: skip
    answers = {}
    for name, body in bodies.items():
        answers[name] = await post_json(app.url, CHAT, body, headers)
        await until(lambda: len(app.group) == 0)  # the first is stored then
    answers |= {
        "passed through": await post_json(app.url, "/v1/responses", {"model": "m1", "input": "x"}, headers),
        "embeddings": await post_json(app.url, "/v1/embeddings", {"model": "m1", "input": "x"}, headers),
        "models": await get(app.url, "/v1/models", headers),
        "health": await get(app.url, "/health", headers),
        "404": await get(app.url, "/nothing", headers),
        "405": await call(app.url, "PUT", CHAT, headers=headers),
        "trace": await call(app.url, "TRACE", CHAT, headers=headers),
        "websocket": await get(app.url, "/v1/realtime", [*headers, *socket]),
        "timeout": await post_json(app.url, CHAT, HELLO, [*headers, ("x-request-timeout", "never")]),
    }
    for name, head in (
        ("host", "Host: a b"),
        ("expectation", "Host: localhost\r\nExpect: tea"),
    ):
        async with await Connection.open(app.url) as client:
            more = "".join(f"{n}: {v}\r\n" for n, v in headers)
            await client.send(f"GET /health HTTP/1.1\r\n{head}\r\n{more}\r\n".encode())
            answers[f"refused by the listener: {name}"] = await client.read()
    return answers


async def answering(turn: Turn) -> None:
    """An engine that sends CORS headers of its own."""
    if b"wrong" in bytes(turn.body):
        await turn.respond(429, {"error": {"message": "busy"}}, ENGINES)
    elif not turn.is_chat:
        await turn.respond(200, {"object": "response"}, ENGINES)
    elif turn.wants_stream:
        await turn.start(headers=ENGINES)
        await turn.finish("hello")
    else:
        await turn.respond(200, turn.shape.whole(["hello"], ["stop"], 1, 1), ENGINES)


@pytest.mark.parametrize(
    ("origins", "headers", "expected"),
    [
        ((PAGE, OTHER), FROM_PAGE, ALLOWED),
        ((PAGE,), [], {}),
        ((), [], {}),
        (("*",), FROM_PAGE, ALLOWED | {"access-control-allow-origin": "*"}),
        (("*",), [("origin", "null")], ALLOWED | {"access-control-allow-origin": "*"}),
        (("*",), [], ALLOWED | {"access-control-allow-origin": "*"}),
    ],
    ids=["listed", "a list, no page", "off", "any", "any: a sandboxed page", "any, no page"],
)
async def test_every_answer_has_the_same_headers_and_none_is_the_engines(
    engine: Engine, origins: tuple[str, ...], headers: list[tuple[str, str]], expected: dict[str, str]
) -> None:
    engine.auto(answering)
    async with redis_server() as redis:
        settings: dict[str, Any] = {"max_prompt_chars": 1000, "retries": 0, "redis": f"unix://{redis}"}
        async with gateway(engine, cors_origins=origins, **settings) as app:
            answers = await everything(app, headers)
    statuses = {answer.status for answer in answers.values()}
    assert statuses >= {200, 400, 404, 405, 413, 429, 501}
    assert answers["hit"].head["x-gateway-cache"] == "hit"
    assert answers["passed through"].head["x-other"] == "1"
    for name, answer in answers.items():
        assert cors(answer) == expected, name


async def test_a_page_that_is_not_listed_is_refused_as_without_the_setting(engine: Engine, tmp_path: Path) -> None:
    engine.auto(echo_script())
    async with gateway(engine, cors_origins=(PAGE,)) as app:
        for origin in (OTHER, "null", PAGE + ".evil.example", "http://chat.example", PAGE + ":8443", ""):
            answer = await post_json(app.url, CHAT, HELLO, [("origin", origin), *FROM_PAGE[1:]])
            assert (code(answer), cors(answer)) == ((403, "origin_not_allowed"), {}), origin
        # No picture, script or form: those a browser sends without asking, and some without their origin.
        for mode in ("no-cors", "navigate"):
            tag = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", mode), ("sec-fetch-dest", "image")]
            assert (await get(app.url, "/v1/models", tag)).status == 403
        text = [*FROM_PAGE, ("content-type", "text/plain")]
        assert (await post_json(app.url, CHAT, HELLO, text)).status == 415
    assert engine.requests == []
    async with gateway(engine, cors_origins=(PAGE,), api_keys_file=keys(tmp_path)) as app:
        answer = await post_json(app.url, CHAT, HELLO, FROM_PAGE)
        assert (code(answer), cors(answer)) == ((401, "invalid_api_key"), ALLOWED), "the page may read why"
        key = ("authorization", f"Bearer {KEY}")
        assert (await post_json(app.url, CHAT, HELLO, [*FROM_PAGE, key])).status == 200
        other = await post_json(app.url, CHAT, HELLO, [*FROM_OTHER, key])
        assert (other.status, cors(other)) == (200, {}), "the key decides, and the browser shows the page nothing"


async def test_refusals_of_a_full_listener_can_be_read_by_any_page(engine: Engine) -> None:
    async with (
        gateway(engine, cors_origins=("*",), max_connections=1) as app,
        streaming(app.url, CHAT, HELLO_STREAM, FROM_PAGE),
    ):
        turn = await engine.next_request()
        async with await Connection.open(app.url) as second:
            answer = await second.read()
        await turn.drop()
    assert (code(answer), cors(answer)["access-control-allow-origin"]) == ((503, "queue_full"), "*")


@pytest.mark.parametrize("hostile", ["https://chat.example\tx", "https://chat.example, *", "x" * 7000, "\xff\xfe"])
async def test_an_origin_is_never_repeated_but_for_a_listed_one(engine: Engine, hostile: str) -> None:
    async with gateway(engine, cors_origins=(PAGE,)) as app:
        for method, path in (("OPTIONS", CHAT), ("GET", "/v1/models")):
            answer = await call(app.url, method, path, headers=[("origin", hostile), ASKS[0]])
            assert (answer.status, cors(answer)) == (403, {})
            assert not re.search(rb"(?i)access-control|\nx{3}", answer.raw.partition(b"\r\n\r\n")[0])


def test_what_is_no_origin_ends_the_start_with_words() -> None:
    command = [sys.executable, "-m", "proxy", "--check-config", "--cors-origins", "https://a/x"]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert run.returncode == 2
    assert "flag --cors-origins = ['https://a/x']: must be origins as browsers send them, scheme://" in run.stderr


async def test_any_origin_is_said_in_the_log(engine: Engine, tmp_path: Path) -> None:
    for at, (origins, keyed) in enumerate(((("*",), False), (("*",), True), ((PAGE,), False))):
        log = tmp_path / f"log{at}"
        file = keys(tmp_path) if keyed else ""
        async with gateway(engine, cors_origins=origins, log_to=log, api_keys_file=file):
            pass
        told = [line["detail"] for line in lines(log) if line["msg"] == "settings" and "cors" in line["detail"]]
        assert bool(told) is (origins == ("*",))
        assert keyed or not told or "use the engines" in told[0]

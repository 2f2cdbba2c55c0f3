"""/openapi.json and /docs: what they describe, whom they tell it, and schemathesis against the running gateway."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from proxy.config.keys_file import hash_of
from proxy.errors import Code
from proxy.server.openapi import engine_apis
from proxy.server.openapi.operations import BY_PATH, ENGINE_OPERATIONS, OPERATIONS
from proxy.wire import PATHS, decode
from proxy.wire.event_apis import EVENT_APIS
from tests import golden
from tests.kit.chrome import BROWSER, Chrome
from tests.kit.client import Connection, call, get
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.engine_turn import Turn
from tests.kit.engine_wire import error_body
from tests.kit.missing import CHROMIUM, needs
from tests.kit.ports import free_port
from tests.kit.running import gateway

USER, OPERATOR = "sk-" + "u" * 40, "sk-" + "o" * 40
TEMPLATES = {"/v1/models/{model}", "/v1/streams/{stream}"}
OF_ENGINES = {path for path, _ in ENGINE_OPERATIONS}
API = {"/chat", "/embed", *PATHS.values(), "/v1/models", *TEMPLATES, *OF_ENGINES}
OPEN = {"/health", "/ping", "/ready", "/openapi.json", "/docs"}
OPERATORS = {"/", "/-/cache", "/-/readers", "/-/state", "/metrics"}
ECHO = echo_script(3)
TAKES: dict[str, tuple[type, bytes]] = {
    "/v1/messages": (engine_apis.MessagesRequest, golden.load("messages").body),
    "/v1/messages/count_tokens": (engine_apis.CountTokensRequest, b'{"input_tokens": 7}'),
    "/v1/responses": (engine_apis.ResponsesRequest, golden.load("responses").body),
}
CONFIG = """
[checks]
positive_data_acceptance.enabled = false # what an engine refuses is its own
unsupported_method.enabled = false # TRACE with a body is 400
not_a_server_error.expected-statuses = ["2xx", "4xx", 504] # 504: a deadline of milliseconds
"""


def keys(folder: Path) -> str:
    """A keys file with a user's key and an operator's."""
    path = folder / "keys.toml"
    entries = (("user", USER), ("operator", OPERATOR))
    path.write_text(
        "".join(
            f'[[keys]]\nname = "{role}"\nsha256 = "{hash_of(key).hex()}"\nrole = "{role}"\ntop_priority = "high"\n'
            for role, key in entries
        )
    )
    path.chmod(0o600)
    return str(path)


def bearer(key: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {key}")]


async def described(url: str, key: str = "") -> dict[str, Any]:
    answer = await get(url, "/openapi.json", bearer(key) if key else ())
    assert (answer.status, answer.head["content-type"]) == (200, "application/json")
    return dict(answer.json())


async def test_every_path_that_is_served_is_described_and_no_other(engine: Engine) -> None:
    async with gateway(engine) as app:
        api = await described(app.url)
        assert set(api["paths"]) == API | OPEN | OPERATORS
        served = {(path, name.lower()) for path, methods in app.routes for name in methods.split(", ")}
        said = {(path, name) for path, item in api["paths"].items() for name in item if name != "parameters"}
        passed = {(path, method.lower()) for path, method in ENGINE_OPERATIONS}
        assert (
            said - served == {(path, "get") for path in TEMPLATES} | {("/v1/streams/{stream}", "delete")} | passed
        )
        assert served <= said
        assert "securitySchemes" not in api["components"]
    async with gateway(engine, page=False) as app:
        assert set((await described(app.url))["paths"]) == API | OPEN - {"/docs"} | {"/-/cache", "/metrics"}
        assert (await get(app.url, "/docs")).status == 404


async def test_operators_paths_are_described_to_operators_only(engine: Engine, tmp_path: Path) -> None:
    async with gateway(engine, api_keys_file=keys(tmp_path)) as app:
        assert (await get(app.url, "/openapi.json")).status == 401
        assert (await get(app.url, "/docs")).status == 200, "it holds no data"
        for key, paths in ((USER, API | OPEN), (OPERATOR, API | OPEN | OPERATORS), (USER, API | OPEN)):
            api = await described(app.url, key)
            assert set(api["paths"]) == paths
            assert ("State" in api["components"]["schemas"]) is (key is OPERATOR)
            each = {path: next(iter(item.values())) for path, item in api["paths"].items() if "{" not in path}
            keyless = {path for path, one in each.items() if one["security"] == []}
            assert keyless == {"/health", "/ping", "/ready"}
            assert "401" in each["/chat"]["responses"]
    async with gateway(engine, api_keys_file=keys(tmp_path), admin_port=free_port()) as app:
        assert set((await described(app.url, OPERATOR))["paths"]) == API | OPEN
        admin = set((await described(app.admin_url, OPERATOR))["paths"])
        assert admin == OPERATORS | {"/health", "/ready", "/openapi.json", "/docs"}


async def test_the_description_is_whole(engine: Engine) -> None:
    """Each reference leads somewhere, and each error and header is there."""
    async with gateway(engine) as app:
        api = await described(app.url)
    references: list[str] = []

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            references.extend([node["$ref"]] if "$ref" in node else [])
            node = list(node.values())
        for each in node if isinstance(node, list) else ():
            walk(each)

    walk(api)
    for reference in references:
        found = api
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]
    schemas = api["components"]["schemas"]
    assert {code.code for code in Code} == set(schemas["ErrorObject"]["properties"]["code"]["enum"])
    operations = [one for item in api["paths"].values() for name, one in item.items() if name != "parameters"]
    assert len({one["operationId"] for one in operations}) == len(operations)
    answers = [answer for one in operations for answer in one["responses"].values()]
    told = {code for answer in answers for code in answer["description"].split(", ")}
    keyed = {Code.INVALID_API_KEY, Code.KEY_EXPIRED, Code.KEY_REVOKED}
    assert {code.code for code in Code if code not in keyed} <= told
    for one in operations:
        for status, answer in one["responses"].items():
            assert status == "default" or "x-request-id" in answer["headers"]
        assert "retry-after" in one["responses"]["503"]["headers"]
    chat = schemas["ChatRequest"]
    assert chat["required"] == ["messages"]
    decoded = decode("chat", b'{"messages": [], "model": "m", "stream": true, "temperature": 0, "seed": 1}')
    assert set(decoded.fields) <= set(chat["properties"])


async def test_messages_and_responses_are_described_as_they_were_recorded(engine: Engine, tmp_path: Path) -> None:
    deny = tmp_path / "deny"
    deny.write_text("x y z")
    async with gateway(engine) as app:
        api = await described(app.url)
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            refusal = api["paths"][path]["post"]["responses"]["429"]["content"]["application/json"]["schema"]
            assert {"$ref": "#/components/schemas/MessagesError"} in refusal["anyOf"]
        types = api["components"]["schemas"]["MessagesErrorObject"]["properties"]["type"]["enum"]
        told = await call(app.url, "POST", "/v1/messages", b"{", [("content-type", "application/json")])
        assert msgspec.convert(told.json(), engine_apis.MessagesError).error.type in types
    msgspec.json.decode(golden.load("messages").body, type=engine_apis.MessagesAnswer)
    msgspec.json.decode(golden.load("responses").body, type=engine_apis.Response)
    async with gateway(engine, deny_file=str(deny), deny_answers=True) as app:
        assert not OF_ENGINES & set((await described(app.url))["paths"])


def test_no_operation_is_described_in_vain() -> None:
    assert {path for path, _ in ENGINE_OPERATIONS} & set(EVENT_APIS) == set(EVENT_APIS)
    assert {"model"} | {operation.tag for operation in BY_PATH.values()} == {"model", "inference"}
    assert set(OPERATIONS) >= set(PATHS)


@pytest.mark.parametrize("path", sorted((API | OPEN | OPERATORS) - TEMPLATES - OF_ENGINES))
async def test_every_path_answers_head_options_and_another_method(engine: Engine, path: str) -> None:
    engine.auto(echo_script())
    async with gateway(engine) as app:
        methods = dict(app.routes)[path].split(", ")
        allow = ", ".join([*methods, "HEAD"] if "GET" in methods else methods)
        for method in ("PUT", "PATCH"):
            answer = await call(app.url, method, path)
            assert (answer.status, answer.json()["error"]["code"]) == (405, "method_not_allowed")
            assert answer.head["allow"] == allow
        options = await call(app.url, "OPTIONS", path)
        assert (options.status, options.head["allow"], options.body) == (204, allow, b"")
        async with await Connection.open(app.url) as client:
            await client.request("HEAD", path)
            assert (await client.read_head()).status == (200 if "GET" in methods else 405)


async def answering(turn: Turn) -> None:
    """An engine that takes any input of the right type, except an empty list: vLLM refuses that ("at least one
    prompt")."""
    if turn.path == "/v1/embeddings":
        given = turn.json()["input"]
        if given == []:
            await turn.respond(400, error_body("please provide at least one prompt", status=400))
            return
        count = len(given) if isinstance(given, list) else 1
        data = [{"object": "embedding", "index": at, "embedding": [0.5]} for at in range(count)]
        await turn.respond(200, {"object": "list", "model": "m1", "data": data})
    elif turn.path in TAKES:
        kind, body = TAKES[turn.path]
        try:
            msgspec.convert(turn.json(), kind)
        except msgspec.ValidationError as error:
            await turn.respond(400, error_body(str(error), status=400))
        else:
            await turn.respond(200, body)
    else:
        await ECHO(turn)


async def test_schemathesis_finds_no_fault(tmp_path: Path) -> None:
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    async with Engine(answering) as engine, gateway(engine, api_keys_file=keys(tmp_path)) as app:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(config)),
            *("run", f"{app.url}/openapi.json", "--header", f"Authorization: Bearer {OPERATOR}"),
            *("--phases", "fuzzing", "--max-examples", "4", "--seed", "7", "--no-shrink"),
            *("--generation-database", "none", "--no-color"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=tmp_path,
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        assert b"Tested: 26" in output
        assert engine.requests


@needs(BROWSER, "Chromium", CHROMIUM)
async def test_the_page_shows_the_description_and_asks_for_a_key(engine: Engine, tmp_path: Path) -> None:
    async with gateway(engine, api_keys_file=keys(tmp_path)) as app, Chrome(tmp_path / "home") as chrome:
        await chrome.open(f"{app.url}/docs")
        await chrome.until("!document.getElementById('keyform').hidden")
        assert await chrome.js("document.querySelectorAll('#paths details').length") == 0
        enter = "document.getElementById('key').value = KEY; document.querySelector('#keyform button').click()"
        await chrome.js(enter.replace("KEY", msgspec.json.encode(USER).decode()))
        await chrome.until("document.querySelectorAll('#paths details').length > 0")
        shown = await chrome.js("[...document.querySelectorAll('#paths .path')].map(e => e.textContent)")
        assert {text for text in shown if text.startswith("/")} == API | OPEN
        assert await chrome.js("document.getElementById('keyform').hidden")
        assert [text for text in chrome.complaints if "401" not in text] == []

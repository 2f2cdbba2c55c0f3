"""What stands before a generation, over loopback: keys, models, tenants, scopes, the engine's own key."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from proxy.app import App
from proxy.errors import SettingsError
from tests.kit.client import Answer, Connection, call, get, post_json
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.late import late
from tests.kit.running import HELLO, HELLO_STREAM, gateway, lines, until

if TYPE_CHECKING:
    import openai
else:
    openai = late("openai")

CHAT = "/v1/chat/completions"
Headers = Sequence[tuple[str, str]]


def entry(key: str, name: str, more: str = "") -> str:
    return f'[[keys]]\nname = "{name}"\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n{more}\n'


def bearer(key: str) -> Headers:
    return (("authorization", f"Bearer {key}"),)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(
        entry("ka", "team-a", 'tenant = "blue"')
        + entry("kb", "team-b", 'tenant = "blue"')
        + entry("kc", "team-c")
        + entry("kd", "only-m1", 'models = ["m1"]')
        + entry("ko", "ops", 'role = "operator"')
    )
    path.chmod(0o600)
    return path


def refusal(answer: Answer) -> tuple[int, str]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return answer.status, error["code"]


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (("authorization", ""),),
        (("authorization", "Bearer"),),
        (("authorization", "Bearer "),),
        (("authorization", "Bearer wrong"),),
        (("authorization", "Basic a2E6"),),
        (("authorization", "ka"),),
        (("authorization", "Bearer ka x"),),
        (("authorization", "Bearer " + "k" * 5000),),
        (("authorization", "Bearer ka\xff"),),
        (("api-key", "ka"),),
        (("x-api-key", "wrong"),),
        (("x-api-key", ""),),
        (("x-api-key", "ka"), ("x-api-key", "kb")),
        (("authorization", "Bearer ka"), ("authorization", "Bearer kb")),
    ],
)
async def test_without_a_right_key_nothing_is_answered_and_no_engine_asked(
    engine: Engine, keys: Path, headers: Headers
) -> None:
    async with gateway(engine, api_keys_file=str(keys)) as app:
        for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("POST", "/tokenize"), ("POST", "/embed")):
            answer = await call(app.url, method, path, b"{}" if method == "POST" else b"", headers)
            if answer.status != 400:  # two Authorization fields: refused by the parser already
                assert refusal(answer) == (401, "invalid_api_key")
                assert answer.head["www-authenticate"] == "Bearer"
        assert engine.requests == []


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER  "])
async def test_a_right_key_is_let_in_named_in_the_log_and_shown_to_nobody(
    engine: Engine, keys: Path, tmp_path: Path, scheme: str
) -> None:
    engine.auto(echo_script())
    log = tmp_path / "log"
    async with gateway(engine, api_keys_file=str(keys), metrics_key=False, log_to=log) as app:
        assert (await post_json(app.url, CHAT, HELLO, (("authorization", scheme + "ka"),))).status == 200
        assert (await post_json(app.url, "/tokenize", {"model": "m1"}, bearer("ka"))).status == 404
        assert [turn.headers.get("authorization") for turn in engine.requests] == [None, None]
        for path in ("/health", "/ready", "/metrics"):
            assert (await get(app.url, path)).status == 200
        page = (await get(app.url, "/metrics")).body
    told = log.read_bytes()
    assert {line["key"] for line in lines(log) if line["msg"] == "request"} == {"team-a"}
    for secret in (b"ka", hashlib.sha256(b"ka").hexdigest()[:16].encode()):
        assert b'"%b"' % secret not in told
        assert b" " + secret not in told
        assert secret not in page


async def test_metrics_stand_behind_an_operators_key_unless_they_are_opened(engine: Engine, keys: Path) -> None:
    async with gateway(engine, api_keys_file=str(keys)) as app:
        assert refusal(await get(app.url, "/metrics"))[0] == 401
        assert (await get(app.url, "/metrics", bearer("ka"))).status == 404
        assert (await get(app.url, "/metrics", bearer("ko"))).status == 200
        assert (await get(app.url, "/health")).status == 200


async def test_a_key_names_only_its_models_and_sees_no_others(keys: Path) -> None:
    async with (
        Engine(echo_script(), models=["m1", "m2"]) as engine,
        gateway(engine, api_keys_file=str(keys)) as app,
    ):
        mine, all_of_them = bearer("kd"), bearer("ka")
        assert (await post_json(app.url, CHAT, HELLO, mine)).status == 200
        other = await post_json(app.url, CHAT, HELLO | {"model": "m2"}, mine)
        assert refusal(other) == (404, "model_not_found")
        assert other.json()["error"]["param"] == "model"
        none = await post_json(app.url, CHAT, {"messages": []}, mine)
        assert refusal(none) == (400, "missing_field")
        assert refusal(await post_json(app.url, "/tokenize", {"model": "m2"}, mine)) == (404, "model_not_found")
        assert refusal(await call(app.url, "POST", "/tokenize", b"model=m1", mine)) == (400, "invalid_json")
        assert refusal(await call(app.url, "POST", "/tokenize", b'{"x": 1}', mine)) == (400, "missing_field")
        assert (await post_json(app.url, CHAT, HELLO | {"model": "m2"}, all_of_them)).status == 200
        for headers, seen in ((mine, ["m1"]), (all_of_them, ["m1", "m2"])):
            models = (await get(app.url, "/v1/models", headers)).json()["data"]
            assert [model["id"] for model in models] == seen
        assert engine.generations == 2


async def shared(app: App, engine: Engine, one: Headers, other: Headers) -> bool:
    """Whether two identical requests, of these callers, are one generation."""
    before = engine.generations
    first = asyncio.ensure_future(post_json(app.url, CHAT, HELLO, one))
    turn = await engine.next_request()
    second = asyncio.ensure_future(post_json(app.url, CHAT, HELLO, other))
    await until(lambda: app.group.subscribers == 2)
    turns = (
        [turn] if engine.generations == before + 1 and len(app.group) == 1 else [turn, await engine.next_request()]
    )
    for each in turns:
        await each.answer("a")
    assert {(await first).status, (await second).status} == {200}
    return len(turns) == 1


@pytest.mark.parametrize(
    ("changes", "with_keys", "one", "other", "together"),
    [
        ({}, True, bearer("ka"), bearer("ka"), True),
        ({}, True, bearer("ka"), bearer("kb"), True),
        ({}, True, bearer("ka"), bearer("kc"), False),
        ({"share_scope": "global"}, True, bearer("ka"), bearer("kc"), True),
        ({}, False, bearer("x"), bearer("x"), True),
        ({}, False, bearer("x"), bearer("y"), False),
        ({"share_scope": "global"}, False, bearer("x"), bearer("y"), True),
        ({"forward_authorization": True}, True, bearer("ka"), bearer("kb"), False),
        ({"forward_authorization": True}, True, bearer("ka"), bearer("ka"), True),
    ],
)
async def test_only_callers_of_one_tenant_share_unless_all_may(
    engine: Engine,
    keys: Path,
    changes: dict[str, Any],
    with_keys: bool,
    one: Headers,
    other: Headers,
    together: bool,
) -> None:
    async with gateway(engine, api_keys_file=str(keys) if with_keys else "", **changes) as app:
        assert await shared(app, engine, one, other) is together


@pytest.mark.parametrize("stream", [False, True])
async def test_the_engine_s_own_key_goes_up_and_the_client_s_does_not(
    engine: Engine, tmp_path: Path, stream: bool
) -> None:
    engine.auto(echo_script())
    engine.take("/v1/models")
    secret = tmp_path / "secret"
    secret.write_text("up-key\n")
    log = tmp_path / "log"
    async with gateway(engine, backend_api_key_file=str(secret), log_to=log, refresh_seconds=60.0) as app:
        assert (await post_json(app.url, CHAT, HELLO_STREAM if stream else HELLO, bearer("mine"))).status == 200
        await post_json(
            app.url, "/tokenize", {"prompt": "a"}, (*bearer("mine"), ("x-api-key", "z"), ("api-key", "z"))
        )
        sent = [turn for turn in engine.requests if turn.method == "POST"]
        assert [turn.headers["authorization"] for turn in sent] == ["Bearer up-key"] * 2
        assert not {"x-api-key", "api-key"} & set(sent[1].headers)
        polls = [turn for turn in engine.requests if turn.method == "GET"]
        assert {turn.headers["authorization"] for turn in polls} == {"Bearer up-key"}
    assert b"up-key" not in log.read_bytes()


async def test_the_client_s_own_header_goes_up_only_where_it_is_asked_for(engine: Engine) -> None:
    engine.auto(echo_script())
    for forward in (False, True):
        async with gateway(engine, forward_authorization=forward) as app:
            await post_json(app.url, CHAT, HELLO, bearer("mine"))
            await post_json(app.url, "/tokenize", {"prompt": "a"}, bearer("mine"))
            found = [turn.headers.get("authorization") for turn in engine.requests[-2:]]
            assert found == (["Bearer mine"] * 2 if forward else [None, None])


async def test_keys_are_read_again_and_a_bad_file_changes_nothing(
    engine: Engine, keys: Path, tmp_path: Path
) -> None:
    engine.auto(echo_script())
    log, write = tmp_path / "log", keys.write_text
    async with (
        gateway(engine, api_keys_file=str(keys), log_to=log) as app,
        await Connection.open(app.url) as client,
    ):

        async def status(key: str) -> int:
            await client.request("GET", "/v1/models", headers=bearer(key))
            return (await client.read()).status

        assert (await status("ka"), await status("new")) == (200, 401)
        write(entry("new", "new"))
        await app.reload()
        assert (await status("ka"), await status("new")) == (401, 200)
        write("nonsense")
        await app.reload()
        assert (await status("ka"), await status("new")) == (401, 200)
    told = [(line["msg"], line["setting"]) for line in lines(log) if "reloaded" in line["msg"]]
    assert told == [("reloaded", "api_keys_file"), ("not reloaded", "api_keys_file")]


async def test_a_keys_file_that_others_may_read_is_warned_of(engine: Engine, keys: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    os.chmod(keys, 0o644)
    async with gateway(engine, api_keys_file=str(keys), log_to=log):
        pass
    (warning,) = [line["detail"] for line in lines(log) if line["msg"] == "settings"]
    assert "0644" in warning


async def test_a_bad_keys_file_keeps_the_gateway_from_starting(engine: Engine, keys: Path) -> None:
    write = keys.write_text
    write('[[keys]]\nname = "a"\nsha256 = "x"\n')
    with pytest.raises(SettingsError, match=r"keys\.toml:1: sha256"):
        async with gateway(engine, api_keys_file=str(keys)):
            pass


async def test_the_official_client_knows_the_errors_for_what_they_are(keys: Path) -> None:
    async with (
        Engine(echo_script(), models=["m1", "m2"]) as engine,
        gateway(engine, api_keys_file=str(keys)) as app,
    ):
        for key, model, kind, code in (
            ("wrong", "m1", openai.AuthenticationError, "invalid_api_key"),
            ("kd", "m2", openai.NotFoundError, "model_not_found"),
        ):
            async with openai.AsyncOpenAI(base_url=app.url + "/v1", api_key=key, max_retries=0) as client:
                with pytest.raises(kind) as e:
                    await client.chat.completions.create(model=model, messages=[{"role": "user", "content": "a"}])
                assert e.value.code == code
        async with openai.AsyncOpenAI(base_url=app.url + "/v1", api_key="kd") as client:
            assert [model.id async for model in client.models.list()] == ["m1"]

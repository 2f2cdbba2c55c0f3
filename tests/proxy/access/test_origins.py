"""Pages of other origins: what they may send where no key is asked for, and that no GET changes anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.access.origins import Origins
from proxy.app import App
from proxy.errors import Code, GatewayError
from tests.kit.client import Connection, call, get, post_json
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.running import HELLO, HELLO_STREAM, gateway
from tests.proxy.server.page.test_page import KEY, keys

CHAT = "/v1/chat/completions"
READERS = "/-/readers"
EVIL = "https://evil.example"
NAVIGATES = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


def refused(
    headers: dict[str, str], method: str = "POST", *, opens: bool = True, allowed: tuple[str, ...] = ()
) -> bool:
    try:
        Origins(allowed).check(headers, method, opens=opens)
    except GatewayError as e:
        assert e.code is Code.ORIGIN_NOT_ALLOWED
        return True
    return False


@pytest.mark.parametrize(
    ("headers", "no"),
    [
        ({}, False),
        ({"sec-fetch-site": "same-origin", "origin": "http://gw:80"}, False),
        ({"sec-fetch-site": "none"}, False),
        ({"sec-fetch-site": "same-site"}, True),
        ({"sec-fetch-site": "cross-site"}, True),
        ({"sec-fetch-site": ""}, True),
        ({"sec-fetch-site": "cross-site", "origin": "http://gw", "host": "gw"}, True),
        ({"origin": "http://gw:8080", "host": "gw:8080"}, False),
        ({"origin": "http://GW", "host": "gw:80"}, False),
        ({"origin": "https://gw", "host": "gw"}, False),
        ({"origin": "http://[::1]:8080", "host": "[::1]:8080"}, False),
        ({"origin": "http://gw:8081", "host": "gw:8080"}, True),
        ({"origin": "https://gw:80", "host": "gw"}, True),
        ({"origin": "http://gw.evil.example", "host": "gw"}, True),
        ({"origin": "null", "host": "gw"}, True),
        ({"origin": "null", "host": "null"}, True),
        ({"origin": "file://", "host": ""}, True),
        ({"origin": "", "host": ""}, True),
        ({"origin": EVIL}, True),
        (NAVIGATES, True),
    ],
)
def test_what_is_told_by_the_headers_of_browsers(headers: dict[str, str], no: bool) -> None:
    assert refused(headers) is no


def test_a_link_of_another_page_may_be_followed_and_nothing_else_of_it() -> None:
    assert not refused(NAVIGATES, "GET")
    assert refused(NAVIGATES, "GET", opens=False)
    assert refused(NAVIGATES | {"sec-fetch-dest": "iframe"}, "GET")
    assert refused(NAVIGATES | {"sec-fetch-mode": "no-cors"}, "HEAD")


def test_a_list_of_origins_opens_it() -> None:
    headers = {"origin": EVIL, "sec-fetch-site": "cross-site"}
    assert not refused(headers, allowed=(EVIL + "/",))
    assert refused(headers, allowed=("https://evil.example:8443", "evil.example"))
    assert refused(headers | {"origin": EVIL + ".org"}, allowed=(EVIL,))
    assert refused({"sec-fetch-site": "cross-site"}, allowed=("*",)), "a picture has no origin"


def test_a_path_for_operators_is_open_to_no_other_origin() -> None:
    origins = Origins(("*",))
    headers = {"origin": EVIL, "sec-fetch-site": "cross-site"}
    origins.check(headers, "POST", opens=True)
    with pytest.raises(GatewayError):
        origins.check(headers, "POST", opens=True, listed=False)


def test_cors_headers_repeat_a_listed_origin_only_and_vary_by_it() -> None:
    listed = Origins((EVIL, "http://localhost:3000"))
    assert dict(listed.headers("HTTP://localhost:3000")) == {
        "access-control-allow-origin": "http://localhost:3000",
        "access-control-expose-headers": "*",
        "vary": "origin",
    }
    for origin in (None, "", "null", "*", EVIL + ".org", EVIL + ":443"):
        assert listed.headers(origin) == (("vary", "origin"),)
        assert dict(Origins(("*",)).headers(origin))["access-control-allow-origin"] == "*"
        assert Origins().headers(origin) == ()


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_texts_are_judged_and_only_the_same_authority_is_let_in(origin: str, host: str) -> None:
    if not refused({"origin": origin, "host": host}):
        assert host.lower().removesuffix(":80").removesuffix(":443") in origin.lower()


FOREIGN = [
    [("origin", EVIL)],
    [("origin", "null")],
    [("sec-fetch-site", "cross-site")],
    [("sec-fetch-site", "same-site"), ("origin", "http://127.0.0.1:1")],
]


@pytest.mark.parametrize("headers", FOREIGN)
@pytest.mark.parametrize("path", [CHAT, "/v1/embeddings", "/chat", "/v1/responses", "/tokenize", READERS])
async def test_a_page_of_another_origin_draws_nothing_from_an_engine(
    engine: Engine, path: str, headers: list[tuple[str, str]]
) -> None:
    async with gateway(engine, embed_stub=True) as app:
        answer = await post_json(app.url, path, HELLO, headers)
        assert (answer.status, answer.json()["error"]["code"]) == (403, "origin_not_allowed")
        assert "own page" in answer.json()["error"]["message"]
        preflight = await call(app.url, "OPTIONS", path, headers=headers)
        assert preflight.status in (403, 405)
        assert "access-control-allow-origin" not in preflight.head
    assert engine.requests == []


@pytest.mark.parametrize("path", ["/v1/responses/x", "/version", "/-/state", "/v1/models", "/metrics"])
async def test_nor_may_it_read_or_open_a_websocket(engine: Engine, path: str) -> None:
    socket = [("upgrade", "websocket"), ("connection", "upgrade"), ("sec-websocket-version", "13")]
    async with gateway(engine) as app:
        for headers in ([("origin", EVIL)], [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")]):
            assert (await get(app.url, path, headers)).status == 403
            assert (await get(app.url, path, [*headers, *socket])).status == 501
    assert engine.requests == []


async def test_the_gateways_own_page_a_program_and_a_page_with_a_key_may_ask(
    engine: Engine, tmp_path: Path
) -> None:
    engine.auto(echo_script())
    async with gateway(engine) as app:
        own = [("origin", app.url), ("sec-fetch-site", "same-origin")]
        assert (await post_json(app.url, CHAT, HELLO, own)).status == 200
        host = app.url.removeprefix("http://")
        assert (await post_json(app.url, CHAT, HELLO, [("origin", app.url), ("host", host)])).status == 200
        assert (await post_json(app.url, CHAT, HELLO)).status == 200
    async with gateway(engine, api_keys_file=keys(tmp_path)) as app:
        headers = [("origin", EVIL), ("sec-fetch-site", "cross-site")]
        assert (await post_json(app.url, CHAT, HELLO, headers)).status == 401
        assert (
            await post_json(app.url, CHAT, HELLO, [*headers, ("authorization", f"Bearer {KEY}")])
        ).status == 200
        assert (await get(app.url, "/health", headers)).status == 403
        assert (await get(app.url, "/metrics", headers)).status == 401
    async with gateway(engine, api_keys_file=keys(tmp_path), metrics_key=False) as app:
        assert (await get(app.url, "/metrics", headers)).status == 403


async def test_every_answer_says_that_it_is_no_script_and_is_for_its_own_origin(engine: Engine) -> None:
    engine.auto(echo_script())
    async with gateway(engine) as app:
        answers = [
            await get(app.url, path) for path in ("/", "/-/state", "/health", "/v1/models", "/metrics", "/x")
        ]
        answers += [await post_json(app.url, CHAT, body) for body in (HELLO, HELLO_STREAM, {})]
        async with await Connection.open(app.url) as client:
            await client.send(b"no request of HTTP\r\n\r\n")
            answers.append(await client.read())
    for answer in answers:
        found = [(n.lower(), v) for n, v in answer.head.headers]
        assert found.count(("x-content-type-options", "nosniff")) == 1
        assert found.count(("cross-origin-resource-policy", "same-origin")) == 1
    page = answers[0].head
    assert "frame-ancestors 'none'" in page["content-security-policy"]
    assert page["x-frame-options"] == "DENY"


def seen(app: App, engine: Engine) -> tuple[object, ...]:
    """What a request could have changed."""
    made = app.metrics.samples("generated_tokens_total"), app.metrics.samples("cache_operations_total")
    engines = [(b.name, b.up, b.inflight, b.breaker.state) for b in app.backends.all]
    return engine.generations, len(app.group), str(made), str(engines), app.watchdog.healed


async def test_no_get_and_no_head_changes_anything(engine: Engine) -> None:
    """Each path of the gateway's own table, whatever is added to it, and what passes through."""
    engine.auto(echo_script())
    async with gateway(engine, redis="auto") as app:
        routes = dict(app.routes)
        assert {CHAT, "/-/readers", "/-/state", "/"} <= routes.keys()
        before = seen(app, engine)
        assert routes.pop("/ping") == "GET, POST"  # vLLM's POST looks as its GET does, and changes nothing
        for path, method in [*routes.items(), ("/v1/models/m1", "GET"), ("/v1/models/x", "GET")]:
            for asked in ("GET", "HEAD"):
                async with await Connection.open(app.url) as client:
                    await client.request(asked, path)
                    head = await client.read_head()
                if "GET" in method:
                    assert head.status in (200, 404), (asked, path)
                else:
                    assert (head.status, head["allow"]) == (405, method), (asked, path)
        assert engine.requests == []
        for path in ("/v1/responses/r-1", "/version"):
            await get(app.url, path)
        assert {turn.method for turn in engine.requests} == {"GET"}, "it goes up as what it is"
        assert seen(app, engine) == before

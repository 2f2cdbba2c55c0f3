"""The one reading of a head: what is refused before anything else looks at it, and how."""

from __future__ import annotations

import pytest

from tests.kit.client import Connection, call
from tests.kit.engine import Engine
from tests.kit.running import gateway

GET = b"GET /v1/models HTTP/1.1\r\n"
POST = b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\n"

REFUSED = {
    "a fragment": (b"POST /v1/load_lora_adapter#?x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", 400),
    "a fragment behind a route": (b"GET /v1/models#? HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "a fragment in a query": (b"GET /v1/models?a#b HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "bytes": (b"GET /v1/\xff HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "no host": (GET + b"\r\n", 400),
    "an empty host": (GET + b"Host:\r\n\r\n", 400),
    "two hosts": (GET + b"Host: localhost\r\nHost: localhost\r\n\r\n", 400),
    "a user": (GET + b"Host: user@localhost\r\n\r\n", 400),
    "a path in a host": (GET + b"Host: localhost/p\r\n\r\n", 400),
    "a list of hosts": (GET + b"Host: localhost, b\r\n\r\n", 400),
    "colons": (GET + b"Host: a:b:c\r\n\r\n", 400),
    "a port too large": (GET + b"Host: localhost:65536\r\n\r\n", 400),
    "no host in HTTP/1.0 is none": (b"GET /v1/models HTTP/1.0\r\nHost: a b\r\n\r\n", 400),
    "an empty coding": (POST + b"Transfer-Encoding:\r\nContent-Length: 5\r\n\r\nhello", 400),
    "an empty coding alone": (POST + b"Transfer-Encoding: \r\n\r\n", 400),
    "identity": (POST + b"Transfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello", 400),
    "gzip": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
    "chunked twice": (POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400),
    "two codings": (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "parameters": (POST + b"Transfer-Encoding: chunked;a=b\r\n\r\n0\r\n\r\n", 400),
    "both": (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400),
    "a traced body": (b"TRACE /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello", 400),
    "an unknown expectation": (POST + b"Expect: 200-ok\r\nContent-Length: 5\r\n\r\nhello", 417),
    "HTTP/2.0": (b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n", 505),
    "HTTP/0.9": (b"GET / HTTP/0.9\r\nHost: localhost\r\n\r\n", 400),
}


JSON = b"Content-Type: application/json\r\nContent-Length: 1\r\n\r\nx"  # none, so 400


@pytest.mark.parametrize("step", [None, 1])
@pytest.mark.parametrize("case", REFUSED)
async def test_what_no_rfc_allows_is_refused_once_and_is_the_last(
    engine: Engine, case: str, step: int | None
) -> None:
    data, status = REFUSED[case]
    async with gateway(engine, allowed_hosts=("*",)) as app, await Connection.open(app.url) as client:
        try:
            await client.send(data + b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", step=step)
        except ConnectionError:
            assert step  # it was refused before all of it was sent
        answer = await client.read()
        assert answer.status == status
        assert answer.json()["error"]["type"] == ("invalid_request_error" if status < 500 else "server_error")
        assert answer.head["connection"] == "close"
        assert await client.at_eof()
        assert engine.requests == []


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET http://localhost/v1/models HTTP/1.1\r\nHost: other\r\n\r\n", 200),
        (b"GET http://127.0.0.1:1/health HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        (b"GET HTTP://LOCALHOST HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 204),
        (b"OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n\r\n", 204),
        (b"GET /health HTTP/1.0\r\n\r\n", 200),
        (b"GET /v1/models/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        (b"GET //v1/models// HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        (b"GET /v1/x/../models HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        (b"POST /metrics/../v1/chat/completions/ HTTP/1.1\r\nHost: localhost\r\n" + JSON, 400),
        (b"POST /v1%2Fchat/completions HTTP/1.1\r\nHost: localhost\r\n" + JSON, 400),
        (b"GET /health HTTP/1.1\r\nhost:\tlocalhost:80 \r\nempty:\r\n\r\n", 200),
    ],
)
async def test_what_rfcs_allow_is_read(engine: Engine, data: bytes, status: int) -> None:
    async with gateway(engine) as app, await Connection.open(app.url) as client:
        await client.send(data)
        answer = await client.read()
        assert answer.status == status, answer
        assert status != 204 or "OPTIONS" in answer.head["allow"] or "POST" in answer.head["allow"]
        assert engine.requests == []


@pytest.mark.parametrize(
    ("target", "sent"),
    [
        ("/v1/responses/", "/v1/responses"),
        ("//v1///responses?a=b", "/v1/responses?a=b"),
        ("/v1/x/%2e%2e/responses", "/v1/responses"),
        ("/v1/%72esponses?include[]=x", "/v1/responses?include%5B%5D=x"),
        ("/v1/files%2Fa", "/v1/files/a"),
        ("http://localhost/v1/responses?x", "/v1/responses?x"),
    ],
)
async def test_what_was_checked_is_what_is_sent(engine: Engine, target: str, sent: str) -> None:
    engine.auto(lambda turn: turn.respond(200, b"{}"))
    async with gateway(engine) as app:
        assert (await call(app.url, "POST", target, b"{}")).status == 200
    (turn,) = engine.requests
    assert turn.path == sent


async def test_fields_that_another_server_may_take_for_others_do_not_go_up(engine: Engine) -> None:
    engine.auto(lambda turn: turn.respond(200, b"{}"))
    odd = (
        ("content_length", "9"),
        ("Transfer_Encoding", "chunked"),
        ("sec-websocket-version", "13"),
        ("x-a", "b"),
    )
    async with gateway(engine) as app:
        assert (await call(app.url, "POST", "/v1/x", b"{}", odd)).status == 200
    (turn,) = engine.requests
    assert {name.lower() for name, _ in turn.raw_headers} & {name.lower() for name, _ in odd} == {"x-a"}


SPELLINGS = ["/", "//", "/.", "%2F", "/x/..", "?x=1"]


@pytest.mark.parametrize("more", SPELLINGS)
async def test_every_spelling_of_an_endpoint_has_its_checks(engine: Engine, more: str) -> None:
    body = b'{"model":"m1","max_tokens":50,"messages":[{"role":"user","content":"a"}]}'
    async with gateway(engine, max_tokens_cap=5, max_tokens_action="refuse") as app:
        for path in ("/v1/chat/completions", "//v1/%63hat/completions", "/tokenize/../v1%2Fchat/completions"):
            answer = await call(app.url, "POST", path + more, body, (("content-type", "application/json"),))
            assert (answer.status, answer.json()["error"]["param"]) == (400, "max_tokens")
        assert engine.requests == []

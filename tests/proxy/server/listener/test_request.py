"""A request as handlers see it: every way to ask aiohttp's for its target tells our one reading of it."""

from __future__ import annotations

import re
from pathlib import Path

from proxy.server import respond
from proxy.server.listener.request import AT_HAND, Request
from tests.kit.client import Connection
from tests.kit.running import until
from tests.proxy.server.listener.test_listener import serving

PROXY = Path(__file__).parents[4] / "proxy"


async def test_what_handlers_read_is_the_normal_form() -> None:
    seen: list[tuple[str, str, str, str, bool, bool]] = []

    async def looks(request: Request) -> bool:
        assert isinstance(request, Request)
        seen.append(
            (
                request.method,
                request.path,
                request.raw_path,
                request.host,
                request.keep_alive,
                "x-a" in request.headers,
            )
        )
        return respond.write(request, 200, (), b"")[0].keep_alive

    async with serving(looks) as (url, _), await Connection.open(url) as client:
        await client.send(b"GET //v1/%2e/a%20b/?c=[d] HTTP/1.1\r\nHost: H.example:80\r\nX-A: b\r\n\r\n")
        await client.read()
        await client.send(b"POST http://other:1/x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        await client.read()
    assert seen == [
        ("GET", "/v1/a b", "/v1/a%20b?c=%5Bd%5D", "h.example", True, True),
        ("POST", "/x", "/x", "other", False, False),
    ]


async def test_a_body_that_came_with_its_head_is_there_and_another_is_not() -> None:
    seen: list[tuple[bytes | None, int | None, bool, str | None]] = []

    async def looks(request: Request) -> bool:
        seen.append((request.body, request.content_length, request.body_exists, request.remote))
        whole = b"".join([piece async for piece in request.content.iter_any()])
        return respond.write(request, 200, (), whole)[0].keep_alive

    head = b"POST /x HTTP/1.1\r\nHost: h\r\n"
    async with serving(looks) as (url, _), await Connection.open(url) as client:
        await client.send(head + b"Content-Length: 2\r\n\r\nab")
        assert (await client.read()).body == b"ab"
        await client.send(head + b"Content-Length: 2\r\n\r\na")
        await until(lambda: len(seen) == 2)
        await client.send(b"b")
        assert (await client.read()).body == b"ab"
        await client.send(head + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n")
        assert (await client.read()).body == b"ab"
        large = b"x" * AT_HAND
        await client.send(head + b"Content-Length: %d\r\n\r\n%b" % (AT_HAND, large))
        assert (await client.read()).body == large
        await client.send(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await client.read()).body == b""
    here = "127.0.0.1"
    assert seen == [
        (b"ab", 2, True, here),
        (None, 2, True, here),
        (None, None, True, here),  # two pieces
        (None, AT_HAND, True, here),
        (b"", None, False, here),
    ]


def test_no_module_reads_the_target_another_way() -> None:
    """aiohttp's `rel_url`, `url` and `query` come from the raw target: there is one reading, and it is another."""
    raw = re.compile(r"request\.(?:rel_url|url|query|query_string|match_info|_message|_rel_url)\b|message\.url\b")
    found = [path.name for path in PROXY.rglob("*.py") if raw.search(path.read_text())]
    assert found == []

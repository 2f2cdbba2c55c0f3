"""A request as handlers see it: every way to ask aiohttp's for its target tells our one reading of it."""

from __future__ import annotations

import re
from pathlib import Path

from proxy.server import respond
from proxy.server.listener.request import Request
from tests.kit.client import Connection
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


def test_no_module_reads_the_target_another_way() -> None:
    """aiohttp's `rel_url`, `url` and `query` come from the raw target: there is one reading, and it is another."""
    raw = re.compile(r"request\.(?:rel_url|url|query|query_string|match_info|_message|_rel_url)\b|message\.url\b")
    found = [path.name for path in PROXY.rglob("*.py") if raw.search(path.read_text())]
    assert found == []

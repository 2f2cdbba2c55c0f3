"""An address that speaks another protocol than the engine's URL says: what the operator is told."""

from __future__ import annotations

import asyncio

import pytest

from proxy.upstream.backends import Backend, Backends
from proxy.upstream.health_checks import HealthChecks
from proxy.upstream.http.dial import tls_context
from tests.proxy.upstream.http.test_dial import pool_of

PLAIN = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("scheme", "answer", "known", "told"),
    [
        ("https", PLAIN, False, "TLS failed (WRONG_VERSION_NUMBER). Does it speak TLS? Try http://."),
        ("https", PLAIN, True, "TLS failed (WRONG_VERSION_NUMBER)."),
        ("http", b"", False, "before it answered. Is it HTTP? For TLS write https://."),
        ("http", b"", True, "before it answered."),
        ("http", b"SSH-2.0-OpenSSH_9.6\r\n", False, "status line. Is it HTTP? For TLS write https://."),
        ("http", b"HTTP/1.1 200 OK\r\nno field\r\n\r\n", False, "invalid HTTP/1.1 (Invalid header token)."),
    ],
)
async def test_an_engine_that_has_never_listed_models_is_down_with_what_to_look_at(
    scheme: str, answer: bytes, known: bool, told: str
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        engine = Backend(url, pool_of(url, tls=tls_context(insecure=True)), 1)
        engine.models = [{"id": "m1"}] if known else []
        await HealthChecks(Backends([engine])).check()
        engine.pool.close()
    assert engine.up is False
    assert engine.detail.endswith(told)

"""A body that passes through and is read in another process: it is checked there, and admitted once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy.server.context import RequestContext
from proxy.wire.http.media_type import Media
from tests.kit.clock import virtual
from tests.kit.gateway_stage import Asked, Stage
from tests.kit.wire_end import turns

PATH = "/v1/responses"
BODY = b'{"model": "m1", "input": "hello"}'
EMBEDDED = b'{"model": "m1", "messages": []}'


class Large:
    """Reads bodies over `inline` bytes that are heavy."""

    def __init__(self, inline: int, heavy: bool) -> None:
        self.inline, self._heavy = inline, heavy
        self.read: list[bytes] = []
        self.looked_at: list[bytes] = []

    def heavy(self, body: bytes) -> bool:
        return self._heavy

    async def embeds_chat(self, context: RequestContext, body: bytes) -> bool:
        self.looked_at.append(body)
        return True

    async def raw(self, context: RequestContext, media: Media, body: bytes) -> tuple[bytes, None, bool]:
        assert media.kind == "json"
        self.read.append(body)
        return b'{"read": "elsewhere"}', None, False


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize(
    ("inline", "heavy", "elsewhere"),
    [(len(BODY), True, False), (len(BODY) - 1, True, True), (len(BODY) - 1, False, False)],
)
@virtual
async def test_a_heavy_body_is_read_elsewhere_and_admitted(
    limited: bool, inline: int, heavy: bool, elsewhere: bool
) -> None:
    admitted: list[int] = []

    async def admits(context: RequestContext, *passed: Any) -> None:
        admitted.append(len(passed))

    large = Large(inline, heavy)
    stage = Stage(large=large, admission=admits if limited else None)
    task = stage.handle(Asked(PATH, BODY))
    await turns()
    (flight,) = stage.flights
    assert large.read == [BODY] * elsewhere
    assert flight.spec.body == (b'{"read": "elsewhere"}' if elsewhere else BODY)
    assert admitted == ([0 if elsewhere else 1] if limited else [])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    stage.end()


@virtual
async def test_without_a_body_nothing_is_read_elsewhere() -> None:
    large = Large(0, True)
    stage = Stage(large=large)
    task = stage.handle(Asked(PATH, b"", "GET"))
    await turns()
    assert (large.read, [flight.spec.body for flight in stage.flights]) == ([], [b""])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    stage.end()


@pytest.mark.parametrize(
    ("inline", "heavy", "elsewhere"),
    [(len(EMBEDDED), True, False), (len(EMBEDDED) - 1, True, True), (len(EMBEDDED) - 1, False, False)],
)
@virtual
async def test_a_heavy_embedding_of_messages_is_found_and_read_elsewhere(
    monkeypatch: pytest.MonkeyPatch, inline: int, heavy: bool, elsewhere: bool
) -> None:
    here: list[bytes] = []

    def embeds_chat(body: bytes) -> bool:
        here.append(body)
        return True

    monkeypatch.setattr("proxy.server.handlers.generation.embeds_chat", embeds_chat)
    large = Large(inline, heavy)
    stage = Stage(large=large)
    task = stage.handle(Asked("/v1/embeddings", EMBEDDED))
    await turns()
    (flight,) = stage.flights
    assert (here, large.looked_at) == (([], [EMBEDDED]) if elsewhere else ([EMBEDDED], []))
    assert large.read == [EMBEDDED] * elsewhere
    assert flight.spec.path == "/v1/embeddings"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    stage.end()

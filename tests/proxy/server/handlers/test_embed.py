"""The handler of `/embed` with given steps: when the answer is the engine's, when a stub, when an error."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from proxy.config.settings import Settings
from proxy.errors import Code, GatewayError
from proxy.flights.flight import Flight, Subscriber
from proxy.flights.phase import Phase
from proxy.flights.sharing import Sharing, sharing_of
from proxy.flights.spec import FlightSpec, Head, Mode
from proxy.server.context import RequestContext
from proxy.server.handlers.embed import EmbedHandler
from proxy.server.handlers.embed_stub import names_model, stub_vector
from proxy.wire.openai import ApiRequest, decode

ASK = decode("embeddings", b'{"model":"m","input":"x"}')
MODEL = b'{"error":{"message":"no such","param":"model"}}'


class Asked:
    """One request to `/embed`, whose flight ends as a test says."""

    def __init__(self, *, stub: bool, refuses: GatewayError | None = None) -> None:
        self.flight = Flight(FlightSpec("POST", "/", b"", Mode.WHOLE, "r", api_request=ASK))
        self.reader = Subscriber(self.flight)
        self.flight.subscribers.add(self.reader)
        self.refuses = refuses
        self.replies: list[tuple[int, Any, Any]] = []
        me = cast(Any, self)  # body reader, generation and responder in one
        self.handler = EmbedHandler(Settings(embed_stub=stub), me, me, None, me)

    async def read(self, *facts: Any, json: bool = True) -> Any:
        return ASK if len(facts) == 3 else b""

    def sharing(self, context: RequestContext, api_request: ApiRequest) -> Sharing:
        return sharing_of(api_request, "auto")

    def attach(self, context: RequestContext, api_request: ApiRequest, share: Sharing) -> Subscriber:
        if self.refuses is not None:
            raise self.refuses
        return self.reader

    async def settle(self, context: RequestContext, body: bytes, reader: Subscriber) -> tuple[Subscriber, bool]:
        return reader, False

    async def body(self, call: RequestContext, reader: Subscriber) -> Any:
        return "the engine's"

    async def reply(self, call: RequestContext, status: int, answer: object, headers: Any = ()) -> Any:
        self.replies.append((status, answer, headers))
        return "ours"

    async def answered(self, head: Head | None, body: bytes = b"", error: GatewayError | None = None) -> Any:
        task = asyncio.ensure_future(self.handler(cast(RequestContext, None)))
        await asyncio.sleep(0)
        if not self.refuses:
            for phase in (Phase.CONNECTING, Phase.PREFILL, Phase.STREAMING):
                self.flight.enter(phase)
            self.reader.wake()
            await asyncio.sleep(0)
            assert not task.done(), "it has not ended"
            if error is not None:
                self.flight.fail(error)
            else:
                self.flight.append_body(body)
                self.flight.land(head)
        return await task


@pytest.mark.parametrize(
    ("status", "body", "stub", "answer"),
    [
        (200, b"{}", True, "the engine's"),
        (200, b"{}", False, "the engine's"),
        (404, b"{}", True, "ours"),
        (405, b"", True, "ours"),
        (501, b"", True, "ours"),
        (404, MODEL, True, "the engine's"),
        (400, b"{}", True, "the engine's"),
        (404, b"{}", False, Code.EMBEDDINGS_UNAVAILABLE),
    ],
)
async def test_a_stub_is_for_engines_that_cannot_embed(status: int, body: bytes, stub: bool, answer: Any) -> None:
    asked = Asked(stub=stub)
    if isinstance(answer, Code):
        with pytest.raises(GatewayError) as caught:
            await asked.answered(Head(status), body)
        assert caught.value.code is answer
        assert "--backend" in caught.value.message
    else:
        assert await asked.answered(Head(status), body) == answer
    assert asked.replies == ([(200, stub_vector(ASK), [("x-gateway-stub", "1")])] if answer == "ours" else [])
    assert asked.reader.whole


@pytest.mark.parametrize("when", ["joining", "waiting"])
@pytest.mark.parametrize(
    ("code", "stub", "stubbed"),
    [
        (Code.NO_BACKEND, True, True),
        (Code.NO_BACKEND, False, False),
        (Code.QUEUE_FULL, True, False),
        (Code.QUEUE_SHARE, True, False),
        (Code.QUEUE_TIMEOUT, True, False),
        (Code.DEADLINE_UNMEETABLE, True, False),
    ],
)
async def test_where_there_are_engines_but_not_now_no_stub_answers(
    when: str, code: Code, stub: bool, stubbed: bool
) -> None:
    error = GatewayError(code, "why")
    asked = Asked(stub=stub, refuses=error if when == "joining" else None)
    if stubbed:
        assert await asked.answered(None, error=error) == "ours"
    else:
        with pytest.raises(GatewayError) as caught:
            await asked.answered(None, error=error)
        assert caught.value is error
    assert bool(asked.replies) is stubbed


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (MODEL, True), (b'{"error":{"param":"input"}}', False), (b'{"error":null}', False), (b"{}", False),
        (b"no", False), (b'{"error":{"param":"\xff"}}', False), (b"[" * 100_000, False),
        (b'{"error":"model"}', False),
    ],
)  # fmt: skip
def test_whether_a_404_is_about_the_model(body: bytes, named: bool) -> None:
    assert names_model([body[:5], body[5:]]) is named


def test_a_stub_says_what_it_is() -> None:
    stub = stub_vector(ASK)
    assert (stub["stub"], stub["object"], stub["model"]) == (True, "list", "m")
    assert stub["data"] == [{"object": "embedding", "index": 0, "embedding": [0.0] * 8}]
    assert stub["usage"] == {"prompt_tokens": 0, "total_tokens": 0}

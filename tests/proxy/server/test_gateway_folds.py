"""A client that wants one body and waits for a stream: its fold, or the engine's own body where it does not fold;
and what large requests, limits and checks are asked on the way."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy.config.settings import Settings
from proxy.errors import Code, GatewayError
from proxy.flights.flight import SLICE_BYTES, Flight
from proxy.flights.memory import Memory
from proxy.flights.spec import Mode
from tests.kit.clock import virtual
from tests.kit.gateway_stage import BODY, CHAT, STREAM, Asked, Stage
from tests.kit.wire_end import turns
from tests.proxy.server.test_gateway_requests import FRAME

ODD = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"odd":[1]}]}\n\n'


async def waiting(stage: Stage) -> tuple[Flight, list[asyncio.Task[bool]], Asked, Asked]:
    """One that streams, and one that waits for the same in one body."""
    first, second = Asked(CHAT, STREAM), Asked()
    tasks = [stage.handle(first)]
    await turns()
    tasks.append(stage.handle(second))
    await turns()
    (flight,) = stage.flights
    assert len(flight.subscribers) == 2
    return flight, tasks, first, second


@pytest.mark.parametrize("early", [False, True])
@virtual
async def test_what_does_not_fold_is_asked_for_once_more_in_one_body(early: bool) -> None:
    told: list[tuple[object, ...]] = []
    stage = Stage(unfolded=lambda flight, why: told.append((flight, str(why))))
    flight, tasks, _, second = await waiting(stage)
    flight.frames([ODD])
    if early:
        flight.unfold()
        await turns()
    else:
        flight.land()
        await turns()
    assert len(stage.flights) == 2
    fresh = stage.flights[1]
    assert (fresh.spec.mode, fresh.spec.fold) == (Mode.WHOLE, False)
    assert [reader.verdict for reader in fresh.subscribers] == ["miss"]
    assert len(flight.subscribers) == (1 if early else 0)
    assert bool(told) is not early
    fresh.append_body(b'{"own": 1}')
    fresh.land()
    if early:
        flight.land()
    assert await asyncio.gather(*tasks) == [True, True]
    assert second.sent.endswith(b'{"own": 1}')
    assert b"x-gateway-cache: miss" in second.sent
    stage.end()


@virtual
async def test_a_body_waits_for_the_end_of_its_stream_and_is_its_fold() -> None:
    stage = Stage()
    flight, tasks, _, second = await waiting(stage)
    flight.frames([FRAME])
    await turns()
    assert second.sent == b""
    flight.folded = b'{"folded": 1}'
    flight.land()
    assert await asyncio.gather(*tasks) == [True, True]
    assert second.sent.endswith(b'{"folded": 1}')
    stage.end()


class Large:
    """Where large requests are read and large streams folded."""

    inline = len(BODY) - 1

    def __init__(self, *, heavy: bool = True) -> None:
        self.told: list[object] = []
        self._heavy = heavy

    def heavy(self, body: bytes) -> bool:
        self.told.append("heavy")
        return self._heavy

    async def read(self, call: Any, endpoint: str, body: bytes) -> Any:
        self.told.append(endpoint)
        raise GatewayError(Code.NOT_FOUND, "read elsewhere")

    def folds(self, flight: Flight) -> bool:
        self.told.append("folds")
        return True

    async def fold(self, flight: Flight) -> None:
        flight.folded = b'{"elsewhere": 1}'


@pytest.mark.parametrize(
    ("inline", "heavy", "told"),
    [(len(BODY), True, []), (len(BODY) - 1, True, ["heavy", "chat"]), (len(BODY) - 1, False, ["heavy"])],
)
@virtual
async def test_a_large_request_is_read_elsewhere(inline: int, heavy: bool, told: list[str]) -> None:
    large = Large(heavy=heavy)
    large.inline = inline
    stage, asked = Stage(large=large), Asked()
    task = stage.handle(asked)
    await turns()
    assert large.told == told
    assert (b"read elsewhere" in asked.sent) is (told[-1:] == ["chat"])
    assert len(stage.flights) == (0 if told[-1:] == ["chat"] else 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    stage.end()


@virtual
async def test_a_large_stream_is_folded_elsewhere_and_a_body_is_not() -> None:
    large = Large(heavy=False)
    stage = Stage(large=large)
    flight, tasks, _, second = await waiting(stage)
    flight.frames([FRAME])
    flight.land()
    await asyncio.gather(*tasks)
    assert second.sent.endswith(b'{"elsewhere": 1}')
    assert large.told.count("folds") == 1
    stage.end()
    alone, asked = Stage(large=large), Asked()
    task = alone.handle(asked)
    await turns()
    alone.flights[0].append_body(b"{}")
    alone.flights[0].land()
    await task
    assert large.told.count("folds") == 1
    alone.end()


class Admits:
    """The limits: what they were asked."""

    def __init__(self) -> None:
        self.told: list[str] = []

    async def __call__(self, call: Any, *passed: object) -> None:
        self.told.append("body")

    async def head(self, call: Any) -> None:
        self.told.append("head")


@virtual
async def test_limits_are_asked_once_and_before_a_body_that_has_not_come() -> None:
    for slow in (False, True):
        admits, memory = Admits(), Memory(10**7)
        stage, asked = Stage(admission=admits, memory=memory), Asked(CHAT, STREAM)
        held: list[int] = []
        if slow:
            pieces = [STREAM, b""]

            async def readany(
                pieces: list[bytes] = pieces, memory: Memory = memory, held: list[int] = held
            ) -> bytes:
                held.append(memory.kinds.get("uploads", 0))
                return pieces.pop(0)

            asked.body = None
            asked.content = cast(
                Any, SimpleNamespace(is_eof=lambda: False, exception=lambda: None, readany=readany)
            )
        task = stage.handle(asked)
        await turns()
        (flight,) = stage.flights
        assert admits.told == (["head", "body"] if slow else ["body"])
        assert held == [2 * len(STREAM)] * (2 if slow else 0)
        flight.frames([FRAME])
        flight.land()
        await task
        assert (admits.told.count("body"), memory.held) == (1, 0)
        stage.end()


@virtual
async def test_a_second_asking_is_not_charged_again() -> None:
    admits = Admits()
    stage = Stage(admission=admits)
    flight, tasks, _, _ = await waiting(stage)
    flight.frames([ODD])
    flight.unfold()
    await turns()
    assert admits.told == ["body", "body"]
    for each in stage.flights:
        if each.mode is Mode.WHOLE:
            each.append_body(b"{}")
        each.land()
    await asyncio.gather(*tasks)
    stage.end()


@virtual
async def test_models_are_limited_too_and_health_is_not() -> None:
    admits = Admits()
    stage = Stage(admission=admits)
    for path in ("/health", "/ready", "/v1/models"):
        await stage.answered(Asked(path, b"", "GET"))
    assert admits.told == ["body"]


@virtual
async def test_what_is_behind_a_url_is_not_stored_and_a_fresh_answer_is_made() -> None:
    image = b'[{"type": "image_url", "image_url": {"url": "http://h/x.png"}}]'
    for body, storable in ((BODY, True), (BODY.replace(b'"hi"', image), False)):
        stage = Stage()
        task = stage.handle(Asked(CHAT, body, cache_control="no-cache"))
        await turns()
        (flight,) = stage.flights
        assert (flight.spec.storable, flight.spec.fresh) == (storable, True)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        stage.end()


@virtual
async def test_an_embedding_is_one_body_that_the_embedder_may_take() -> None:
    body = b'{"model": "m", "input": "a", "stream": true}'
    for takes in (True, False):
        told: list[object] = []

        def take(flight: Flight, scope: bytes, told: list[object] = told, takes: bool = takes) -> bool:
            told.append(scope)
            return takes

        embedder = SimpleNamespace(take=take, joined=told.append)
        stage = Stage(Settings(), embedder=embedder)
        tasks = [stage.handle(Asked("/v1/embeddings", body))]
        await turns()
        tasks.append(stage.handle(Asked("/v1/embeddings", body)))
        await turns()
        (flight,) = stage.group.live
        assert stage.flights == ([] if takes else [flight])
        assert (flight.spec.mode, flight.spec.usage_added) == (Mode.WHOLE, False)
        assert told[0] == b""
        assert [reader.verdict for reader in told[1:]] == ["attached"]  # type: ignore[attr-defined]
        flight.append_body(b"{}")
        flight.land()
        assert await asyncio.gather(*tasks) == [True, True]
        stage.end()
    off = Stage(embedder=SimpleNamespace(take=None, joined=None))
    task = off.handle(Asked("/v1/embeddings", body, x_gateway_share="off"))
    await turns()
    assert len(off.flights) == 1  # what shares nothing goes to an engine as it came
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    off.end()


@virtual
async def test_a_large_body_of_a_flight_is_charged_to_none_of_its_readers() -> None:
    memory, seen = Memory(10**7), list[int]()
    stage, asked = Stage(memory=memory), Asked()

    async def drain() -> None:
        seen.append(memory.kinds.get("answers", 0))

    asked.drain = drain  # type: ignore[method-assign]
    task = stage.handle(asked)
    await turns()
    (flight,) = stage.flights
    flight.append_body(b"x" * (SLICE_BYTES + 1))
    flight.land()
    assert await task
    assert seen == [0, 0]
    assert asked.sent.endswith(b"x" * (SLICE_BYTES + 1))
    stage.end()

"""Owns an Embedder on a stage: a loop that turns and an engine that answers when told, and what clients get.
Must not know what a test checks.
Called by the tests of the embedder."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from functools import partial
from hashlib import blake2b
from typing import Any, cast

from proxy.errors import Code, GatewayError
from proxy.flights.embeddings.embedder import Embedder
from proxy.flights.embeddings.metrics import EmbedMetrics
from proxy.flights.flight import Flight, Subscriber
from proxy.flights.group import FlightGroup
from proxy.flights.key import Keyer
from proxy.flights.memory import Memory
from proxy.flights.phase import Phase
from proxy.flights.spec import FlightSpec, Head, Mode, QueueState
from proxy.redis.cache import Cache
from proxy.telemetry.metrics import Metrics
from proxy.wire.openai import decode

POISON = "poison"


class Loop:
    """Turns when it is told to. It runs tasks too: the steps that they are ready for are in `steps`."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []
        self.steps: deque[Callable[[], None]] = deque()
        self.now = 0.0
        self.later: list[Callable[[], None]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        self.later.append(call)

    def call_soon(self, call: Callable[..., None], *given: Any, context: Context | None = None) -> None:
        """A task gives its context."""
        if context is None:
            self.soon.append(call)
        else:
            self.steps.append(partial(context.run, call, *given))

    def create_task(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return asyncio.Task(coroutine, loop=cast("Any", self))

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=cast("Any", self))

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        raise AssertionError(context)

    def step(self, most: int = 1000) -> None:
        """Run the tasks until each waits, or so many of their steps."""
        asyncio._set_running_loop(cast("Any", self))
        try:
            while self.steps and most > 0:
                most -= 1
                self.steps.popleft()()
        finally:
            asyncio._set_running_loop(None)

    def turn(self) -> None:
        self.step()
        while self.soon:
            self.soon.pop(0)()
            self.step()
        self.soon, self.later = self.later, []


def one(model: str | None) -> int:
    return 1


class Stage:
    """An Embedder, what it has sent, and what clients wait for."""

    def __init__(self, *, memory: Memory | None = None, cache: Cache | None = None, **bounds: Any) -> None:
        self.loop = Loop()
        self.group = FlightGroup()
        self.metrics = Metrics()
        self.sent: list[Flight] = []
        self.arrays: list[list[Any]] = []
        self.refuses: GatewayError | None = None
        self.memory = memory or Memory(1 << 40)
        self.faults: list[str] = []
        self.embedder = Embedder(
            group=self.group,
            submit=self._submit,
            cache=cache,
            keyer=Keyer(),
            metrics=self.metrics,
            counts=EmbedMetrics(self.metrics.registry),
            loop=cast("Any", self.loop),
            memory=self.memory,
            on_fault=lambda where, error: self.faults.append(f"{where}: {error!r}"),
            **(
                dict[str, Any](items=4, tokens=1000, window=0.0, calls=one, mixes=bool, limit=100, max_batch=64)
                | bounds
            ),
        )

    def _submit(self, flight: Flight) -> None:
        if self.refuses is not None:
            self.group.remove(flight)
            raise self.refuses
        flight.on_abandoned = self._cancelled
        flight.enter(Phase.CONNECTING)
        flight.enter(Phase.PREFILL)
        self.sent.append(flight)
        self.arrays.append(self.inputs(flight))

    def _cancelled(self, flight: Flight) -> None:
        self.sent.remove(flight)
        self.group.remove(flight)
        flight.cancel()

    def inputs(self, flight: Flight) -> list[Any]:
        given_ = json.loads(flight.spec.body)["input"]
        return given_ if isinstance(given_, list) and not isinstance(given_[0], int) else [given_]

    def ask(
        self,
        given_: Any,
        *,
        scope: bytes = b"",
        fresh: bool = False,
        caller: str = "",
        priority: int = 1,
        **fields: Any,
    ) -> Subscriber:
        body = json.dumps({"model": "m", "input": given_, **fields}).encode()
        api_request = decode("embeddings", body)
        spec = FlightSpec(
            "POST",
            "/v1/embeddings",
            body,
            Mode.WHOLE,
            "r",
            api_request=api_request,
            model="m",
            key=None,
            fresh=fresh,
        )
        flight = self.group.launch(spec, QueueState(owner=caller, priority=priority))
        reader = self.group.attach(flight, usage=True, whole=True, owner=caller)
        assert self.embedder.take(flight, scope)
        return reader

    def answer(self, status: int | None = None, *, poison: int = 400) -> None:
        """The oldest call under way: as an engine that likes no poison, with a status, or (0) not at all."""
        flight = self.sent.pop(0)
        items = self.inputs(flight)
        self.group.remove(flight)
        if status == 0:
            flight.fail(GatewayError(Code.UPSTREAM_UNREACHABLE, "It is gone."))
        else:
            status = status or (poison if POISON in items else 200)
            flight.append_body(self.body(items) if status == 200 else b'{"error":{"message":"no"}}')
            flight.land(Head(status, (("content-type", "application/json"),)))
        self.loop.step()

    def close(self) -> None:
        """Close the embedder, and let its arrays end."""
        self.embedder.close()
        self.loop.step()

    @staticmethod
    def body(items: list[Any]) -> bytes:
        data = [{"index": n, "embedding": vector(item)} for n, item in enumerate(items)]
        tokens = sum(map(cost, items))
        made = {"id": "e", "object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": tokens}}
        return json.dumps(made).encode()


def vector(item: Any) -> list[Any]:
    return [int.from_bytes(blake2b(json.dumps(item).encode(), digest_size=6).digest()), 0.034513987600803375]


def cost(item: Any) -> int:
    return 3 + len(item)


def told(reader: Subscriber) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(b"".join(reader.flight.log))
    return body


def vectors(reader: Subscriber) -> list[Any]:
    data = told(reader)["data"]
    assert [datum["index"] for datum in data] == list(range(len(data)))
    return [datum["embedding"] for datum in data]

"""Owns a Flight's way to engines that are in memory: connections, pools and leases that do what a test says.
Must not know what a test checks.
Called by the tests of journeys."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import cast

from proxy.errors import GatewayError
from proxy.flights.continuing import Continuations
from proxy.flights.exchange import Exchange, ExchangeContext
from proxy.flights.flight import Flight
from proxy.flights.ingest import StreamLimits, Timeouts
from proxy.flights.spec import FlightSpec, Mode
from proxy.telemetry.metrics import Metrics
from proxy.upstream.backends import Backend, Backends
from proxy.upstream.http.connection import Receiver
from proxy.upstream.http.pool import Pool
from proxy.upstream.retry import Budget, RetryRules

SSE = [("content-type", "text/event-stream")]


class Wire:
    """A connection in memory: what it was asked, and how it was left."""

    def __init__(self) -> None:
        self.received = False
        self.receiver: Receiver | None = None
        self.asked = 0
        self.kept: bool | None = None  # None: not released
        self.held: list[bool] = []

    def send(self, request: bytes, receiver: Receiver) -> None:
        assert self.receiver is None, "two exchanges at once"
        self.receiver, self.received = receiver, False
        self.asked += 1

    def release(self, receiver: Receiver, *, content: bool) -> None:
        if receiver is self.receiver:
            self.kept, self.receiver = content, None

    def abort(self) -> None:
        self.kept, self.receiver = False, None

    def throttle(self, receiver: Receiver, hold: bool) -> None:
        assert receiver is self.receiver
        self.held.append(hold)

    # -- what the engine does

    def head(self, status: int = 200, headers: Iterable[tuple[str, str]] = SSE) -> None:
        self.received = True
        if self.receiver is not None:
            self.receiver.head(status, list(headers))

    def body(self, data: bytes) -> None:
        self.received = True
        if self.receiver is not None:
            self.receiver.body(data)

    def end(self) -> None:
        """The response is complete: as a real connection does, it leaves before its receiver is called."""
        receiver, self.receiver = self.receiver, None
        if receiver is not None:
            receiver.end()

    def lose(self, error: GatewayError) -> None:
        receiver, self.receiver = self.receiver, None
        if receiver is not None:
            receiver.lost(error)


class MemoryEngine:
    """A pool in memory. A new connection is made when the test says so."""

    def __init__(self) -> None:
        self.idle: list[Wire] = []
        self.given: list[Wire] = []
        self.wires: list[Wire] = []  # every connection that was handed out
        self.dials: list[asyncio.Future[Wire]] = []
        self.refuses: Exception | None = None  # to write the request
        self.closed = False

    def take(self) -> Wire | None:
        wire = self.idle.pop() if self.idle else None
        if wire is not None:
            self.wires.append(wire)
        return wire

    async def connect(self) -> Wire:
        self.dials.append(asyncio.get_running_loop().create_future())
        wire = await self.dials[-1]
        self.wires.append(wire)
        return wire

    def release(self, wire: Wire) -> None:
        self.given.append(wire)

    def request(self, method: str, path: str, headers: Iterable[tuple[str, str]], body: bytes) -> bytes:
        if self.refuses is not None:
            raise self.refuses
        return body

    def close(self) -> None:
        self.closed = True

    @property
    def wire(self) -> Wire:
        return self.wires[-1]


class Trip:
    """One Flight on its way, with `engines` that are scripts, and all that must be left as it was."""

    def __init__(
        self,
        engines: int = 1,
        *,
        kept: int = 0,
        key: bytes | None = b"k",
        retry: RetryRules | None = None,
        budget: Budget | None = None,
        spec: FlightSpec | None = None,
        room: int = 1,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.engines = [MemoryEngine() for _ in range(engines)]
        self.backends = Backends(
            [Backend(f"e{n}", cast(Pool, engine), room) for n, engine in enumerate(self.engines)],
            clock=loop.time,
        )
        self.engines[0].idle = [Wire() for _ in range(kept)]
        self.metrics = Metrics()
        self.tasks: set[asyncio.Task[None]] = set()
        self.arrivals: list[GatewayError | None] = []
        limits = StreamLimits()
        self.faults: list[BaseException] = []
        self.watch = Timeouts(limits, loop, self.fault)
        self.budget = budget or Budget()
        self.continuations = Continuations(loop.call_later, loop.time, keep_alive=0.0)
        exchange_context = ExchangeContext(
            backends=self.backends,
            timeouts=self.watch,
            metrics=self.metrics,
            later=loop.call_later,
            fault=self.fault,
            retry=retry or RetryRules(),
            budget=self.budget,
            continuations=self.continuations,
            jitter=lambda: 0.5,
        )
        self.flight = Flight(spec or FlightSpec("POST", "/", b"{}", Mode.STREAM, "r", key=key), loop.time)
        lease = self.backends.acquire(None)
        assert lease is not None
        self.exchange = Exchange(
            self.flight, lease, exchange_context, self, self.flight, exchange_context.retry.retries
        )

    def parked(self, exchange: Exchange) -> None:
        """It waits for its place."""

    def own(self, task: asyncio.Task[None]) -> None:
        self.tasks.add(task)

    def requeue(self, exchange: Exchange) -> bool:
        """There is no queue."""
        return False

    def fault(self, where: str, error: BaseException) -> None:
        self.faults.append(error)

    def arrived(self, exchange: Exchange, error: GatewayError | None) -> None:
        """As the scheduler does."""
        assert exchange is self.exchange
        self.arrivals.append(error)
        if error is not None and not self.flight.ended:
            self.flight.fail(error)
        exchange.lease.release()

    def cancel(self) -> None:
        """As the scheduler does."""
        if not self.flight.ended:
            self.flight.cancel()
        self.exchange.cancel()
        self.exchange.lease.release()

    async def turn(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0)

    async def dialled(self, engine: int = 0, *, error: Exception | None = None) -> Wire:
        """The connection that is being made is there, or cannot be."""
        await self.turn()
        dial = self.engines[engine].dials[-1]
        wire = Wire()
        if error is None:
            dial.set_result(wire)
        else:
            dial.set_exception(error)
        await self.turn()
        return wire

    @property
    def inflight(self) -> list[int]:
        return [backend.inflight for backend in self.backends.all]

    async def left_nothing(self) -> None:
        await asyncio.gather(*self.tasks, return_exceptions=True)
        assert self.inflight == [0] * len(self.engines)
        assert len(self.watch) == 0
        assert self.flight.throttle is None
        assert all(wire.receiver is None for engine in self.engines for wire in engine.wires)
        self.watch.close()

    def retries(self) -> dict[str, int]:
        """How often it was asked again, by cause; `denied` by the budget."""
        lines = self.metrics.render("text/plain")[0].decode().splitlines()
        found = {line.split('"')[1]: int(float(line.split()[-1])) for line in lines if "retries_total{" in line}
        found["denied"] = next(int(float(n.split()[-1])) for n in lines if n.startswith("gateway_retries_denied"))
        return {cause: count for cause, count in found.items() if count}

    def counted(self, backend: str) -> tuple[int, int]:
        """Requests and failures of an engine, as Prometheus is told."""
        body, _ = self.metrics.render("text/plain")
        ours = [line for line in body.decode().splitlines() if f'backend="{backend}"' in line]
        sums = [
            sum(int(float(line.split()[-1])) for line in ours if line.startswith(f"gateway_upstream_{what}_total"))
            for what in ("requests", "errors")
        ]
        return sums[0], sums[1]

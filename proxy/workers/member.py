"""A worker's side: what it takes from the supervisor, and what it reports."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

from proxy.config import Settings
from proxy.flights.queue import PoolQueue
from proxy.telemetry import PREFIX, Family, Metrics, rendered, summed
from proxy.upstream import News
from proxy.workers import channel
from proxy.workers.admission import Engine
from proxy.workers.channel import (
    Allot,
    Channel,
    Collect,
    Collected,
    Hello,
    Leave,
    Ready,
    Report,
    Served,
    ToWorker,
)

TICK: Final = 0.02
"""Seconds between two looks at what this worker wants while requests queue here. The first look is at once."""
BEAT: Final = 0.25  # seconds between two reports of the same
ASK_SECONDS: Final = 4.0  # for the metrics of all; the page is of this worker alone where they do not come


STEP: Final = 0.25
"""Seconds between the turns of workers to probe a breaker: much more than a message takes."""
MAX_DETAIL: Final = 1000  # characters of a message about an engine


class Member:
    """One worker of a gateway."""

    def __init__(self, link: Channel[ToWorker], hello: Hello) -> None:
        self.hello = hello
        self.left = asyncio.Event()
        """It has lost its place to another worker."""
        self.orphan = asyncio.Event()
        """The supervisor is gone."""
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._engines: Callable[[], Iterable[Engine]] = tuple
        self._queues: Callable[[], Sequence[PoolQueue]] = tuple
        self._serving: Callable[[str | None], list[str]] = lambda pool: []
        self._charge: Callable[[str | None, int, str, int], None] = lambda *of: None
        self._room: Callable[[], None] = lambda: None
        self._hear: Callable[[str, News, float, str], None] = lambda *news: None
        self._looking = False
        self._wanted = asyncio.Event()
        self._metrics: Metrics | None = None
        self._applied = 0
        self._places: dict[str, int] = {}
        self._told: Report | None = None
        self._told_at = 0.0
        self._asked: dict[int, asyncio.Future[list[list[Family]]]] = {}
        self._asks = 0
        self._collecting: asyncio.Task[list[Family]] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<Member {self.hello.index} of {self.hello.workers} places={self._places}>"

    @classmethod
    async def join(cls, fd: int) -> Member:
        """Connect to the supervisor by the inherited descriptor. Raises ConnectionError where it is gone."""
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        link = await channel.to_supervisor(sock)
        hello = await link.receive()
        if not isinstance(hello, Hello):
            raise ConnectionError("the supervisor is gone")
        return cls(link, hello)

    def part_of(self, settings: Settings) -> Settings:
        """The settings of this worker: limits of the whole gateway are divided."""
        index, workers = self.hello.index, self.hello.workers
        return replace(
            settings,
            max_connections=part(settings.max_connections, index, workers),
            queue_limit=part(settings.queue_limit, index, workers),
        )

    def sockets(self) -> tuple[list[socket.socket], list[socket.socket]]:
        """The inherited sockets: clients' and operators'."""
        return (
            [socket.socket(fileno=fd) for fd in self.hello.listen],
            [socket.socket(fileno=fd) for fd in self.hello.admin],
        )

    def attach(
        self,
        *,
        engines: Callable[[], Iterable[Engine]],
        queues: Callable[[], Sequence[PoolQueue]],
        serving: Callable[[str | None], list[str]],
        charge: Callable[[str | None, int, str, int], None],
        room: Callable[[], None],
        hear: Callable[[str, News, float, str], None],
        metrics: Metrics,
    ) -> None:
        """Begin: no request goes to an engine before the supervisor has allotted a permit. `engines`: with those
        that are leaving; `queues`: the
        requests queued for an engine; `serving`: the engines of a pool; `charge` is called with pool, class and
        tenant, and the tokens that other workers have served it, `room` when there may be an engine, `hear` with
        what other workers `tell`."""
        self._engines, self._queues, self._serving = engines, queues, serving
        self._charge, self._room, self._hear, self._metrics = charge, room, hear, metrics
        for engine in engines():
            engine.allot(0)
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._report())]

    @property
    def step(self) -> float:
        """Seconds after the worker that opened a breaker before this one probes it."""
        return STEP * (1 + self.hello.index)

    def tell(self, name: str, news: News, seconds: float, detail: str) -> None:
        """Tell the other workers what this one has found out of an engine."""
        text = detail[:MAX_DETAIL].encode(errors="replace").decode()  # an engine's words may be no Unicode
        self._link.send(channel.Engine(name, news, seconds, text))

    def given_back(self) -> None:
        """Permits that another worker needs have become free: report it in the next turn of the loop."""
        if not self._looking:
            self._looking = True
            self._loop.call_soon(self._look)

    def wanted(self) -> None:
        """Requests queue here, or the engines have changed: look every TICK until they do not."""
        self._wanted.set()

    def ready(self, message: Ready) -> None:
        """It accepts."""
        self._link.send(message)

    async def render(self, metrics: Metrics, accept: str) -> tuple[bytes, str]:
        """The /metrics page of the whole gateway."""
        return rendered(await self.families(metrics), accept)

    async def families(self, metrics: Metrics) -> list[Family]:
        """The metrics of the whole gateway; those of this worker are given. Callers at the same time share one
        collection, so that many of them cost the other workers no more than one."""
        if self._collecting is None or self._collecting.done():
            self._collecting = asyncio.create_task(self._collect(metrics))
        return await asyncio.shield(self._collecting)

    async def _collect(self, metrics: Metrics) -> list[Family]:
        self._asks += 1
        number, own = self._asks, metrics.families()
        answer = self._asked[number] = self._loop.create_future()
        self._link.send(channel.Ask(number, own))
        others: Sequence[Sequence[Family]] = []
        try:
            async with asyncio.timeout(ASK_SECONDS):
                others = await answer
        except TimeoutError:
            pass
        finally:
            del self._asked[number]
        return summed([own, *others], PREFIX)

    async def close(self) -> None:
        """Report the last counts, and stop."""
        tasks = [*self._tasks, *([self._collecting] if self._collecting is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._metrics is not None:
            self._link.send(channel.Metrics(0, self._metrics.families()))
            await self._link.drain()
        self._link.close()

    # -- inside -----------------------------------------------------------------------------------

    async def _receive(self) -> None:
        try:
            while (message := await self._link.receive()) is not None:
                self._handle(message)
        finally:
            self.orphan.set()  # also where a message raised: a worker that hears nothing must not go on

    def _handle(self, message: ToWorker) -> None:
        if isinstance(message, Allot):
            self._apply(message)
        elif isinstance(message, Served):
            for (pool, priority, tenant), tokens in message.tokens:
                self._charge(pool, priority, tenant, tokens)
        elif isinstance(message, channel.Engine):
            self._hear(message.name, message.news, message.seconds, message.detail)
        elif isinstance(message, Collect) and self._metrics is not None:
            self._link.send(channel.Metrics(message.number, self._metrics.families()))
        elif isinstance(message, Collected):
            answer = self._asked.get(message.number)
            if answer is not None and not answer.done():
                answer.set_result(message.families)
        elif isinstance(message, Leave):
            self.left.set()

    def _apply(self, message: Allot) -> None:
        self._applied, self._places = message.number, message.places
        for engine in self._engines():
            engine.allot(message.places.get(engine.name, 0))
            if engine.name in message.short:
                engine.mark_reached()
        self._look()
        self._room()

    async def _report(self) -> None:
        while True:
            self._wanted.clear()
            if self._look():
                await asyncio.sleep(TICK)
                continue
            try:
                async with asyncio.timeout(BEAT):
                    await self._wanted.wait()
            except TimeoutError:
                pass

    def _look(self) -> bool:
        """Report what has changed, or the same once more after BEAT seconds. True: requests queue here."""
        self._looking = False
        queues = [(self._serving(queue.pool), queue) for queue in self._queues()]
        engines, leaving = {}, {}
        for engine in self._engines():
            if engine.leaving:
                engine.allot(0)  # its permits are given back with this report
                leaving[engine.name] = engine.inflight
                continue
            queued = sum(queue.queued for names, queue in queues if engine.name in names)
            engines[engine.name] = (engine.inflight, queued, engine.most)
        self._places = {name: count for name, count in self._places.items() if name in engines}
        report = Report(self._applied, engines, queues, leaving)
        now = self._loop.time()
        if now - self._told_at >= BEAT or self._matters(report):
            self._told, self._told_at = report, now
            self._link.send(report)
        return bool(queues)

    def _matters(self, report: Report) -> bool:
        """Whether the supervisor would act on it: a new engine or limit, one that is leaving, an allotment
        applied, requests that wait for a permit, or permits given back."""
        told = self._told
        if told is None or told.number != report.number or told.engines.keys() != report.engines.keys():
            return True
        if told.leaving != report.leaving:
            return True  # permits of its last requests are given back
        for name, (inflight, queued, most) in report.engines.items():
            place = self._places.get(name, 0)
            was = told.engines[name]
            if most != was[2] or (queued and inflight >= place and (inflight, queued) != was[:2]):
                return True
            if was[0] > place and inflight < was[0]:
                return True  # less than before of what it must give back
        return False


def part(total: int, index: int, workers: int) -> int:
    """A worker's part of a total; at least 1."""
    return max(1, total // workers + (index < total % workers))

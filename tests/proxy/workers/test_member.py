"""A worker's side: one collection of metrics for all callers of one time, and an end where it hears nothing."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import msgspec

from proxy.flights.queue import PoolQueue, Waiting
from proxy.telemetry import Metrics
from proxy.workers.channel import Ask, Collected, Engine, Hello, Report
from proxy.workers.member import BEAT, TICK, Member
from tests.kit.clock import virtual

HELLO = Hello(index=0, workers=2, listen=[], admin=[], port=0, engines=[], redis=None, redis_words="off")


class Link:
    """The supervisor's answers, by hand."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.answers: asyncio.Queue[Any] = asyncio.Queue(maxsize=9)
        self.asked = asyncio.Event()

    def send(self, message: Any) -> None:
        self.sent.append(message)
        if isinstance(message, Ask):
            self.asked.set()

    async def receive(self) -> Any:
        answer = await self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def drain(self) -> None:
        pass

    def close(self) -> None:
        pass


def member_of(link: Link, metrics: Metrics) -> Member:
    member = Member(cast(Any, link), HELLO)
    member.attach(
        engines=tuple,
        queues=tuple,
        serving=lambda pool: [],
        charge=lambda *of: None,
        room=lambda: None,
        hear=lambda *news: None,
        metrics=metrics,
    )
    return member


async def test_all_that_ask_at_the_same_time_share_one_collection() -> None:
    link, metrics = Link(), Metrics()
    member = member_of(link, metrics)
    metrics.cache("hit", 2)
    asking = [asyncio.create_task(member.families(metrics)) for _ in range(50)]
    await link.asked.wait()
    link.answers.put_nowait(Collected(1, [metrics.families()]))
    for families in await asyncio.gather(*asking):
        (ops,) = (family for family in families if family.name.endswith("cache_operations_total"))
        assert ({"op": "hit"}, 4) in ops.samples
    assert sum(isinstance(message, Ask) for message in link.sent) == 1
    await member.close()


async def test_a_message_that_raises_ends_the_worker() -> None:
    link = Link()
    member = member_of(link, Metrics())
    link.answers.put_nowait(ValueError("no message"))
    await member.orphan.wait()
    await member.close()


async def test_what_it_tells_of_an_engine_is_short_and_can_be_sent_whatever_the_engine_said() -> None:
    link = Link()
    member = member_of(link, Metrics())
    member.tell("e", "open", 1.0, "\udcff" + "x" * 9999)
    (message,) = (message for message in link.sent if isinstance(message, Engine))
    assert msgspec.msgpack.encode(message)
    assert message.detail == "?" + "x" * 999
    await member.close()


async def test_permits_that_are_given_back_are_reported_in_the_same_turn_of_the_loop() -> None:
    link = Link()
    member = member_of(link, Metrics())
    await asyncio.sleep(0)
    link.sent.clear()
    looks = 0

    def engines() -> tuple[Any, ...]:
        nonlocal looks
        looks += 1
        return ()

    member._engines = engines
    for _ in range(50):
        member.given_back()
    await asyncio.sleep(0)
    assert looks == 1, "once for all"
    await member.close()


async def test_an_engine_that_was_removed_is_reported_by_its_requests_alone() -> None:
    link = Link()
    member = member_of(link, Metrics())
    engine = SimpleNamespace(
        name="e", most=6, inflight=3, leaving=False, allot=lambda places: allotted.append(places)
    )
    allotted: list[int] = []
    member._engines = lambda: [cast(Any, engine)]
    member._look()
    engine.leaving = True
    member._look()
    engine.inflight = 2
    member._look()
    member._look()
    engine.leaving = False
    member._look()
    reports = [(report.engines, report.leaving) for report in link.sent if isinstance(report, Report)]
    assert reports == [
        ({"e": (3, 0, 6)}, {}),
        ({}, {"e": 3}),
        ({}, {"e": 2}),
        ({"e": (2, 0, 6)}, {}),
    ]
    assert set(allotted) == {0}
    await member.close()


@virtual
async def test_a_worker_looks_every_beat_while_nothing_queues_and_reports_at_once_what_queues() -> None:
    link = Link()
    member = member_of(link, Metrics())
    looks = 0
    queues: list[PoolQueue] = []
    engine = SimpleNamespace(name="e", most=6, inflight=0, leaving=False, allot=lambda places: None)

    def engines() -> list[Any]:
        nonlocal looks
        looks += 1
        return [engine]

    member._engines, member._queues, member._serving = engines, lambda: queues, lambda pool: ["e"]
    await asyncio.sleep(40.1 * BEAT)
    assert looks in (40, 41)
    link.sent.clear()
    queues.append(PoolQueue(None, 0.0, [Waiting(0, None, 1, 1, 1, 0)]))
    member.wanted()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [report.engines for report in link.sent] == [{"e": (0, 1, 6)}]
    looks = 0
    await asyncio.sleep(40.5 * TICK)
    assert looks in (40, 41)
    queues.clear()
    await asyncio.sleep(TICK)
    looks = 0
    await asyncio.sleep(4.1 * BEAT)
    assert looks in (4, 5)
    await member.close()

"""Engines asked for their load: gently, one round after the other, and only where it says something."""

from __future__ import annotations

import asyncio
import math
from typing import Any, cast

import pytest

from proxy.errors import Code, GatewayError
from proxy.upstream.backends import Backend
from proxy.upstream.concurrency import AdaptiveLimit
from proxy.upstream.http.pool import Pool
from proxy.upstream.load import LoadReport
from proxy.upstream.load_poller import SILENT, TIMEOUT, LoadPoller
from tests.kit.clock import virtual
from tests.proxy.upstream.test_load import PAGE


class Page:
    """A pool whose /metrics is as told; None never answers."""

    def __init__(self, answer: tuple[int, bytes] | Exception | None) -> None:
        self.answer = answer
        self.asked = 0

    async def get(self, path: str) -> tuple[int, bytes]:
        assert path == "/metrics"
        self.asked += 1
        if self.answer is None:
            await asyncio.Event().wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        assert self.answer is not None
        return self.answer


def engine(answer: Any, *, up: bool | None = True) -> tuple[Backend, Page]:
    page = Page(answer)
    return Backend(f"e{id(page)}", cast(Pool, page), 9, up=up), page


def watch(*engines: Backend, **more: Any) -> LoadPoller:
    return LoadPoller(lambda: engines, every=1.0, clock=asyncio.get_running_loop().time, **more)


@virtual
async def test_each_engine_s_report_becomes_its_load() -> None:
    busy, _ = engine((200, PAGE))
    idle, _ = engine((200, b"vllm:num_requests_running 0\n"))
    await watch(busy, idle).look()
    assert busy.reported == pytest.approx(9 + 4 + 4)
    assert idle.reported == 0.0
    assert busy.report == LoadReport(5.0, 4.0, 0.9)


@virtual
async def test_one_engine_s_load_is_not_asked_for_again_and_again() -> None:
    alone, page = engine((200, PAGE))
    looking = watch(alone)
    for _ in range(5):
        await looking.look()
        await asyncio.sleep(1.0)
    assert page.asked == 1


@virtual
async def test_one_engine_alone_is_asked_now_and_then_for_when_it_began() -> None:
    starts: list[tuple[Backend, float]] = []
    alone, page = engine((200, PAGE + b"process_start_time_seconds 1.5e9\n"))
    looking = watch(alone, spare=10.0, on_start=lambda engine, at: starts.append((engine, at)))
    for _ in range(30):
        await looking.look()
        await asyncio.sleep(1.0)
    assert page.asked == 3
    assert starts == [(alone, 1.5e9)] * 3


@virtual
async def test_reports_that_weigh_nothing_are_asked_for_now_and_then() -> None:
    one, page = engine((200, PAGE))
    other, _ = engine((200, PAGE))
    looking = watch(one, other, weight=0.0, spare=10.0)
    for _ in range(30):
        await looking.look()
        await asyncio.sleep(1.0)
    assert page.asked == 3
    assert one.reported == 0.0


@pytest.mark.parametrize("answer", [(403, b""), (200, b"llamacpp:requests_processing 1\n"), (200, b"")])
@virtual
async def test_an_engine_that_reports_nothing_is_left_alone_for_a_while(answer: tuple[int, bytes]) -> None:
    other, _ = engine((200, PAGE))
    silent, page = engine(answer)
    looking = watch(other, silent)
    for _ in range(int(SILENT)):
        await looking.look()
        await asyncio.sleep(1.0)
    assert (page.asked, silent.reported) == (1, 0.0)
    await looking.look()
    assert page.asked == 2


@virtual
async def test_an_engine_without_such_a_page_is_asked_again_only_once_it_has_been_away() -> None:
    other, _ = engine((200, PAGE))
    without, page = engine((404, b""))
    looking = watch(other, without)
    for _ in range(3 * int(SILENT)):
        await looking.look()
        await asyncio.sleep(1.0)
    assert page.asked == 1
    without.up = False
    await looking.look()
    without.up = True
    await looking.look()
    assert page.asked == 2


@virtual
async def test_one_that_is_down_is_not_asked_and_one_that_fails_has_no_load() -> None:
    down, page = engine((200, PAGE), up=False)
    broken, _ = engine(GatewayError(Code.UPSTREAM_UNREACHABLE, "gone"))
    for each in (down, broken):
        each.reported = 5.0
    await watch(down, broken).look()
    assert (page.asked, down.reported, broken.reported) == (0, 0.0, 0.0)


@virtual
async def test_rounds_never_overlap_however_slow_an_engine_is() -> None:
    hung, page = engine(None)
    other, fine = engine((200, PAGE))
    task = asyncio.create_task(watch(hung, other).run())
    await asyncio.sleep(30.0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    rounds = int(30.0 / (1.0 + TIMEOUT))
    assert page.asked == fine.asked
    assert page.asked in (rounds, rounds + 1)


GONE = GatewayError(Code.UPSTREAM_UNREACHABLE, "gone")


@virtual
async def test_an_engine_that_is_alone_is_asked_for_its_pacer() -> None:
    alone, page = engine((200, PAGE))
    alone.adaptive_limit = AdaptiveLimit()
    alone.inflight = 2
    await watch(alone, weight=0.5).look()
    assert page.asked == 1
    assert alone.reported == pytest.approx((7 + 4 + 4) / 2)


@virtual
async def test_what_an_engine_reported_is_gone_once_it_is_down_or_says_nothing() -> None:
    other, _ = engine((200, PAGE))
    one, page = engine((200, PAGE))
    looking = watch(other, one)
    await looking.look()
    told = [(one.report is None, one.reported)]
    for up, answer in ((False, page.answer), (True, page.answer), (True, GONE)):
        one.up, page.answer = up, answer
        await looking.look()
        told.append((one.report is None, one.reported))
    assert told == [(False, told[0][1]), (True, 0.0), (False, told[0][1]), (True, 0.0)]
    assert page.asked == 3
    await looking.look()
    assert page.asked == 4, "no word is no reason to leave it alone"
    page.answer = (200, PAGE.replace(b"200", b"x"))
    await looking.look()
    assert one.report is not None


@pytest.mark.parametrize("status", [404, 405, 501])
@virtual
async def test_an_engine_that_was_removed_is_not_remembered(status: int) -> None:
    other, _ = engine((200, PAGE))
    without, _ = engine((status, PAGE))
    engines = [other, without]
    looking = LoadPoller(lambda: engines, every=1.0, clock=asyncio.get_running_loop().time)
    await looking.look()
    assert (list(looking._silent.values()), without.report) == ([math.inf], None)
    engines.pop()
    await looking.look()
    assert looking._silent == {}

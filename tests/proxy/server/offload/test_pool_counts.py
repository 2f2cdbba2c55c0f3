"""What the pool counts for each caller, a caller's share of the processes, a process that goes during a job."""

from __future__ import annotations

import asyncio

import pytest

from proxy.errors import Code
from tests.kit.clock import virtual
from tests.kit.running import until
from tests.kit.wire_end import turns
from tests.proxy.server.offload.test_pool_pool import JOB, Children, pool, refused


async def test_a_caller_leaves_a_process_to_others() -> None:
    async with pool(children=2) as (under_test, children):
        children.go.clear()
        jobs = [asyncio.create_task(under_test.do(JOB, b"x", "a")) for _ in range(2)]
        await until(lambda: bool(children.bodies))
        await turns()
        assert (under_test.busy, len(under_test), under_test._idle) == (1, 1, 1)
        jobs.append(asyncio.create_task(under_test.do(JOB, b"x", "b")))
        await until(lambda: under_test.busy == 2)
        assert under_test._running == {"a": 1, "b": 1}
        assert list(under_test._queues) == ["a"]
        children.go.set()
        await asyncio.gather(*jobs)


async def test_bytes_of_a_caller_are_those_that_wait() -> None:
    async with pool(children=1) as (under_test, children):
        children.go.clear()
        jobs = [asyncio.create_task(under_test.do(JOB, b"x", "first"))]
        await until(lambda: under_test.busy == 1)
        jobs += [asyncio.create_task(under_test.do(JOB, b"x" * size, "a")) for size in (10, 20, 40)]
        await until(lambda: len(under_test) == 3)
        assert (under_test._owed, under_test._bytes) == ({"a": 70}, 70)
        jobs[2].cancel()
        await until(lambda: len(under_test) == 2)
        assert (under_test._owed, under_test._bytes) == ({"a": 50}, 50)
        children.go.set()
        await asyncio.gather(*jobs, return_exceptions=True)
        assert (under_test._owed, under_test._bytes) == ({}, 0)


async def test_a_process_that_goes_in_the_middle_of_a_job_is_ended_and_the_next_job_has_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[str] = []
    async with pool(children=1, on_event=lambda what, detail: events.append(detail)) as (under_test, children):
        whole, gone = children.answer, asyncio.IncompleteReadError(b"", 1)

        def packed() -> bytes:
            raise gone

        with monkeypatch.context() as broken:
            broken.setattr(Children, "answer", property(lambda _: packed(), lambda *_: None), raising=False)
            assert (await refused(under_test.do(JOB, b"x", "a"))).code is Code.LOCAL_RESOURCES
        assert (children.processes[0].killed, under_test.pids) == (1, set())
        assert events == ["IncompleteReadError: 0 bytes read on a total of 8 expected bytes, of a job of 1 bytes"]
        children.answer = whole
        assert (await under_test.do(JOB, b"x", "a"))[1] == b"sent"
        assert under_test.pids == {2}


@virtual
async def test_after_a_failed_start_the_next_one_is_tried_when_the_pause_is_over() -> None:
    loop = asyncio.get_running_loop()
    tried: list[float] = []

    async def start() -> None:
        tried.append(loop.time())
        raise OSError("no processes left")

    async with pool(start=start) as (under_test, _):
        for wait in (0.0, 0.9, 0.1):
            await asyncio.sleep(wait)
            await refused(under_test.do(JOB, b"x", "a"))
            under_test._not_before = 1.0
        assert tried == [0.0, 1.0]

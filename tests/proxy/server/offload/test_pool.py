"""The pool of reading processes: bounded, fair to callers, and no job waits for a process that is gone."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from typing import Any

import pytest

from ops.bench.hostile.requests import text
from proxy.access.intake import ApiRequestJob, FoldJob, Terms, read_api_request
from proxy.access.request_limits import RequestLimits
from proxy.errors import Code, GatewayError
from proxy.flights.key import Keyer, hash_of_cpu
from proxy.server.offload import pool as offload
from proxy.server.offload.child import Reader
from proxy.server.offload.pool import Offload, start_child
from tests.kit.clock import virtual
from tests.kit.patience import run_process
from tests.kit.running import until

TERMS = Terms(share="auto", routing="prefix", assumed=500, sizes=RequestLimits(max_tokens=9))
JOB = ApiRequestJob("chat")
HEAVY = text("x", 100) + b" " * 8_000_000  # of a kind that takes a moment


def pool(**options: Any) -> Offload:
    return Offload(lambda: TERMS, **options)


async def refused(job: asyncio.Task[Any]) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        await job
    return caught.value


async def test_a_job_comes_to_what_it_comes_to_here() -> None:
    under_test = pool()
    body = text("hello", 1000)
    found, sent = await under_test.do(JOB, body, "a")
    assert (found, sent) == read_api_request(JOB, body, TERMS, None, Keyer(hash_of_cpu()))
    assert len(under_test.pids) == 1
    await under_test.close()
    assert (under_test.pids, len(under_test), under_test.busy) == (set(), 0, 0)


async def test_terms_that_change_are_told_before_the_next_job() -> None:
    now = [TERMS]
    under_test = Offload(lambda: now[0])
    assert (await under_test.do(JOB, text("hello", 10), "a"))[0].denied == 0
    now[0] = Terms(share="auto", routing="prefix", assumed=500, sizes=RequestLimits(), deny="hello")
    assert (await under_test.do(JOB, text("hello", 10), "a"))[0].denied == 1
    await under_test.close()


async def test_a_job_that_takes_too_long_ends_with_its_process_and_the_next_has_another() -> None:
    told: list[str] = []
    under_test = pool(job_seconds=0.0, on_event=lambda what, detail: told.append(what))
    error = await refused(asyncio.create_task(under_test.do(JOB, HEAVY, "a")))
    assert (error.code, "too long" in error.message) == (Code.LOCAL_RESOURCES, True)
    assert told == ["failed"]
    under_test._seconds = 30.0
    assert (await under_test.do(JOB, text("x", 10), "a"))[0].refusal is None
    await under_test.close()


@virtual  # the pause between two tries must not pass meanwhile
async def test_where_no_process_can_be_started_large_requests_are_503_and_it_is_not_tried_at_once_again() -> None:
    tried = 0

    async def start() -> Any:
        nonlocal tried
        tried += 1
        raise OSError("no processes left")

    under_test = pool(start=start)
    for _ in range(3):
        error = await refused(asyncio.create_task(under_test.do(JOB, b"{}", "a")))
        assert (error.code, error.retry_after) == (Code.LOCAL_RESOURCES, 1)
    assert tried == 1
    await under_test.close()


async def test_a_process_that_answers_nonsense_fails_one_job() -> None:
    async def start() -> Any:
        process, sock = await start_child()
        sock.close()  # what comes instead is the end
        other, ours = socket.socketpair()
        other.send(b"\xff" * 8)
        ours.setblocking(False)
        spare.append(other)
        return process, ours

    spare: list[Any] = []
    under_test = pool(start=start)
    assert (await refused(asyncio.create_task(under_test.do(JOB, b"{}", "a")))).code is Code.LOCAL_RESOURCES
    await under_test.close()
    for other in spare:
        other.close()


async def test_one_caller_does_not_have_every_process_nor_the_whole_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "WAITING_JOBS", 8)
    order: list[str] = []
    go = asyncio.Event()

    async def start() -> Any:
        await go.wait()
        return await start_child()

    under_test = pool(start=start)

    async def ask(owner: str) -> None:
        await under_test.do(JOB, text("x", 10), owner)
        order.append(owner)

    heavy = [asyncio.create_task(ask("heavy"))]
    await until(lambda: under_test.busy == 1)
    heavy += [asyncio.create_task(ask("heavy")) for _ in range(4)]
    await until(lambda: len(under_test) == 4)  # one is under way, with one process; the other is kept for others
    assert under_test.busy == 1
    assert (await refused(asyncio.create_task(under_test.do(JOB, b"{}", "heavy")))).code is Code.QUEUE_FULL
    light = asyncio.create_task(ask("light"))
    await until(lambda: under_test.busy == 2)
    go.set()
    await asyncio.gather(light, *heavy)
    assert sorted(order) == ["heavy"] * 5 + ["light"]
    await under_test.close()


async def test_a_client_that_leaves_takes_its_job_along() -> None:
    go = asyncio.Event()

    async def start() -> Any:
        await go.wait()
        return await start_child()

    under_test = pool(start=start)
    jobs = [asyncio.create_task(under_test.do(JOB, text("x", 10), "a")) for _ in range(3)]
    await until(lambda: len(under_test) == 2)
    for job in jobs:
        job.cancel()
    await asyncio.gather(*jobs, return_exceptions=True)
    assert len(under_test) == 0
    go.set()
    assert (await under_test.do(JOB, text("x", 10), "a"))[0].refusal is None
    await under_test.close()


async def test_at_the_end_what_waits_is_told() -> None:
    async def start() -> Any:
        await asyncio.Event().wait()

    under_test = pool(start=start)
    jobs = [asyncio.create_task(under_test.do(JOB, b"{}", owner)) for owner in "abc"]
    await until(lambda: under_test.busy == 2)
    await under_test.close()
    assert {(await refused(job)).code for job in jobs} == {Code.SHUTTING_DOWN}
    assert (await refused(asyncio.create_task(under_test.do(JOB, b"{}", "a")))).code is Code.SHUTTING_DOWN


def test_a_fault_of_ours_in_a_job_is_data(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader()
    reader.take(TERMS)
    monkeypatch.setattr("proxy.server.offload.child.read_api_request", lambda *_: 1 / 0)
    found, sent = reader.do(JOB, b"{}")
    assert (found.refusal is not None and found.refusal.code, sent) == ("INTERNAL", b"")
    assert found.fault.startswith("ZeroDivisionError")


@pytest.mark.parametrize("body", [b"", b"x", b"8\r\ndata: {}\r\n", b"zz\r\n"])
def test_what_is_no_stream_is_not_folded(body: bytes) -> None:
    reader = Reader()
    reader.take(TERMS)
    found, sent = reader.do(FoldJob("chat", False), body)
    assert (found.refusal is not None, sent) == (True, b"")


def test_a_process_whose_parent_is_another_ends_at_once() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-m", "proxy.server.offload.child", str(os.getppid())]
        assert run_process(command, stdin=theirs.fileno(), seconds=30).returncode == 1


def test_a_process_ends_when_nobody_can_ask_it_any_more() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        command = [sys.executable, "-m", "proxy.server.offload.child", str(os.getpid())]
        assert run_process(command, stdin=theirs.fileno(), seconds=30).returncode == 0

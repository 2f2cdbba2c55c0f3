"""The pool of reading processes with processes of the test's own: its bounds, its turns, what it gives back."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from proxy.access.intake import (
    ApiRequestJob,
    EmbedsChatJob,
    FoldJob,
    Found,
    Job,
    PageJob,
    RawJob,
    Refusal,
    Terms,
    TextsJob,
)
from proxy.access.request_limits import RequestLimits
from proxy.errors import Code, GatewayError
from proxy.server.offload import pool as offload
from proxy.server.offload.child import HEADER, Reader, serve
from proxy.server.offload.pool import Offload
from tests.kit.running import until
from tests.proxy.wire.fold.test_fold import frames_of, llama_chunks

TERMS = Terms(share="auto", routing="prefix", assumed=500, sizes=RequestLimits())
JOB = ApiRequestJob("chat")
_MESSAGE: Any = msgspec.msgpack.Decoder(Terms | Job)


class Process:
    """As much of a process as the pool asks for: it ends when it is killed."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.killed = 0

    def kill(self) -> None:
        self.killed += 1
        raise ProcessLookupError  # it has ended by itself

    async def wait(self) -> int:
        return 0


class Children:
    """Starts children that answer each job once `go` is set, and remember what they were told."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.told: list[Any] = []
        self.bodies: list[bytes] = []
        self.processes: list[Process] = []
        self.answer = self.packed(Found(model="m"), b"sent")
        self._tasks: set[asyncio.Task[None]] = set()

    @staticmethod
    def packed(found: Found, sent: bytes) -> bytes:
        head = msgspec.msgpack.encode(found)
        return HEADER.pack(len(head), len(sent)) + head + sent

    async def start(self) -> tuple[Any, socket.socket]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.processes.append(Process(len(self.processes) + 1))
        task = asyncio.create_task(self._serve(theirs))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return self.processes[-1], ours

    async def _serve(self, sock: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=sock)
        try:
            while True:
                head, body = HEADER.unpack(await reader.readexactly(HEADER.size))
                message = _MESSAGE.decode(await reader.readexactly(head))
                self.told.append(message)
                if isinstance(message, Terms):
                    continue
                self.bodies.append(await reader.readexactly(body))
                await self.go.wait()
                writer.write(self.answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def ended(self) -> None:
        await asyncio.gather(*self._tasks)


@asynccontextmanager
async def pool(**options: Any) -> AsyncIterator[tuple[Offload, Children]]:
    children = Children()
    options.setdefault("start", children.start)
    under_test = Offload(options.pop("terms", lambda: TERMS), **options)
    try:
        yield under_test, children
    finally:
        await under_test.close()
        await children.ended()


async def refused(job: Any) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        await job
    return caught.value


async def test_a_job_and_its_body_go_out_and_what_was_found_and_sent_comes_back() -> None:
    async with pool() as (under_test, children):
        assert await under_test.do(JOB, b"body", "a") == (Found(model="m"), b"sent")
        assert await under_test.do(TextsJob(), b"", "a") == (Found(model="m"), b"sent")
        assert children.told == [TERMS, JOB, TextsJob()]  # the terms once, as long as they are the same
        assert children.bodies == [b"body", b""]
        assert (under_test.pids, under_test.busy, len(under_test)) == ({1}, 0, 0)
    assert (under_test.pids, children.processes[0].killed) == (set(), 1)


async def test_terms_of_another_object_are_told_again() -> None:
    terms = [TERMS]
    async with pool(terms=lambda: terms[0]) as (under_test, children):
        await under_test.do(JOB, b"x", "a")
        terms[0] = Terms(share="off", routing="prefix", assumed=500, sizes=RequestLimits())
        await under_test.do(JOB, b"x", "a")
        assert children.told == [TERMS, JOB, terms[0], JOB]


async def test_so_many_bytes_wait_of_all_and_half_of_them_of_one_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "WAITING_BYTES", 100)
    async with pool(children=1) as (under_test, children):
        children.go.clear()
        running = asyncio.create_task(under_test.do(JOB, b"x" * 90, "first"))
        await until(lambda: under_test.busy == 1)
        jobs = [
            asyncio.create_task(under_test.do(JOB, b"x" * size, owner)) for size, owner in ((20, "a"), (30, "a"))
        ]
        await until(lambda: len(under_test) == 2)
        told = await refused(under_test.do(JOB, b"x", "a"))
        assert (told.code, told.retry_after) == (Code.QUEUE_FULL, 1)
        jobs.append(asyncio.create_task(under_test.do(JOB, b"x" * 50, "b")))
        await until(lambda: len(under_test) == 3)
        assert (await refused(under_test.do(JOB, b"x", "c"))).code is Code.QUEUE_FULL
        jobs[0].cancel()
        await until(lambda: len(under_test) == 2)  # what its client left gives its room to others
        jobs.append(asyncio.create_task(under_test.do(JOB, b"x" * 20, "c")))
        await until(lambda: len(under_test) == 3)
        children.go.set()
        await asyncio.gather(running, *jobs, return_exceptions=True)
        large = await asyncio.create_task(under_test.do(JOB, b"x" * 100, "a"))  # alone it may have it all
        assert large[1] == b"sent"
        assert (await refused(under_test.do(JOB, b"x" * 101, "a"))).code is Code.QUEUE_FULL
        assert (under_test._owed, under_test._queues, under_test._running, under_test._bytes) == ({}, {}, {}, 0)


async def test_so_many_jobs_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "WAITING_JOBS", 4)
    async with pool(children=1) as (under_test, children):
        children.go.clear()
        jobs = [asyncio.create_task(under_test.do(JOB, b"x", "first"))]
        await until(lambda: under_test.busy == 1)
        jobs += [asyncio.create_task(under_test.do(JOB, b"x", owner)) for owner in "aab"]
        await until(lambda: len(under_test) == 3)
        assert (await refused(under_test.do(JOB, b"x", "a"))).code is Code.QUEUE_FULL  # half of them are its own
        jobs.append(asyncio.create_task(under_test.do(JOB, b"x", "c")))
        await until(lambda: len(under_test) == 4)
        assert (await refused(under_test.do(JOB, b"x", "d"))).code is Code.QUEUE_FULL
        children.go.set()
        assert [found.model for found, _ in await asyncio.gather(*jobs)] == ["m"] * 5
        assert repr(under_test) == "<Offload children=1 waiting=0>"


async def test_callers_take_turns() -> None:
    order: list[str] = []
    async with pool(children=1) as (under_test, children):
        children.go.clear()

        async def ask(name: str) -> None:
            await under_test.do(JOB, name.encode(), name[0])
            order.append(name)

        jobs = [asyncio.create_task(ask("f0"))]
        await until(lambda: under_test.busy == 1)
        jobs += [asyncio.create_task(ask(name)) for name in ("a1", "a2", "a3", "b1", "b2", "c1")]
        await until(lambda: len(under_test) == 6)
        children.go.set()
        await asyncio.gather(*jobs)
    assert [body.decode() for body in children.bodies] == ["f0", "a1", "b1", "c1", "a2", "b2", "a3"]
    assert len(children.processes) == 1


async def test_no_more_processes_than_there_are_jobs_or_may_be() -> None:
    async with pool(children=2) as (under_test, children):
        for _ in range(3):
            await under_test.do(JOB, b"x", "a")
        assert len(children.processes) == 1
        children.go.clear()
        jobs = [asyncio.create_task(under_test.do(JOB, b"x", owner)) for owner in "abcd"]
        await until(lambda: under_test.busy == 2)
        assert (len(children.processes), len(under_test)) == (2, 2)
        children.go.set()
        await asyncio.gather(*jobs)


async def test_a_process_that_has_no_job_ends_after_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "IDLE_SECONDS", 0.0)
    async with pool() as (under_test, children):
        await under_test.do(JOB, b"x", "a")
        await until(lambda: not under_test.pids)
        assert (await under_test.do(JOB, b"x", "a"))[1] == b"sent"
        assert len(children.processes) == 2


@pytest.mark.parametrize(
    "answer",
    [
        HEADER.pack((8 << 20) + 1, 0),
        HEADER.pack(1, 0) + b"\xc1",
        HEADER.pack(3, 0) + b"\xa2no",
    ],
    ids=["too long", "no message", "another"],
)
async def test_a_process_that_answers_nonsense_is_ended_and_the_next_job_has_another(answer: bytes) -> None:
    events: list[tuple[str, str]] = []
    async with pool(children=1, on_event=lambda what, detail: events.append((what, detail))) as (
        under_test,
        children,
    ):
        good, children.answer = children.answer, answer
        told = await refused(under_test.do(JOB, b"1234", "a"))
        assert (told.code, told.retry_after) == (Code.LOCAL_RESOURCES, 1)
        assert (children.processes[0].killed, under_test.pids) == (1, set())
        assert events[0][0] == "failed"
        assert events[0][1].endswith("of a job of 4 bytes")
        children.answer = good
        assert (await under_test.do(JOB, b"x", "a"))[1] == b"sent"
        assert under_test.pids == {2}


async def test_the_longest_head_that_may_be_is_read() -> None:
    async with pool(children=1) as (under_test, children):
        found = Found(model="x" * ((8 << 20) - len(msgspec.msgpack.encode(Found(model=""))) - 4))
        children.answer = Children.packed(found, b"")
        assert HEADER.unpack(children.answer[:8])[0] == 8 << 20
        assert await under_test.do(JOB, b"x", "a") == (found, b"")


async def test_a_job_over_its_time_says_so_and_tells_how_long_it_may_take() -> None:
    events: list[str] = []
    async with pool(job_seconds=0.25, on_event=lambda what, detail: events.append(detail)) as (
        under_test,
        children,
    ):
        children.go.clear()
        told = await refused(under_test.do(JOB, b"123", "a"))
        assert (told.code, "took too long" in told.message) == (Code.LOCAL_RESOURCES, True)
        assert events == ["took more than 0.25 s, of a job of 3 bytes"]
        children.go.set()


async def test_a_fault_of_the_pool_s_own_fails_one_job() -> None:
    events: list[tuple[str, str]] = []
    terms: list[Any] = []
    async with pool(
        children=1, terms=lambda: terms[0], on_event=lambda what, detail: events.append((what, detail))
    ) as (under_test, _):
        assert (await refused(under_test.do(JOB, b"x", "a"))).code is Code.LOCAL_RESOURCES
        assert events[0][0] == "failed"
        assert events[0][1].startswith("IndexError")
        terms.append(TERMS)
        assert (await under_test.do(JOB, b"x", "a"))[1] == b"sent"
        assert under_test.busy == 0


# The reading process, here


def reader(terms: Terms = TERMS) -> Reader:
    made = Reader()
    made.take(terms)
    return made


DENY = Terms(share="auto", routing="prefix", assumed=500, sizes=RequestLimits(n=1), deny="bad\n")
REQUEST = b'{"messages":[{"role":"user","content":"a bad word"}],"stream":true,"n":%d}'


def test_each_kind_of_job_is_done() -> None:
    strict, free = reader(DENY), reader()
    assert (strict.do(JOB, REQUEST % 1)[0].denied, free.do(JOB, REQUEST % 1)[0].denied) == (1, 0)
    assert strict.do(RawJob("/v1/responses"), b'{"input":"bad"}')[0].denied == 1
    text = b'{"choices":[{"index":0,"text":"a bad word"}]}'
    assert strict.do(TextsJob(), text) == (Found(denied=1), b"")
    assert strict.do(TextsJob(), text.replace(b"bad", b"fine")) == (Found(denied=0), b"")
    assert free.do(TextsJob(), text) == (Found(denied=0), b"")
    for body, there in ((b'{"messages":[]}', True), (b'{"messages":[],"input":"x"}', False), (b"{", False)):
        assert free.do(EmbedsChatJob(), body) == (Found(embeds_chat=there), b"")
    page = b'{"request":%b,"delays_ms":[0,5.5]}' % (REQUEST % 1)
    found, sent = free.do(PageJob(JOB), page)
    assert (found.delays, found.stream, found.refusal) == ([0, 5.5], True, None)
    assert b'"messages"' in sent
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(frame), frame) for frame in frames_of(llama_chunks()))
    found, sent = free.do(FoldJob("chat", False), chunks)
    assert found == Found()
    assert b'"Hello"' in sent
    strict.take(TERMS)
    assert strict.do(JOB, REQUEST % 1)[0].denied == 0


def test_what_a_client_may_see_of_an_error_is_data(monkeypatch: pytest.MonkeyPatch) -> None:
    refused_ = reader(DENY).do(JOB, REQUEST % 2)
    assert refused_[0].refusal is not None
    assert (refused_[0].refusal.code, refused_[0].fault, refused_[1]) == ("INVALID_VALUE", "", b"")
    found, _ = reader().do(FoldJob("chat", True), b"".join([b"e\r\ndata: [DONE]\n\n\r\n"]))
    assert found.refusal == Refusal("INTERNAL", "no chunk")

    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("proxy.server.offload.child.read_raw", no_memory)
    found, sent = reader().do(RawJob("/x"), b"{}")
    assert found.refusal is not None
    assert (found.refusal.code, "more memory" in found.refusal.message, sent) == ("LOCAL_RESOURCES", True, b"")


def test_jobs_are_served_one_after_the_other_until_the_other_side_is_gone() -> None:
    ours, theirs = socket.socketpair()
    encode = msgspec.msgpack.encode
    with ours, theirs:
        for message, body in ((DENY, b""), (JOB, REQUEST % 1), (TextsJob(), b'{"choices":[]}')):
            head = encode(message)
            ours.sendall(HEADER.pack(len(head), len(body)) + head + body)
        ours.sendall(b"half")
        ours.shutdown(socket.SHUT_WR)
        serve(theirs, Reader())
        theirs.shutdown(socket.SHUT_WR)
        data = b"".join(iter(lambda: ours.recv(65_536), b""))
    answers = []
    while data:
        head_size, size = HEADER.unpack(data[: HEADER.size])
        head, data = data[HEADER.size : HEADER.size + head_size], data[HEADER.size + head_size :]
        answers.append((msgspec.msgpack.decode(head, type=Found).denied, len(data[:size])))
        data = data[size:]
    assert [denied for denied, _ in answers] == [1, 0]

"""Machines that share a run: the clocks' comparison, the greeting, and what is refused at the port."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.drive.machines import leader
from loadgen.drive.machines.leader import Leader
from loadgen.drive.machines.messages import Hello, Message, Plan, digest_of, offset_of
from loadgen.drive.machines.share import planned
from loadgen.drive.processes.job import Job, Schedule, job_schedule
from loadgen.errors import UsageError
from loadgen.snapshot import Snapshot
from loadgen.spec import Body, ErrorLimit, Http, Pace
from loadgen.workload import Options, open_workload
from tests.kit.running import until

MS = 1_000_000


def job(**more: object) -> Job:
    made = Job(
        run="lg1",
        targets={"a": "http://x"},
        endpoint="chat",
        path="/v1/chat/completions",
        body=Body(model="m"),
        http=Http(headers=(("Authorization", "Bearer KEY"),)),
        pace=Pace(open_loop=True, max_errors=ErrorLimit(count=3)),
        schedule=Schedule(rate=10.0),
        workload=Options(num_prompts=20, salt="s"),
        num_prompts=20,
        secrets=["KEY"],
    )
    return msgspec.structs.replace(made, **more)


exchanges = st.lists(
    st.tuples(st.integers(0, 50 * MS), st.integers(0, 50 * MS), st.integers(0, 5 * MS)), min_size=1, max_size=30
)


@given(st.integers(-(10**15), 10**15), exchanges)
def test_the_true_offset_is_within_the_error_whatever_delays_the_messages(
    truth: int, delays: list[tuple[int, int, int]]
) -> None:
    """A delay there, a delay back, and a pause before each comparison."""
    now, seen = 10**18, []
    for there, back, pause in delays:
        now += pause
        seen.append((now, now + there + truth, now + there + back))
        now += there + back
    offset = offset_of(seen)
    assert abs(offset.ns - truth) <= offset.error_ns
    assert offset.error_ns <= min(there + back for there, back, _ in delays) // 2 + 1


def test_the_digest_is_of_what_is_sent_and_of_no_secret() -> None:
    same = job(run="other", secrets=["X"], http=Http(headers=(("Authorization", "Bearer X"),)), max_in_flight=7)
    same = msgspec.structs.replace(same, workload=msgspec.structs.replace(same.workload, salt="t"))
    assert digest_of(same) == digest_of(job())
    assert digest_of(job(num_prompts=21)) != digest_of(job())
    assert digest_of(job(body=Body(model="n"))) != digest_of(job())
    assert digest_of(job(schedule=Schedule(rate=10.0, seed=1))) != digest_of(job())


def test_the_shares_together_are_the_whole_schedule() -> None:
    whole = {request.number: request.due_s for request in job_schedule(job(), open_workload(job().workload))}
    plan = Plan(run="common", salt="salt")
    parts = [planned(job(), machine, 3, plan) for machine in range(3)]
    seen: dict[int, float | None] = {}
    for part in parts:
        assert (part.run, part.workload.salt, part.pace.max_errors) == ("common", "salt", ErrorLimit(count=3))
        for request in job_schedule(part, open_workload(part.workload)):
            assert request.number not in seen
            seen[request.number] = request.due_s
    assert seen == whole
    capped = [planned(job(pace=Pace(max_concurrency=8)), machine, 3, plan) for machine in range(3)]
    assert [part.pace.max_concurrency for part in capped] == [3, 3, 2]
    assert {part.max_in_flight for part in capped} == {job().max_in_flight}


class Unseen:
    """A view that shows nothing."""

    def __call__(self, snapshot: Snapshot) -> None:
        pass

    def note(self, text: str) -> None:
        pass


async def answer_to(port: int, line: bytes) -> dict[str, object]:
    """What machine 0 says to these bytes before it closes; nothing at all is {}."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(line)
        said = await reader.read()
    except ConnectionError:
        said = b""
    finally:
        writer.close()
    answer: dict[str, object] = json.loads(said or b"{}")
    return answer


def greeting(machine: int, digest: str) -> bytes:
    return msgspec.json.encode(Message(hello=Hello(machine=machine, host="h", digest=digest))) + b"\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "this is machine 0 of a load test"),
        (b"{}\n", "this is machine 0 of a load test"),
        (b'{"hello": {"machine": 1}}\n', "this is machine 0 of a load test"),
        (b"\xff\xfe\n", "this is machine 0 of a load test"),
        (b"[" * 3000 + b"\n", "this is machine 0 of a load test"),
        (b'{"hello": "' + b"x" * 10_000 + b'"}\n', "this is machine 0 of a load test"),
        (greeting(0, ""), "--machine must be 1 to 2 here; got 0"),
        (greeting(3, ""), "--machine must be 1 to 2 here; got 3"),
        (greeting(1, "other"), "its flags, model or files differ from those of machine 0"),
    ],
)
async def test_what_is_no_machine_of_this_run_is_refused(line: bytes, said: str) -> None:
    async with Leader(job(), 3, ("127.0.0.1", 0), 1.0) as machine_0:
        assert said in str((await answer_to(machine_0.port, line)).get("refused"))


async def test_a_number_is_taken_once_and_a_missing_machine_is_named(tmp_path: Path) -> None:
    async with Leader(job(), 3, ("127.0.0.1", 0), 0.3) as machine_0:
        _, writer = await asyncio.open_connection("127.0.0.1", machine_0.port)
        writer.write(greeting(1, digest_of(job())))
        await writer.drain()
        said = await answer_to(machine_0.port, greeting(1, digest_of(job())))
        assert said == {"refused": "machine 1 is here already, from h"}
        with pytest.raises(UsageError, match=r"waited 0.3 s for 2 other machines; missing: 2"):
            await machine_0.run(tmp_path, str, Unseen())
        writer.close()


async def test_a_port_that_is_taken_is_said() -> None:
    async with Leader(job(), 2, ("127.0.0.1", 0), 1.0) as machine_0:
        with pytest.raises(UsageError, match=f"cannot listen for other machines at 127.0.0.1:{machine_0.port}"):
            async with Leader(job(), 2, ("127.0.0.1", machine_0.port), 1.0):
                pass


async def test_a_machine_that_does_not_answer_for_its_clock_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Leader(job(), 2, ("127.0.0.1", 0), 5.0) as machine_0:
        _, writer = await asyncio.open_connection("127.0.0.1", machine_0.port)
        writer.write(greeting(1, digest_of(job())))
        await writer.drain()
        await until(lambda: 1 in machine_0._members)
        monkeypatch.setattr(leader, "HELLO_SECONDS", 0.2)  # the greeting has the same limit, and may be slow
        with pytest.raises(UsageError, match=r"machine 1 \(h\) did not answer within 0.2 s"):
            await machine_0.run(tmp_path, str, Unseen())
        writer.close()

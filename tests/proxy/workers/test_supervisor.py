"""The supervisor's watch: a worker that reports nothing is killed, unless the supervisor itself was paused."""

from __future__ import annotations

import asyncio
import signal
from typing import Any, cast

import pytest

from proxy.flights.queue import PoolQueue, Waiting
from proxy.workers.channel import Engine, Ready, Report, Served
from proxy.workers.process import SILENT, WorkerProcess
from proxy.workers.sockets import Sockets
from proxy.workers.supervisor import Parts, Supervisor
from tests.kit.clock import virtual


class Told:
    """A log that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def event(self, level: str, msg: str, **fields: object) -> None:
        self.lines.append(msg)


class House:
    """A supervisor with one worker that serves, without any process."""

    def __init__(self) -> None:
        self.log = Told()
        parts = Parts(
            sockets=Sockets([[]]), engines=[], redis=None, redis_words="off", arguments=[], drain=0.0, delay=0.0,
            log_pipe=lambda: 0,
        )  # fmt: skip
        self.supervisor = Supervisor(parts, cast(Any, self.log))
        loop = asyncio.get_running_loop()
        self.signals: list[int] = []
        self.sent: dict[WorkerProcess, list[Any]] = {}
        self.worker = self.add(loop)
        self.supervisor._own(self.supervisor._watch())

    def add(self, loop: asyncio.AbstractEventLoop, pid: int = 0) -> WorkerProcess:
        worker = WorkerProcess(0, on_message=self.supervisor._heard, clock=loop.time)
        worker.pid = pid
        worker.ready.set_result(Ready([], [], True, "off", "", ""))
        worker.signal = self.signals.append  # type: ignore[method-assign, assignment]
        self.sent[worker] = []
        worker.send = self.sent[worker].append  # type: ignore[method-assign, assignment]
        self.supervisor._all.add(worker)
        self.supervisor._permits.join(pid)
        return worker


@virtual
async def test_a_worker_that_reports_nothing_is_killed() -> None:
    house = House()
    await asyncio.sleep(SILENT - 2.0)
    assert house.signals == []
    await asyncio.sleep(4.0)
    assert house.signals[0] == signal.SIGKILL
    assert house.log.lines[0] == "worker silent"
    await house.supervisor.close()


@virtual
async def test_one_that_reports_lives() -> None:
    house = House()
    for _ in range(10):
        await asyncio.sleep(SILENT / 2)
        house.worker.excuse()  # as each message does
        house.supervisor._heard(house.worker, Report(0, {"e": (0, 0, 4)}))
    assert house.signals == []
    await house.supervisor.close()


@virtual
async def test_a_place_is_divided_as_soon_as_it_is_reported() -> None:
    house = House()
    sent = house.sent[house.worker]
    house.supervisor._heard(house.worker, Report(0, {"e": (0, 0, 4)}))
    assert [(allot.number, allot.places) for allot in sent] == [(1, {"e": 4})]
    house.supervisor._heard(house.worker, Report(1, {"e": (4, 1, 4)}))
    assert len(sent) == 1, "there is nothing more to give"
    await house.supervisor.close()


@virtual
async def test_what_a_worker_finds_out_of_an_engine_is_told_to_all_others() -> None:
    house = House()
    loop = asyncio.get_running_loop()
    others = [house.add(loop, pid) for pid in (1, 2)]
    down = Engine("e", "down", 0.0, "refused")
    house.supervisor._heard(house.worker, down)
    assert [house.sent[worker] for worker in (house.worker, *others)] == [[], [down], [down]]
    await house.supervisor.close()


@virtual
async def test_the_probe_of_a_worker_that_has_ended_is_over() -> None:
    house = House()
    other = house.add(asyncio.get_running_loop(), 1)
    for name in ("e", "f"):
        house.supervisor._heard(house.worker, Engine(name, "probe", 0.0, ""))
    house.supervisor._heard(house.worker, Engine("f", "closed", 0.0, ""))
    house.supervisor._heard(other, Engine("e", "down", 0.0, ""))
    house.sent[other].clear()
    house.supervisor._forget(house.worker)
    assert house.sent[other] == [Engine("e", "idle", 0.0, "")]
    await house.supervisor.close()


@virtual
async def test_the_tokens_that_a_tenant_was_served_are_told_where_it_waits_too() -> None:
    house = House()
    other = house.add(asyncio.get_running_loop(), 1)
    for worker in (house.worker, other):
        for served in (0, 70):
            waiting = PoolQueue("m", 0.0, [Waiting(1, "x", 1, 1, 3, served if worker is other else 0)])
            house.supervisor._heard(worker, Report(0, {"e": (0, 3, 4)}, [(["e"], waiting)]))
    assert [message for message in house.sent[house.worker] if isinstance(message, Served)] == [
        Served([(("m", 1, "x"), 70)])
    ]
    await house.supervisor.close()


@virtual
async def test_a_new_worker_is_told_which_breakers_are_open() -> None:
    house = House()
    for message in (
        Engine("e", "open", 5.0, "why"),
        Engine("f", "open", 5.0, ""),
        Engine("f", "closed", 0.0, ""),
        Engine("g", "open", 1.0, ""),
    ):
        house.supervisor._heard(house.worker, message)
    await asyncio.sleep(2.0)
    new = house.add(asyncio.get_running_loop(), 1)
    house.supervisor._introduce(new)
    assert house.sent[new] == [Engine("e", "open", 3.0, "why")]
    await house.supervisor.close()


@virtual
async def test_a_worker_whose_process_is_being_made_as_the_gateway_stops_is_told_to_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House()
    told: list[int] = []

    async def start(worker: WorkerProcess, *_: object) -> None:
        house.supervisor._stopping = True

    monkeypatch.setattr(WorkerProcess, "start", start)
    monkeypatch.setattr(WorkerProcess, "signal", lambda worker, number: told.append(number))
    await house.supervisor._launch(0)
    assert told == [signal.SIGTERM]
    await house.supervisor.close()

"""The supervisor's watch: a worker that reports nothing is killed, unless the supervisor itself was paused."""

from __future__ import annotations

import asyncio
import signal
from typing import Any, cast

from proxy.workers.channel import Ready, Report
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
        self.worker = WorkerProcess(0, on_message=self.supervisor._heard, clock=loop.time)
        self.worker.ready.set_result(Ready([], [], True, "off", "", ""))
        self.signals: list[int] = []
        self.worker.signal = self.signals.append  # type: ignore[method-assign, assignment]
        self.supervisor._all.add(self.worker)
        self.supervisor._permits.join(self.worker.pid)
        self.supervisor._own(self.supervisor._watch())


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
    sent: list[Any] = []
    house.worker.send = sent.append  # type: ignore[method-assign, assignment]
    house.supervisor._heard(house.worker, Report(0, {"e": (0, 0, 4)}))
    assert [(allot.number, allot.places) for allot in sent] == [(1, {"e": 4})]
    house.supervisor._heard(house.worker, Report(1, {"e": (4, 1, 4)}))
    assert len(sent) == 1, "there is nothing more to give"
    await house.supervisor.close()

"""What the pool leaves where a process cannot be started, and how its tasks end."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from proxy.server.offload import pool as offload
from tests.kit.running import until
from tests.proxy.server.offload.test_pool_pool import JOB, pool


async def test_sockets_of_a_process_that_could_not_be_started_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []
    real = socket.socketpair

    def socketpair() -> tuple[socket.socket, socket.socket]:
        made.extend(real())
        return made[0], made[1]

    async def fails(*given: Any, **more: Any) -> None:
        raise OSError("no processes left")

    monkeypatch.setattr(socket, "socketpair", socketpair)
    monkeypatch.setattr(asyncio, "create_subprocess_exec", fails)
    with pytest.raises(OSError, match="no processes"):
        await offload.start_child()
    assert [sock.fileno() for sock in made] == [-1, -1]


async def test_a_task_that_had_no_job_for_long_ends_without_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "IDLE_SECONDS", 0.0)
    async with pool() as (under_test, children):
        job = asyncio.create_task(under_test.do(JOB, b"x", "a"))
        await until(lambda: bool(under_test._tasks))
        (task,) = under_test._tasks
        await job
        await until(task.done)
        assert task.result() is None
        assert (under_test._idle, children.processes[0].killed) == (0, 1)

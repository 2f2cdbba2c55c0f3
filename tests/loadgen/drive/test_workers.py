"""The parent of worker processes: what it says of workers that ended without an outcome."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from loadgen.drive.processes import workers
from loadgen.drive.processes.job import Job, Schedule
from loadgen.drive.processes.workers import Worker, run_workers
from loadgen.drive.self_error import WorkerError
from loadgen.drive.session import Outcome
from loadgen.errors import StoreError, UsageError
from loadgen.spec import Body, Http, Pace
from loadgen.workload import Options
from tests.loadgen.kit.sampling import run_of


class Quiet:
    def __call__(self, snapshot: object) -> None: ...

    def note(self, text: str) -> None: ...


def ended(monkeypatch: pytest.MonkeyPatch, folder: Path, *command: str, interrupt: bool) -> None:
    """Run two workers that are this command, and interrupt the run as soon as it listens to signals."""

    async def start(job: Job, number: int, folder: Path) -> Worker:
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
        return Worker(process, folder / f"events-{number}.jsonl")

    def at_once(stop: Callable[[], None], say: Callable[[str], None]) -> None:
        if interrupt:
            asyncio.get_running_loop().call_soon(stop)

    monkeypatch.setattr(workers, "_start", start)
    monkeypatch.setattr(workers, "stop_on_signals", at_once)
    job = Job(
        run="r", targets={}, endpoint="chat", path="/", body=Body(model="m"), http=Http(), pace=Pace(),
        schedule=Schedule(), workload=Options(), num_prompts=2, max_in_flight=2, workers=2,
    )  # fmt: skip
    with asyncio.Runner() as runner:
        runner.run(run_workers(job, run_of(), folder, Quiet()))


def test_ctrl_c_before_the_workers_have_begun_is_no_death_of_theirs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It said “a worker died (exit codes -15, -15)”."""
    with pytest.raises(KeyboardInterrupt):
        ended(monkeypatch, tmp_path, "sleep", "60", interrupt=True)


def test_a_worker_that_died_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a worker died \(exit codes 1, 1\)"):
        ended(monkeypatch, tmp_path, "false", interrupt=False)


def test_a_workers_file_that_is_gone_is_not_taken_for_no_requests(tmp_path: Path) -> None:
    """It said “no request completed” where somebody had removed the folder."""
    worker = Worker(cast(Process, None), tmp_path / "events-0.jsonl")
    worker.outcome = Outcome(worker_error=WorkerError(), start_unix_ns=1)
    with pytest.raises(StoreError, match=r"events-0.jsonl: No such file"):
        workers._merge([worker], run_of(), tmp_path)

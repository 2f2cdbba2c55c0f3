"""One run as a message: all that a process needs to carry out its share. It travels to workers as JSON."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

import msgspec

from loadgen.drive import pacer
from loadgen.drive.pacer import Ramp
from loadgen.drive.requests import RequestBuilder, ScheduledRequest, schedule_items, slice_schedule
from loadgen.drive.session import Outcome, Session
from loadgen.errors import WorkloadError
from loadgen.record import Record
from loadgen.snapshot import View
from loadgen.spec import Body, Cancel, Endpoint, Http, ModelMix, Pace
from loadgen.workload import (
    Item,
    Options,
    Prompt,
    Workload,
)


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """When requests are due. If nothing is set: whenever one of the users is free (closed loop)."""

    rate: float | None = None  # requests per second; None with all_at_once: an infinite one
    all_at_once: bool = False
    burstiness: float | None = 1.0  # None: constant (JSON has no infinity)
    ramp: Ramp | None = None
    trace_speed: float | None = None  # the workload's own times, this many times as fast
    seed: int = 0

    @property
    def open_loop(self) -> bool:
        return self.all_at_once or self.rate is not None or self.ramp is not None or self.trace_speed is not None

    def times(self, items: Iterable[Item]) -> Iterator[float] | None:
        """Due times in seconds; None for a closed loop. Raises ValueError if a trace lacks one or runs
        backwards."""
        burstiness = float("inf") if self.burstiness is None else self.burstiness
        if self.trace_speed is not None:
            return pacer.trace_times((item.at_s for item in items), self.trace_speed)
        if self.ramp is not None:
            return pacer.ramp_times(self.ramp, burstiness, seed=self.seed)
        if self.all_at_once:
            return pacer.open_loop_times(float("inf"))
        return None if self.rate is None else pacer.open_loop_times(self.rate, burstiness, seed=self.seed)


class Job(msgspec.Struct, kw_only=True):
    """What one worker has to do."""

    run: str
    targets: dict[str, str]
    endpoint: Endpoint
    path: str
    body: Body
    http: Http
    pace: Pace
    schedule: Schedule
    workload: Options
    num_prompts: int | None = None
    num_warmups: int = 0
    cancel: Cancel | None = None
    models: ModelMix | None = None
    keep_answers: bool = False
    max_in_flight: int = 1000
    kernel: bool = True
    id_prefix: str = ""  # x-request-id is this and the request's number; empty: the run's own
    secrets: list[str] = []
    objectives: dict[str, float] = {}  # in milliseconds, for the live view
    worker: int = 0
    workers: int = 1
    events: str = ""  # where the worker writes its records

    def builder(self) -> RequestBuilder:
        return RequestBuilder(
            self.targets,
            self.endpoint,
            self.body,
            path=self.path,
            run=self.run,
            id_prefix=self.id_prefix,
            cancel=self.cancel,
            models=self.models,
        )

    def share(self, worker: int, events: str) -> Job:
        """One worker's part of the schedule and of the concurrency; together the parts are the whole."""
        cap = self.pace.max_concurrency
        pace = msgspec.structs.replace(self.pace, max_errors=None)  # the parent counts for all of them
        if cap is not None:
            share = cap // self.workers + (worker < cap % self.workers)
            pace = msgspec.structs.replace(pace, max_concurrency=share)
        max_in_flight = max(self.max_in_flight // self.workers, 1)
        return msgspec.structs.replace(self, worker=worker, pace=pace, max_in_flight=max_in_flight, events=events)


def prompts_of(items: Iterable[Item]) -> Iterator[Prompt]:
    """Each item's prompt. Raises WorkloadError for a conversation: its later requests depend on answers."""
    for item in items:
        if item.then:
            raise WorkloadError(
                "conversations (--turns, agent traces) are for `run`, `ab` and `sweep`; this sends single requests"
            )
        yield item.prompt


def job_schedule(job: Job, workload: Workload) -> Iterator[ScheduledRequest]:
    """This worker's requests of the run."""
    times = job.schedule.times(itertools.islice(workload.requests(), job.num_prompts))
    items = itertools.islice(workload.requests(), job.num_prompts)
    return slice_schedule(
        schedule_items(items, times, speed=job.schedule.trace_speed or 1.0), job.worker, job.workers
    )


def warm_up_requests(job: Job, workload: Workload) -> Iterator[ScheduledRequest]:
    """Prompts like the run's but none of them; the same ones to every target, and no two workers' the same."""
    items = itertools.islice(workload.warmups(job.num_warmups), job.worker, None, job.workers)
    prompts = [(prompt, target) for prompt in prompts_of(items) for target in job.targets]
    return (
        ScheduledRequest(-1 - job.worker - job.workers * place, prompt, None, target)
        for place, (prompt, target) in enumerate(prompts)
    )


async def warm_up(
    job: Job, session: Session, workload: Workload, emit: Callable[[Record], None]
) -> Outcome | None:
    """Load the texts, and send the warm-up requests, with the run's concurrency, or 8 at once if it has no cap."""
    next(workload.requests(), None)  # a trace loads them for its first request, which may be due at once
    if not job.num_warmups:
        return None
    pace = Pace(max_concurrency=job.pace.max_concurrency or 8)
    schedule = list(warm_up_requests(job, workload))
    return await session.phase(schedule, pace, emit, warmup=True, total=len(schedule), stage="warm-up")


def session_of(job: Job, hide: Callable[[str], str], view: View | None) -> Session:
    return Session(
        job.http,
        job.builder(),
        max_in_flight=job.max_in_flight,
        worker=job.worker,
        kernel=job.kernel,
        hide=hide,
        view=view,
        keep_answers=job.keep_answers,
        objectives=job.objectives,
    )

"""Sending requests on schedule and recording what comes back, with this program's own error beside it.

The nouns, in the order in which a request meets them:

- `Job`: one process's order as a message. `Schedule` says when requests are due; `Pace` caps how many are in
  flight.
- `ScheduledRequest`: a prompt, its due time and its target. `RequestBuilder` encodes it before it is due.
- `Runner`: sends each request when it is due (open loop) or when a user is free (closed loop).
- `Client`: one request over aiohttp; never raises. What it saw is an `Exchange`: raw bytes, and a time stamp
  for each read. `capture/` has the sockets, the event loop and the handler that take these stamps from the
  kernel.
- `Backlog`: ended exchanges. They are decoded into `Record`s after the run, so that the loop stays free during
  it.
- `Conversation`: a scheduled request whose follow-ups are due after its answer. `CancelWatch` reads an engine's
  metrics to see that it stops when clients leave.
- `Session`: all of this for one process, for one phase (warm-up, run, stage) after another.
- `Stages`: phases at one load after another, for a sweep of users and for `find`.
- `scraping`: reads /metrics of engines meanwhile, each in a process of its own.
- `WorkerError`: how late the process was. `judge_self_error` decides whether the run is valid.

- `Leader`, `join_run`: a run on several machines; each one's `Part` goes to machine 0.

`run_single` carries out a job here, `run_workers` in several processes that share the schedule by arithmetic.
"""

from loadgen.drive.calibration import (
    Calibration,
    beyond_calibration,
    load_calibration,
    save_calibration,
)
from loadgen.drive.capture.client import Client, failure_of
from loadgen.drive.capture.clock import Clock
from loadgen.drive.capture.exchange import Exchange
from loadgen.drive.capture.loop import new_loop
from loadgen.drive.engine_check import CancelWatch
from loadgen.drive.machines.leader import Gathered, Leader
from loadgen.drive.machines.member import join_run
from loadgen.drive.machines.share import Part
from loadgen.drive.pacer import Ramp, counted_times, open_loop_times
from loadgen.drive.processes.job import (
    Job,
    Schedule,
    job_schedule,
    prompts_of,
    session_of,
    warm_up,
)
from loadgen.drive.processes.signals import stop_on_signals
from loadgen.drive.processes.single_process import run_single
from loadgen.drive.processes.worker import worker_main
from loadgen.drive.processes.workers import run_workers
from loadgen.drive.requests import (
    RequestBuilder,
    ScheduledRequest,
    schedule_items,
    schedule_pairs,
    schedule_requests,
)
from loadgen.drive.scrape import scraping
from loadgen.drive.self_error import (
    Fault,
    WorkerError,
    judge_self_error,
    lag_of,
    medians_ms,
    percentiles_ms,
)
from loadgen.drive.session import Session
from loadgen.drive.stages import Stages
from loadgen.scraper import Source

__all__ = [
    "Calibration",
    "CancelWatch",
    "Client",
    "Clock",
    "Exchange",
    "Fault",
    "Gathered",
    "Job",
    "Leader",
    "Part",
    "Ramp",
    "RequestBuilder",
    "Schedule",
    "ScheduledRequest",
    "Session",
    "Source",
    "Stages",
    "WorkerError",
    "beyond_calibration",
    "counted_times",
    "failure_of",
    "job_schedule",
    "join_run",
    "judge_self_error",
    "lag_of",
    "load_calibration",
    "medians_ms",
    "new_loop",
    "open_loop_times",
    "percentiles_ms",
    "prompts_of",
    "run_single",
    "run_workers",
    "save_calibration",
    "schedule_items",
    "schedule_pairs",
    "schedule_requests",
    "scraping",
    "session_of",
    "stop_on_signals",
    "warm_up",
    "worker_main",
]

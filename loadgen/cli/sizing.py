"""The size of a load that is given without --num-prompts: a probe measures the server's pace, and flags that were
not given are chosen by it. Choosing is pure; `probe` sends."""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any, Final, NamedTuple

import msgspec

from loadgen.analysis import measure, unmeasured
from loadgen.drive import Job, ScheduledRequest, Session, prompts_of, session_of
from loadgen.errors import UsageError
from loadgen.record import GENERATED, Event, Kind, Record
from loadgen.report import unmeasured_text
from loadgen.secrets import Hide
from loadgen.spec import GENERATING, Pace
from loadgen.workload import conversation_size, open_workload

DEFAULT_USERS: Final = 8
ENDLESS: Final = frozenset({"corpus", "random", "prompt", "prefix_repetition"})
"""Datasets that do not say how many requests there are."""
OPEN_ENDED: Final = frozenset({"corpus", "prompt"})
"""Datasets that do not say how long a response is."""

PROBE_TOKENS: Final = 16
ALONE_SECONDS: Final = 20.0  # for the first request
TOGETHER_SECONDS: Final = 6.0
SLOW_SECONDS: Final = 3.0  # of a request of TOKENS[0] alone: a slower server gets one request at a time
RUN_SECONDS: Final = 30.0
RUN_REQUESTS: Final = 80  # in that time, if responses of at least TOKENS[0] can be that short
SWEEP_SECONDS: Final = 36.0  # of all stages, without their drains
LEAST_STAGES: Final = 4
STAGE_REQUEST_SECONDS: Final = 1.0  # of a request of a sweep, whose stages are short
STAGE_REQUESTS: Final = (24, 6)  # in the lightest stage: wanted, and the fewest that have a median
STAGE_SECONDS: Final = (6.0, 9.0)  # longer only for a slow server's fewest requests
TOKENS: Final = (24, 128)
"""The fewest and the most that are chosen. The end of the stream often follows the last token at once, and the two
are merged: of a shorter response that is more than 5 % of the events, the limit of --limit-censored."""
REQUESTS: Final = (8, 20_000)
FIND_REQUESTS: Final = 100_000  # of a search: their records are kept until its end


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """What the probe measured, in seconds: medians, to which a request that was cut off gives the time it had
    taken until then."""

    users: int  # requests in flight
    requests: int
    completed: int
    seconds: float  # how long the probe took
    first: float  # to the first token, or to a whole response
    gap: float  # between two tokens of a stream; 0: unknown
    unmeasured: dict[str, str] = {}  # objective -> why no response has a value for it

    def request(self, tokens: int) -> float:
        """Seconds that a response of so many tokens takes."""
        return max(self.first + (tokens - 1) * self.gap, 1e-3)

    def rate(self, tokens: int) -> float:
        """Requests per second that these users get."""
        return self.users / self.request(tokens)

    def tokens_within(self, seconds: float) -> int:
        """The longest response that takes at most so long, within TOKENS."""
        most = 1 + (seconds - self.first) / self.gap if self.gap else math.inf
        return int(min(max(most, TOKENS[0]), TOKENS[1]))

    def __str__(self) -> str:
        return (
            f"{self.users} in flight, {self.completed} of {self.requests} requests completed in "
            f"{self.seconds:.1f} s: TTFT {self.first * 1e3:,.0f} ms, {self.gap * 1e3:,.1f} ms per further token"
        )


class Choice(NamedTuple):
    """Flags by their `dest`, and about how long the load takes at the probe's pace."""

    flags: dict[str, Any]
    seconds: float

    def __str__(self) -> str:
        flags = " ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in self.flags.items())
        return f"{flags} (about {self.seconds:.0f} s at that pace)"


def needs_probe(args: argparse.Namespace, job: Job) -> bool:
    """Whether the flags leave open how many requests there are."""
    given = getattr(args, "ramp_up_strategy", None) or getattr(args, "rates", None)
    return args.num_prompts is None and not given and job.workload.dataset_name in ENDLESS


def lacks_length(job: Job) -> bool:
    """Whether the server alone decides how long a response is."""
    given = (
        job.body.max_tokens
        or job.workload.corpus_output_len
        or {"max_tokens", "max_completion_tokens"} & {*job.body.extra}
    )
    return not given and job.workload.dataset_name in OPEN_ENDED and job.endpoint in GENERATING


def choose_run(args: argparse.Namespace, job: Job, speed: Speed) -> Choice:
    """Length, count and, for a slow server, concurrency of a `run` or an `ab`."""
    seconds = min(RUN_SECONDS, args.max_seconds or RUN_SECONDS)
    flags: dict[str, Any] = {}
    turns, think = conversation_size(job.workload)
    rate = job.schedule.rate  # of conversations, where there are any
    if not job.schedule.open_loop and args.max_concurrency is None and speed.users < DEFAULT_USERS:
        flags["max_concurrency"] = speed.users
    tokens = _tokens(
        job, speed, speed.users * min(RUN_SECONDS / RUN_REQUESTS, 1 / (rate * turns) if rate else math.inf), flags
    )
    per_second = rate or speed.users / (turns * speed.request(tokens) + (turns - 1) * think)
    flags["num_prompts"] = count = _within(seconds * per_second / len(job.targets), REQUESTS)
    return Choice(flags, count * len(job.targets) / per_second)


def choose_sweep(args: argparse.Namespace, job: Job, speed: Speed) -> Choice:
    """Length, lowest rate, length of a stage, even arrivals, and count. The rates rise from half of what the probe
    reached. Arrivals are even because chance would decide a stage of some 24 Poisson arrivals.

    Raises UsageError.
    """
    refuse_unmeasured(speed.unmeasured)
    flags: dict[str, Any] = {}
    rate = speed.rate(_tokens(job, speed, STAGE_REQUEST_SECONDS, flags))
    start = args.start_rate
    if start is None:
        flags["start_rate"] = start = min(float(f"{rate / 2:.2g}"), args.top_rate)
    if args.stage_seconds is None:
        wanted, least = (count / start for count in STAGE_REQUESTS)
        seconds = max(min(max(wanted, STAGE_SECONDS[0]), STAGE_SECONDS[1]), least)
        flags["stage_seconds"] = round(min(seconds, (args.max_seconds or math.inf) / LEAST_STAGES), 1)
    length = args.stage_seconds or flags["stage_seconds"]
    if args.burstiness is None:
        flags["burstiness"] = math.inf
    # Prompts enough for many doublings; where some repeat, few enough that they repeat from the first stage on.
    flags["num_prompts"] = _within(rate * length * (16 if args.duplicates else 200), REQUESTS)
    return Choice(flags, most_stages(length) * length)


def choose_users(args: argparse.Namespace, job: Job, speed: Speed) -> Choice:
    """Length, length of a stage, and prompts enough for every number of users at the speed of one. Raises
    UsageError."""
    refuse_unmeasured(speed.unmeasured)
    flags: dict[str, Any] = {}
    tokens = _tokens(job, speed, STAGE_REQUEST_SECONDS, flags)
    seconds = args.stage_seconds
    if seconds is None:
        least = STAGE_REQUESTS[1] * speed.request(tokens)
        flags["stage_seconds"] = seconds = round(max(STAGE_SECONDS[0], least), 1)
    flags["num_prompts"] = REQUESTS[1]  # stages end by time
    return Choice(flags, len(args.concurrencies) * seconds)


def choose_find(args: argparse.Namespace, job: Job, speed: Speed) -> Choice:
    """Length, first rate, and prompts enough for a server eight times as fast as the probe saw it. Raises
    UsageError."""
    refuse_unmeasured(speed.unmeasured)
    flags: dict[str, Any] = {}
    rate = speed.rate(_tokens(job, speed, STAGE_REQUEST_SECONDS, flags))
    seconds = args.max_minutes * 60
    if args.start_rate is None and not args.concurrency:
        flags["start_rate"] = min(float(f"{rate / 2:.2g}"), args.top_rate)
    flags["num_prompts"] = int(min(max(8 * rate * seconds, 4_000), FIND_REQUESTS))
    return Choice(flags, seconds)


def unmeasured_in(records: Sequence[Record], objectives: Iterable[str]) -> dict[str, str]:
    """The objectives that no completed request has a value for, and why."""
    return unmeasured(map(measure, records), objectives)


def refuse_unmeasured(unmeasured: Mapping[str, str]) -> None:
    """Raises UsageError: a load cannot be judged by objectives that have no value."""
    if unmeasured:
        raise UsageError(f"{unmeasured_text(unmeasured)}; remove it from --goodput")


def most_stages(seconds: float) -> int:
    """How many stages of so many seconds a sweep has whose size a probe chose."""
    return max(int(SWEEP_SECONDS / seconds), LEAST_STAGES)


def _tokens(job: Job, speed: Speed, seconds: float, flags: dict[str, Any]) -> int:
    """The length of a response: chosen where there is none, else that of the first prompts."""
    if lacks_length(job):
        flags["max_tokens"] = speed.tokens_within(seconds)
        return int(flags["max_tokens"])
    given = job.body.max_tokens or next(open_workload(job.workload).requests()).prompt.fields.get("max_tokens")
    return int(given or PROBE_TOKENS)


def _within(value: float, bounds: tuple[int, int]) -> int:
    return min(max(round(value), bounds[0]), bounds[1])


async def probe(job: Job, hide: Hide, *, users: int | None, advice: str = "") -> Speed:
    """Send a few requests like the run's: one alone, then `users` at a time (None: DEFAULT_USERS, but one for a
    slow server). They share no prompt with the run or its warm-up.

    Raises UsageError if no token comes within ALONE_SECONDS, if no response has one, or if every request fails,
    with the advice where there is no server.
    """
    if lacks_length(job):
        job = msgspec.structs.replace(job, body=msgspec.structs.replace(job.body, max_tokens=PROBE_TOKENS))
    schedule = _probes(job)
    async with session_of(job, hide, None) as session:
        first = itertools.islice(schedule, len(job.targets))
        alone = await _phase(session, job, first, 1, ALONE_SECONDS, advice)
        if alone is None:
            raise UsageError(
                f"no token from {' or '.join(job.targets.values())} within {ALONE_SECONDS:g} s: is the server "
                "overloaded? Give --num-prompts to measure it nevertheless"
            )
        if users == 1 or (users is None and alone.request(TOKENS[0]) > SLOW_SECONDS):
            return alone
        users = users or DEFAULT_USERS
        return await _phase(session, job, itertools.islice(schedule, 2 * users), users, TOGETHER_SECONDS) or alone


def _probes(job: Job) -> Iterator[ScheduledRequest]:
    """Prompts like the run's, each after a nonce of the probe, to each target in turn."""
    salt = f"{job.workload.salt}/probe"
    options = msgspec.structs.replace(job.workload, num_prompts=32, duplicates=0.0, salt=salt)
    targets = itertools.cycle(job.targets)
    for number, prompt in enumerate(prompts_of(open_workload(options).warmups(10**6)), 1):
        yield ScheduledRequest(-number, prompt, None, next(targets))


async def _phase(
    session: Session,
    job: Job,
    schedule: Iterator[ScheduledRequest],
    users: int,
    limit: float,
    advice: str = "",
) -> Speed | None:
    """None without a token in time. Raises UsageError if every request failed or no response has a token."""
    records: list[Record] = []
    began = session.now()
    await session.phase(schedule, Pace(max_concurrency=users, max_seconds=limit), records.append, warmup=True)
    failed = next((record for record in records if record.failure not in (None, "cancelled")), None)
    if failed is not None and all(record.failure is not None for record in records):
        url = job.targets[failed.target]
        more = f". {advice}" if advice and failed.failure == "refused" else ""
        raise UsageError(f"the first requests to {url} failed ({failed.failure}): {failed.detail}{more}")
    speed = speed_of(records, users, (session.now() - began) / 1e9)
    if speed is not None:
        return msgspec.structs.replace(speed, unmeasured=unmeasured_in(records, job.objectives))
    if records and all(record.failure is None for record in records):
        raise UsageError(f"the server answers without any token: {' and '.join(job.targets.values())}")
    return None


def speed_of(records: Sequence[Record], users: int, seconds: float) -> Speed | None:
    """The speed of a phase that took so many seconds; None if no request got a token."""
    firsts: list[float] = []
    gaps: list[float] = []
    tokens = 0
    for record in records:
        sent = (record.sent_ns if record.sent_ns is not None else record.due_ns) / 1e9
        events = [event for event in record.events if event.kind in GENERATED]
        tokens += len(events)
        if events:
            first, gap = _pace(record, events, sent)
            firsts.append(first)
            cut = record.failure == "cancelled" and len(events) == 1
            gaps += [seconds - sent - first] if cut else [gap] if gap else []
        elif record.failure == "cancelled":
            firsts.append(max(seconds - sent, 0.0))
    if not tokens:
        return None
    return Speed(
        users=users,
        requests=len(records),
        completed=sum(record.failure is None for record in records),
        seconds=seconds,
        first=median(firsts),
        gap=max(median(gaps), 0.0) if gaps else 0.0,
    )


def _pace(record: Record, events: Sequence[Event], sent: float) -> tuple[float, float]:
    """Seconds to the first token and between tokens, or 0. The time of one JSON body is divided evenly."""
    count = record.completion_tokens or len(events)
    first = events[0].at_ns / 1e9 - sent
    if events[0].kind is Kind.WHOLE:
        return (first / count, first / count) if count > 1 else (first, 0.0)
    return first, (events[-1].at_ns - events[0].at_ns) / 1e9 / (count - 1) if count > 1 else 0.0

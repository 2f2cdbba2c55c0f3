"""The facts of a run as plain data, and the only interface between measuring and reporting: what was to be sent,
what came back and when, under which settings. One `Record` is one line of `events.jsonl`."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

import msgspec

MAX_ANSWER = 65_536

SCHEMA = 1
"""Increased when a field changes its meaning. A file of another schema is refused."""


class Kind(StrEnum):
    """What one SSE event (or one whole body) carried."""

    ROLE = "role"  # a delta with a role and nothing generated
    CONTENT = "content"  # non-empty text (chat content, completion text)
    REASONING = "reasoning"
    TOOL = "tool"  # a tool call's name or arguments
    FINISH = "finish"  # a finish_reason and nothing generated
    USAGE = "usage"
    DONE = "done"
    ERROR = "error"  # an error frame inside a 200
    OTHER = "other"  # comments, keep-alives, empty deltas
    WHOLE = "whole"  # one JSON body: not a stream


GENERATED = frozenset({Kind.CONTENT, Kind.REASONING, Kind.TOOL, Kind.WHOLE})


def writable(text: str) -> str:
    """A text that can be encoded: JSON may hold halves of surrogate pairs, alone or one in each of two chunks. Two
    that follow each other are one character; one alone is U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


FRESH = frozenset({None, "miss", "merged", "bypass"})
"""Values of `x-gateway-cache` for responses that an engine generated for the request; the others were shared."""


class Event(msgspec.Struct, array_like=True):
    """One event of a stream. Times are nanoseconds since the run's start, on one clock.

    The last byte of the event arrived in [low_ns, at_ns]. Equal: exact (one kernel stamp belongs to it alone).
    Different: censored. The kernel had merged unread segments; at_ns is the stamp of the last of them, low_ns
    the stamp of the read before. user_ns is when the program had it: user_ns - at_ns is its own delay.
    """

    at_ns: int
    low_ns: int
    user_ns: int
    kind: Kind
    tokens: int | None = None  # tokens that this event brought, where continuous usage says so; else None
    choice: int = 0  # index of the choice it belongs to


Failure = Literal[
    "refused",  # no connection
    "timeout",
    "status",  # an HTTP status other than 2xx
    "truncated",  # the stream ended without [DONE] or without a finish_reason, or the body before its end
    "aborted",  # a finish_reason that is none of OpenAI's, such as vLLM's `abort` and `error`
    "error_frame",  # an error event inside a 200
    "garbage",  # not a response of this API
    "cancelled",  # the run ended first (Ctrl-C, --max-seconds); not the server's failure
    "left",  # its client cancelled it on purpose (--cancel); not a failure
    "shed",  # due, but above --max-concurrency in an open loop, and not sent
]

CUT_OFF = frozenset({"cancelled", "left"})
"""Kinds of `Failure` that are no failures: the generator ended the request, not the server."""


class Record(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One request, from due to its end. Nanoseconds since the run's start; None: it did not happen."""

    index: int  # place in the schedule, from 0
    id: str  # sent as x-request-id
    prompt: str  # id of the prompt; duplicates (equal bytes) have the same one
    target: str = "a"  # which of `ab`'s two targets
    pair: int | None = None  # `ab`: records of one pair carry the same request
    worker: int = 0
    stage: str = ""  # sweep's or ramp's stage, e.g. "rate=8"
    conversation: str = ""  # the conversation it is a turn of
    turn: int = 0  # its place in that, from 1; 0: it is no turn
    turns: int = 0  # how many requests the conversation has
    model: str = ""  # where a run mixes models
    cancel: Literal["", "tokens", "time"] = (
        ""  # chosen by --cancel, and when; one that completed first has no failure
    )
    warmup: bool = False
    waited: bool = False  # due while the cap was reached: sent - due is queueing, not lateness
    resent: int = 0  # how often it was sent again because the server had closed the kept-alive connection
    stream: bool = True
    due_ns: int
    sent_ns: int | None = None  # the request's last byte left; by the kernel, else by the program
    write_ns: int | None = None  # the program passed its first byte to the socket
    connect_ns: int | None = None  # duration of connecting, if it got a new connection
    head_ns: int | None = None  # first byte of the response
    end_ns: int | None = None  # last byte of the response
    closed_ns: int | None = None  # the response did not end: the program gave it up, or was told so
    status: int | None = None
    failure: Failure | None = None
    detail: str = ""  # the error's text or the body, without secrets; at most 500 characters
    events: list[Event] = []
    prompt_tokens: int | None = None  # by the server's usage, never guessed
    completion_tokens: int | None = None
    cached_tokens: int | None = None  # prompt_tokens_details.cached_tokens: the engine's prefix cache
    shared: str | None = None  # the gateway's x-gateway-cache: miss, attached, hit, merged, bypass
    engine_queue_ms: float | None = None  # by vLLM's `metrics` of the last chunk: received to scheduled
    engine_prefill_ms: float | None = None  # scheduled to its first token
    bytes_in: int = 0
    bytes_out: int = 0
    answer: str | None = None  # what was generated, where `ab` compares the answers; at most MAX_ANSWER characters

    @property
    def began_ns(self) -> int | None:
        """When the program began to send it."""
        return self.sent_ns if self.write_ns is None else self.write_ns


class Lag(msgspec.Struct, kw_only=True):
    """The generator's own error, in milliseconds; shares are of 1."""

    clock: Literal["kernel", "user", "mixed"] = "user"  # clock that stamped received data
    send_clock: Literal["kernel", "user", "mixed"] = "user"
    loop_ms: dict[str, float] = {}  # event-loop lag: "p50", "p99", "max"
    read_ms: dict[str, float] = {}  # from the kernel's stamp to the program, exact events only
    late_ms: dict[str, float] = {}  # first write - due, for requests that the cap did not delay
    sending_ms: dict[
        str, float
    ] = {}  # last byte sent - first write: the server's and the network's, not our error
    censored: float = 0.0  # share of generated-content events whose time is an interval, without shared responses
    censored_width_ms: dict[str, float] = {}  # widths of those intervals
    cpu: float = 0.0  # CPU seconds per wall second of the busiest worker process
    clock_drift_ms: float = 0.0  # realtime against monotonic, over the run
    floor_ms: dict[str, float] | None = None  # error floor of TTFT and ITL, if `calibrate` was run


class CancelCheck(msgspec.Struct, kw_only=True):
    """Whether an engine stopped when clients left, by its own /metrics."""

    url: str
    within_s: float  # the time it has to stop
    before: float  # requests running and waiting before the run
    after: float | None = None  # and at the last reading after it
    settle_s: float | None = (
        None  # from the end of the last request until it was back at `before`; None: it was not
    )
    excess: float = 0.0  # the most requests it had above those in flight within the time, during the run
    readings: int = 0
    left: int = 0  # requests that were cancelled
    aborted_before: float | None = None
    aborted: float | None = None  # requests that it says it stopped, during the run; None: it does not say

    @property
    def problem(self) -> str | None:
        """What shows that it did not stop; None if nothing does."""
        if self.excess > 0:
            return (
                f"{self.url} had {self.excess:g} requests more than were in flight, {self.within_s:g} s after "
                "clients left"
            )
        if self.left and self.settle_s is None:
            now = (
                "did not answer"
                if self.after is None
                else f"still had {self.after:g} requests ({self.before:g} before)"
            )
            return f"{self.url} {now} {self.within_s:g} s after the run"
        return None


class Machine(msgspec.Struct, kw_only=True):
    """One machine of a run on several. Its clock was compared with that of machine 0 before and after the run."""

    number: int
    host: str
    clock_error_ms: float = 0.0  # its times since the start differ by at most so much from machine 0's
    clock_drift_ms: float = 0.0  # of its clock against machine 0's, over the run


class Share(msgspec.Struct, kw_only=True):
    """Which part of a run these records are: of machine `machine` of `machines`."""

    run: str
    machine: int
    machines: int
    worker_error: dict[str, Any] = {}  # of the process, for the merge


class Reading(msgspec.Struct, array_like=True):
    """What a /metrics page said at one time, by our names; empty if it could not be read."""

    at_s: float  # CLOCK_REALTIME
    figures: dict[str, float]


class Scraped(msgspec.Struct, kw_only=True):
    """The readings of one engine or gateway during the run."""

    name: str
    url: str
    kind: str  # "vllm" or "gateway"
    readings: list[Reading] = []
    missed: int = 0  # readings that failed


class Run(msgspec.Struct, kw_only=True):
    """A run: everything that a report needs besides the records."""

    schema: int = SCHEMA
    date: str  # ISO 8601, UTC
    label: str
    command: list[str]  # argv, secrets masked
    config: dict[str, Any]  # every flag as used, secrets masked
    targets: dict[str, str]  # "a" -> base URL
    model: str
    endpoint: str  # /v1/chat/completions, ...
    machine: dict[str, Any] = {}  # cpu, cores, kernel, python, versions of what matters, governor if readable
    seed: int = 0
    duration_ns: int = 0  # from the first due to when the last request was over, without the warm-up
    start_unix_ns: int = 0  # CLOCK_REALTIME at the run's start
    workers: int = 1
    machines: list[Machine] = []  # of a run on several
    share: Share | None = None  # None: all of the run
    interrupted: bool = False
    stopped: str = ""  # why failures ended it early (--max-errors); empty: they did not
    lag: Lag = msgspec.field(default_factory=Lag)
    invalid: list[str] = []  # reasons why figures must not be used; empty: valid
    touched: list[str] = []  # the measures that `invalid` is about, as in a summary's stats; empty: every figure
    warnings: list[str] = []
    cancel_checks: list[CancelCheck] = []
    scraped: list[Scraped] = []  # what engines and gateways said of themselves
    found: dict[str, Any] | None = None  # `find`'s answer: `analysis.Found`
    focus: str = ""  # the stage whose latencies the report shows; empty: by the rates of a sweep, or the whole run
    sent_stats: dict[str, Any] = {}  # what was really sent: duplicate share, prefix share, distinct prompts

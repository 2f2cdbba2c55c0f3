"""Compares the TTFT that a tool reported for each request with the TTFT that the server measured. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from loadgen.drive.self_error import quantile
from ops.bench.generators.server import Served

Key = Literal["request", "answer"]
"""What identifies a request in a tool's file: its x-request-id, or the `id` of the response."""


class Reported(msgspec.Struct, frozen=True):
    """One request as a tool reports it."""

    key: str
    ttft_ns: int
    low_ns: int | None = None  # ours, if the kernel merged events: TTFT lies in [low_ns, ttft_ns]


class Found(msgspec.Struct, kw_only=True):
    """The comparison of one part. `errors_ns`: reported minus true TTFT, in the order of the tool's file."""

    errors_ns: list[int]
    truths_ns: list[int]
    covered: int  # how many of `intervals` contain the true TTFT
    intervals: int
    began_ns: int  # CLOCK_REALTIME: arrival of the first request
    ended_ns: int  # the last token was sent
    arrived_per_s: float  # by the server's clock
    unknown: int  # reported, but unknown to the server
    by_program: int  # requests without a kernel timestamp: their time is the server program's


def truth_ns(served: Served) -> int:
    """The true TTFT in nanoseconds: from the kernel's receive timestamp of the request's last byte at the server
    to the moment when the server wrote the first token to the socket.

    One clock (CLOCK_REALTIME) on one machine. The two loopback passes that it omits are in every tool's error.
    """
    return served.first_ns - served.got_ns


def compare(log: Iterable[Served], reported: Sequence[Reported], key: Key) -> Found:
    by_key = {name: served for served in log if (name := getattr(served, key)) and served.first_ns}
    pairs = [(by_key[one.key], one) for one in reported if one.key in by_key]
    arrivals = sorted(served.got_ns for served, _ in pairs)
    span = arrivals[-1] - arrivals[0] if arrivals else 0
    intervals = [(served, one) for served, one in pairs if one.low_ns is not None]
    return Found(
        errors_ns=[one.ttft_ns - truth_ns(served) for served, one in pairs],
        truths_ns=[truth_ns(served) for served, _ in pairs],
        covered=sum((one.low_ns or 0) <= truth_ns(served) <= one.ttft_ns for served, one in intervals),
        intervals=len(intervals),
        began_ns=arrivals[0] if arrivals else 0,
        ended_ns=max((served.last_ns for served, _ in pairs), default=0),
        arrived_per_s=(len(arrivals) - 1) / span * 1e9 if span else 0.0,
        unknown=len(reported) - len(pairs),
        by_program=sum(not served.by_kernel for served, _ in pairs),
    )


def absolute_ms(errors_ns: Sequence[int]) -> tuple[float, float, float]:
    """p50, p99 and max of the absolute errors in milliseconds; zeros without errors."""
    ordered = sorted(abs(error) / 1e6 for error in errors_ns)
    if not ordered:
        return (0.0, 0.0, 0.0)
    return (quantile(ordered, 0.5), quantile(ordered, 0.99), ordered[-1])


def cpu_at(samples: Sequence[tuple[int, int]], at_ns: int) -> int:
    """CPU nanoseconds at a time, interpolated linearly between (time, CPU) samples in order of time."""
    before = (samples[0][0], samples[0][1]) if samples else (0, 0)
    for sample in samples:
        if sample[0] >= at_ns:
            span = max(sample[0] - before[0], 1)
            return before[1] + (sample[1] - before[1]) * max(at_ns - before[0], 0) // span
        before = sample
    return before[1]

"""A run over time: bins of arrivals, tokens and failures, and how many requests were in flight."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Final

import msgspec

from loadgen.analysis.definitions import Measured
from loadgen.analysis.knee import completion_ratio

SECOND: Final = 1e9


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """Equal bins over the run. Rates are per second."""

    start_ns: int
    width_s: float
    due: list[float]
    sent: list[float]
    tokens: list[float]
    failed: list[int]  # number of failures, by when they ended
    in_flight: list[int]  # the most at any time within the bin


def window(requests: Iterable[Measured], *, responses: bool = False) -> tuple[int, int]:
    """From the first due to when the last request was over, in nanoseconds; (0, 0) without requests. `responses`:
    to the last byte of a response, without the time that was waited for those that did not end."""
    starts, ends = [], []
    for request in requests:
        starts.append(request.due_ns)
        over = request.end_ns if responses else request.over_ns
        ends += [moment for moment in (request.due_ns, request.sent_ns, over) if moment is not None]
    return (min(starts), max(ends)) if starts else (0, 0)


def tokens_in_bins(requests: Iterable[Measured], start_ns: int, width_ns: float, bins: int) -> list[float]:
    """Tokens of completed requests by arrival. A request's tokens, by usage, are divided evenly among its
    chunks; a request without usage counts in no bin."""
    counts = [0.0] * bins
    last = bins - 1
    for request in requests:
        if request.completed and request.generated and request.output_tokens:
            each = request.output_tokens / request.generated
            for at in request.arrivals:
                place = int((at - start_ns) / width_ns)
                counts[min(max(place, 0), last)] += each
    return counts


def peak_tokens_per_second(requests: Sequence[Measured], start_ns: int, seconds: float) -> float:
    """The rate in the busiest of equal bins of at least a second, so it is never below the mean over the run.

    vLLM counts chunks in whole seconds, the last of which is shorter: its peak can be below its mean
    (sglang#33193).
    """
    bins = max(1, int(seconds))
    if seconds <= 0:
        return 0.0
    width = seconds / bins
    return max(tokens_in_bins(requests, start_ns, width * SECOND, bins)) / width


def steps(requests: Iterable[Measured]) -> list[tuple[int, int]]:
    """(time, +1 or -1) for each request begun and ended, ascending; at equal times ends come first."""
    changes = []
    for request in requests:
        began = request.sent_ns if request.began_ns is None else request.began_ns
        if began is not None:
            changes.append((began, 1))
            if request.over_ns is not None:
                changes.append((max(request.over_ns, began + 1), -1))
    return sorted(changes)


def peak_in_flight(requests: Iterable[Measured]) -> int:
    """The most requests in flight at one instant."""
    return max(accumulate(change for _, change in steps(requests)), default=0)


def kept_up(requests: Sequence[Measured]) -> float:
    """The completed share times `completion_ratio`: whether a server falls behind, as `sweep` measures it. The
    drain after the last arrival does not count against it, and shared responses, which end at once, not for it."""
    completed = sum(request.completed for request in requests)
    if not completed:
        return 0.0
    done = [request for request in requests if request.completed and request.end_ns is not None]
    judged = [request for request in done if request.fresh] or done
    ends = [request.end_ns for request in judged if request.end_ns is not None]
    return completion_ratio([request.due_ns for request in judged], ends) * completed / len(requests)


def bin_timeline(requests: Sequence[Measured], bins: int = 120) -> Timeline:
    start, end = window(requests)
    width = max(end - start, 1) / bins
    rate = SECOND / width

    def place(moment: int) -> int:
        return min(max(int((moment - start) / width), 0), bins - 1)

    due, sent, failed = [0] * bins, [0] * bins, [0] * bins
    for request in requests:
        due[place(request.due_ns)] += 1
        if request.sent_ns is not None:
            sent[place(request.sent_ns)] += 1
        if not request.completed and not request.cancelled:
            failed[
                place(next(at for at in (request.over_ns, request.sent_ns, request.due_ns) if at is not None))
            ] += 1
    tokens = tokens_in_bins(requests, start, width, bins)
    return Timeline(
        start_ns=start,
        width_s=width / SECOND,
        due=[count * rate for count in due],
        sent=[count * rate for count in sent],
        tokens=[count * rate for count in tokens],
        failed=failed,
        in_flight=_most_in_flight(steps(requests), start, width, bins),
    )


def _most_in_flight(changes: Sequence[tuple[int, int]], start: int, width: float, bins: int) -> list[int]:
    most = [0] * bins
    now = filled = 0
    for moment, change in changes:
        place = min(max(int((moment - start) / width), 0), bins - 1)
        while filled <= place:  # requests in flight before it are in flight in these bins
            most[filled] = max(most[filled], now)
            filled += 1
        now += change
        most[place] = max(most[place], now)
    while filled < bins:
        most[filled] = now
        filled += 1
    return most

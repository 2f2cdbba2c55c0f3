"""The generator's own error: from records and probe samples to `Lag`, and whether it makes a run invalid. Pure:
the same records give the same verdict, merged from many workers or not."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from loadgen.record import FRESH, GENERATED, Lag, Record
from loadgen.spec import Limits

CLOCK = Literal["kernel", "user", "mixed"]


class WorkerError(msgspec.Struct, kw_only=True):
    """One worker process's own error, besides what the records show. Nanoseconds."""

    loop_ns: list[int] = []  # the probe's samples
    cpu: float = 0.0  # CPU seconds per wall second
    drift_ns: int = 0
    step_ns: int = 0
    kernel_reads: int = 0  # reads with a kernel's stamp
    user_reads: int = 0
    kernel_sends: int = 0
    user_sends: int = 0


FROM_DUE: Final = frozenset({"ttft_due", "e2el_due", "queue"})
FROM_FIRST: Final = frozenset({"ttft", "ttft_due", "ttft_role", "tpot", "tokens_per_second"})
GAPS: Final = frozenset({"itl", "chunk_gap"})
LATENCIES: Final = FROM_DUE | FROM_FIRST | GAPS | {"e2el"}
WHOLE: Final = frozenset({"e2el", "e2el_due", "queue"})  # what a response without a stream has
EVERYTHING: Final[frozenset[str]] = frozenset()


class Fault(NamedTuple):
    """An error of the generator's above its limit, and the measures that it touches, by their names in a summary's
    `stats`; `EVERYTHING` (empty): every figure."""

    text: str
    touches: frozenset[str]


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the sample does not exceed (inverse of the ECDF)."""
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1]


def percentiles_ms(values: Iterable[float]) -> dict[str, float]:
    """p50, p99 and max in milliseconds, of values in nanoseconds; empty without values."""
    ordered = sorted(values)
    if not ordered:
        return {}
    return {
        "p50": quantile(ordered, 0.5) / 1e6,
        "p99": quantile(ordered, 0.99) / 1e6,
        "max": ordered[-1] / 1e6,
    }


def _clock(by_kernel: int, by_user: int) -> CLOCK:
    if not by_kernel:
        return "user"
    return "mixed" if by_user else "kernel"


def lag_of(records: Sequence[Record], worker_errors: Sequence[WorkerError]) -> Lag:
    """The lag of one run without its warm-up. Requests that waited for the cap do not count as late, and events of
    shared responses, which a gateway sends in one piece, not as merged."""
    measured = [record for record in records if not record.warmup]
    fresh = [record for record in measured if record.shared in FRESH]
    events = [event for record in fresh for event in record.events if event.kind in GENERATED]
    censored = [event.at_ns - event.low_ns for event in events if event.at_ns != event.low_ns]
    return Lag(
        clock=_clock(
            sum(worker.kernel_reads for worker in worker_errors),
            sum(worker.user_reads for worker in worker_errors),
        ),
        send_clock=_clock(
            sum(worker.kernel_sends for worker in worker_errors),
            sum(worker.user_sends for worker in worker_errors),
        ),
        loop_ms=percentiles_ms(sample for worker in worker_errors for sample in worker.loop_ns),
        read_ms=percentiles_ms(event.user_ns - event.at_ns for event in events if event.at_ns == event.low_ns),
        late_ms=percentiles_ms(
            record.began_ns - record.due_ns - (record.connect_ns or 0)
            for record in measured
            if record.began_ns is not None and not record.waited
        ),
        sending_ms=percentiles_ms(
            record.sent_ns - record.write_ns
            for record in measured
            if record.sent_ns is not None and record.write_ns is not None
        ),
        censored=len(censored) / len(events) if events else 0.0,
        censored_width_ms=percentiles_ms(censored),
        cpu=max((worker.cpu for worker in worker_errors), default=0.0),
        clock_drift_ms=max((worker.drift_ns for worker in worker_errors), key=abs, default=0) / 1e6,
    )


def medians_ms(records: Sequence[Record]) -> tuple[float | None, float | None]:
    """Median TTFT from due and median gap between generated events of successful requests, in milliseconds: of the
    responses that were not shared, as in the reports, unless all were."""
    first: list[float] = []
    gaps: list[float] = []
    good = [record for record in records if not record.warmup and record.failure is None]
    for record in [record for record in good if record.shared in FRESH] or good:
        times = [event.at_ns for event in record.events if event.kind in GENERATED]
        if times:
            first.append(times[0] - record.due_ns)
            gaps += [b - a for a, b in itertools.pairwise(times)]
    return percentiles_ms(first).get("p50"), percentiles_ms(gaps).get("p50")


def judge_self_error(
    lag: Lag, records: Sequence[Record], limits: Limits, step_ns: int = 0, *, open_loop: bool
) -> tuple[list[Fault], list[str]]:
    """What makes figures invalid, and warnings. Each states the measured value and the limit.

    Lateness counts in an open loop only: in a closed loop a request is due when its user is free. Of requests that
    are all due at once it is the time that sending them takes, which is no error.
    """
    faults: list[Fault] = []
    warnings: list[str] = []
    dues = {record.due_ns for record in records if not record.warmup}
    at_once = len(dues) == 1 and sum(not record.warmup for record in records) > 1
    ttft, itl = medians_ms(records)
    loop, for_itl = lag.loop_ms.get("p99", 0.0), limits.allowed_ms(itl)
    for share, allowed in (("p50", limits.allowed_ms(ttft)), ("p99", limits.allowed_late_ms(ttft))):
        late = lag.late_ms.get(share, 0.0)
        if not open_loop or late <= allowed:
            continue
        if not at_once:
            faults.append(
                Fault(f"requests were sent {late:.2f} ms late ({share}), limit {allowed:.2f} ms", FROM_DUE)
            )
        elif share == "p99":
            warnings.append(
                f"all requests were due at once, and sending 99 % of them took {late:.0f} ms, which is in the "
                "figures from due"
            )
    sending, allowed = lag.sending_ms.get("p99", 0.0), limits.allowed_late_ms(ttft)
    if sending > allowed:
        warnings.append(
            f"sending a request took {sending:,.0f} ms (p99) from its first byte to its last, limit "
            f"{allowed:.2f} ms: the server did not read its socket, or the network is slow. TTFT and E2E begin at "
            "the last byte; those from due, and objectives, include this time"
        )
    if lag.clock != "kernel" and loop > for_itl:
        text = (
            f"the event loop lagged {loop:.2f} ms (p99), limit {for_itl:.2f} ms, and time stamps "
            f"are the program's own (clock {lag.clock})"
        )
        faults.append(Fault(text, LATENCIES))
    width = lag.censored_width_ms.get("p50", 0.0)
    if lag.censored > limits.censored and width > for_itl:
        merged = f"{lag.censored:.1%} of events were merged with others, in intervals of {width:.2f} ms (p50)"
        if loop > for_itl:
            text = f"{merged}, while the event loop lagged {loop:.2f} ms (p99), limit {for_itl:.2f} ms"
            faults.append(Fault(text, GAPS | FROM_FIRST if _merged_firsts(records) > limits.censored else GAPS))
        else:
            warnings.append(
                f"{merged}; the event loop was on time (p99 {loop:.2f} ms), so the server sent them together"
            )
    if lag.cpu > limits.cpu:
        text = f"the generator used {lag.cpu:.0%} of a core, limit {limits.cpu:.0%} (use --workers)"
        faults.append(Fault(text, EVERYTHING))
    if lag.clock != "user" and step_ns > limits.step_ms * 1e6:
        text = f"the system's clock was stepped by {step_ns / 1e6:.2f} ms during the run"
        faults.append(Fault(text, LATENCIES))
    known = _measures(records)
    touching = [Fault(text, touches & known) for text, touches in faults if not touches or touches & known]
    return touching, warnings


def _measures(records: Iterable[Record]) -> frozenset[str]:
    """The latencies that these records have."""
    reached = [record for record in records if not record.warmup and record.failure in (None, "left")]
    completed = any(record.failure is None for record in reached)
    streamed = any(record.stream and any(event.kind in GENERATED for event in record.events) for record in reached)
    return (WHOLE if completed else EVERYTHING) | (LATENCIES - WHOLE if streamed else EVERYTHING)


def _merged_firsts(records: Sequence[Record]) -> float:
    """Share of requests whose first generated event was merged with others."""
    firsts = [
        next((event for event in record.events if event.kind in GENERATED), None)
        for record in records
        if not record.warmup and record.shared in FRESH
    ]
    known = [event for event in firsts if event is not None]
    return sum(event.low_ns < event.at_ns for event in known) / len(known) if known else 0.0

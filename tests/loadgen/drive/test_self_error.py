"""The generator's own error and the verdict: what would spoil a claim of 1 ms or 5 % makes a run invalid."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from loadgen.drive.self_error import (
    EVERYTHING,
    WorkerError,
    judge_self_error,
    lag_of,
    medians_ms,
    percentiles_ms,
    quantile,
)
from loadgen.record import Event, Kind, Lag, Record
from loadgen.spec import Limits

MS = 1_000_000


def record(index: int = 0, *, late: float = 0.0, connect: float | None = None, **more: Any) -> Record:
    """Due at 0, first event 20 ms after it was sent, second 10 ms later."""
    sent = round(late * MS)
    events = [
        Event(sent + 20 * MS, sent + 20 * MS, sent + 20 * MS + MS // 10, Kind.CONTENT),
        Event(sent + 30 * MS, sent + 30 * MS, sent + 30 * MS + MS // 5, Kind.CONTENT),
    ]
    connect_ns = None if connect is None else round(connect * MS)
    fields: dict[str, Any] = {"events": events, "sent_ns": sent, "connect_ns": connect_ns} | more
    return Record(index=index, id="", prompt="", due_ns=0, **fields)


@pytest.mark.parametrize(("share", "value"), [(0.5, 2), (0.25, 1), (0.99, 4), (1.0, 4), (0.0, 1)])
def test_a_quantile_is_a_value_of_the_sample(share: float, value: float) -> None:
    assert quantile([1, 2, 3, 4], share) == value


def test_spread_of_nothing_is_nothing() -> None:
    assert percentiles_ms([]) == {}
    assert percentiles_ms([3 * MS]) == {"p50": 3.0, "p99": 3.0, "max": 3.0}


def test_lateness_leaves_out_connecting_waiting_and_warm_ups() -> None:
    records = [
        record(0, late=3.0, connect=2.5),
        record(1, late=900.0, waited=True),
        record(2, late=800.0, warmup=True),
        record(3, sent_ns=None),
    ]
    assert lag_of(records, []).late_ms == {"p50": 0.5, "p99": 0.5, "max": 0.5}


def test_lateness_ends_at_the_first_write_and_sending_is_the_rest() -> None:
    slow = record(late=2000.0, write_ns=MS // 2)
    lag = lag_of([slow], [])
    assert (lag.late_ms["p99"], lag.sending_ms["p99"]) == (0.5, 1999.5)
    faults, warnings = judge_self_error(lag, [slow], Limits(), open_loop=True)
    assert faults == []
    assert "sending a request took 2,000 ms (p99) from its first byte to its last" in warnings[0]


def test_merged_events_are_counted_and_their_widths_told() -> None:
    merged = record()
    merged.events[0] = Event(20 * MS, 16 * MS, 21 * MS, Kind.CONTENT)
    lag = lag_of([merged, record(1)], [])
    assert lag.censored == 0.25
    assert lag.censored_width_ms["max"] == 4.0
    assert lag.read_ms["max"] == 0.2  # exact events only


def test_shared_responses_which_come_in_one_piece_are_no_error_and_no_yardstick() -> None:
    hit = record(late=0.1, shared="hit")
    hit.events = [Event(MS, 0, 3 * MS, Kind.CONTENT)] * 9
    lag = lag_of([record(), hit], [WorkerError(loop_ns=[40 * MS], kernel_reads=1)])
    assert (lag.censored, lag.censored_width_ms, lag.late_ms["max"]) == (0.0, {}, 0.1)
    assert medians_ms([hit, hit, record()]) == (20.0, 10.0)
    assert medians_ms([hit]) == (1.0, 0.0)
    assert judge_self_error(lag, [hit, record()], Limits(), open_loop=False) == ([], [])


@pytest.mark.parametrize(
    ("kernel", "user", "clock"), [(9, 0, "kernel"), (0, 9, "user"), (5, 1, "mixed"), (0, 0, "user")]
)
def test_the_clock_is_named_as_it_was(kernel: int, user: int, clock: str) -> None:
    assert lag_of([], [WorkerError(kernel_reads=kernel, user_reads=user)]).clock == clock


def test_workers_merge_into_one_lag_with_the_busiest_ones_cpu() -> None:
    worker_errors = [
        WorkerError(loop_ns=[MS], cpu=0.2, drift_ns=-5 * MS),
        WorkerError(loop_ns=[3 * MS], cpu=0.7, drift_ns=2 * MS),
    ]
    lag = lag_of([], worker_errors)
    assert (lag.loop_ms["max"], lag.cpu, lag.clock_drift_ms) == (3.0, 0.7, -5.0)


def test_medians_are_of_requests_that_succeeded() -> None:
    assert medians_ms([record(late=1.0), record(1, late=500.0, failure="truncated")]) == (21.0, 10.0)
    assert medians_ms([]) == (None, None)


GOOD = Lag(clock="kernel", late_ms={"p50": 0.3, "p99": 2.0}, loop_ms={"p99": 0.5}, cpu=0.3)


def judged(open_loop: bool = True, step_ns: int = 0, **changes: Any) -> tuple[list[str], list[str]]:
    lag = Lag(**({name: getattr(GOOD, name) for name in GOOD.__struct_fields__} | changes))
    faults, warnings = judge_self_error(lag, [record()], Limits(), step_ns, open_loop=open_loop)
    return [fault.text for fault in faults], warnings


def test_a_good_run_is_valid() -> None:
    assert judged() == ([], [])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"late_ms": {"p50": 1.1, "p99": 2.0}}, "1.10 ms late (p50), limit 1.00 ms"),
        ({"late_ms": {"p50": 0.3, "p99": 5.1}}, "5.10 ms late (p99), limit 5.00 ms"),
        ({"clock": "user", "loop_ms": {"p99": 1.5}}, "the event loop lagged 1.50 ms"),
        ({"clock": "mixed", "loop_ms": {"p99": 1.5}}, "(clock mixed)"),
        (
            {"censored": 0.06, "censored_width_ms": {"p50": 2.0}, "loop_ms": {"p99": 1.5}},
            "6.0% of events were merged",
        ),
        ({"cpu": 0.91}, "91% of a core"),
        ({"step_ns": 2 * MS}, "stepped by 2.00 ms"),
    ],
)
def test_each_error_above_its_limit_makes_a_run_invalid_and_is_named(changes: dict[str, Any], said: str) -> None:
    invalid, _ = judged(**changes)
    assert len(invalid) == 1
    assert said in invalid[0]


@pytest.mark.parametrize(
    ("changes", "touched", "spared"),
    [
        ({"late_ms": {"p50": 0.3, "p99": 5.1}}, {"ttft_due", "e2el_due"}, {"ttft", "tpot", "itl", "e2el"}),
        (
            {"clock": "user", "loop_ms": {"p99": 1.5}},
            {"ttft", "tpot", "itl", "e2el", "ttft_due"},
            {"input_tokens"},
        ),
        (
            {"censored": 0.06, "censored_width_ms": {"p50": 2.0}, "loop_ms": {"p99": 1.5}},
            {"itl", "chunk_gap"},
            {"ttft", "e2el"},
        ),
    ],
)
def test_an_error_touches_the_figures_that_depend_on_it_and_no_others(
    changes: dict[str, Any], touched: set[str], spared: set[str]
) -> None:
    lag = Lag(**({name: getattr(GOOD, name) for name in GOOD.__struct_fields__} | changes))
    (fault,), _ = judge_self_error(lag, [record()], Limits(), open_loop=True)
    assert touched <= fault.touches
    assert not spared & fault.touches


def test_a_merged_first_token_touches_the_time_to_it() -> None:
    merged = record()
    merged.events[0] = Event(20 * MS, 16 * MS, 21 * MS, Kind.CONTENT)
    changes = {"censored": 0.5, "censored_width_ms": {"p50": 4.0}, "loop_ms": {"p99": 1.5}}
    lag = Lag(**({name: getattr(GOOD, name) for name in GOOD.__struct_fields__} | changes))
    (fault,), _ = judge_self_error(lag, [merged], Limits(), open_loop=True)
    assert {"ttft", "tpot", "itl"} <= fault.touches


@pytest.mark.parametrize(
    ("made", "touched"),
    [
        (record(), {"ttft", "tpot", "itl", "e2el"}),
        (record(stream=False, events=[Event(MS, MS, MS, Kind.WHOLE)]), {"e2el"}),
        (record(failure="left"), {"ttft", "tpot", "itl"}),
        (record(failure="status"), set()),
        (record(failure="refused", sent_ns=None, events=[]), set()),
    ],
)
def test_a_verdict_names_no_figure_that_there_is_not(made: Record, touched: set[str]) -> None:
    """Where every request was refused there is no latency not to use: no stamp came, which is no fault."""
    lag = Lag(clock="user", loop_ms={"p99": 1.5}, late_ms={"p99": 1e6})
    faults, _ = judge_self_error(lag, [made], Limits(), open_loop=True)
    shown = {"ttft", "tpot", "itl", "e2el"}
    assert shown & frozenset().union(*(fault.touches for fault in faults)) == touched
    assert all(fault.touches for fault in faults)
    cpu, _ = judge_self_error(Lag(cpu=0.95, clock="kernel"), [made], Limits(), open_loop=True)
    assert [fault.touches for fault in cpu] == [EVERYTHING]


def test_too_much_cpu_touches_everything() -> None:
    lag = Lag(cpu=0.95, clock="kernel")
    (fault,), _ = judge_self_error(lag, [record()], Limits(), open_loop=True)
    assert fault.touches == EVERYTHING


def test_requests_that_are_all_due_at_once_are_not_late() -> None:
    lag = Lag(clock="kernel", late_ms={"p50": 202.0, "p99": 400.0})
    faults, warnings = judge_self_error(lag, [record(), record(1)], Limits(), open_loop=True)
    assert faults == []
    assert "sending 99 % of them took 400 ms" in warnings[0]
    apart = msgspec.structs.replace(record(1), due_ns=MS)
    assert len(judge_self_error(lag, [record(), apart], Limits(), open_loop=True)[0]) == 2


def test_lateness_means_nothing_in_a_closed_loop() -> None:
    assert judged(open_loop=False, late_ms={"p50": 50.0, "p99": 90.0}) == ([], [])


def test_a_slow_loop_spoils_nothing_that_the_kernel_stamped() -> None:
    assert judged(loop_ms={"p99": 20.0}) == ([], [])


def test_events_that_a_server_sent_together_are_a_warning_not_our_error() -> None:
    invalid, warnings = judged(censored=0.5, censored_width_ms={"p50": 9.0})
    assert invalid == []
    assert "the server sent them together" in warnings[0]


def test_narrow_intervals_are_harmless_however_many() -> None:
    assert judged(censored=0.5, censored_width_ms={"p50": 0.4}, loop_ms={"p99": 9.0}) == ([], [])


def test_the_limit_grows_with_what_is_measured() -> None:
    assert Limits().allowed_ms(None) == 1.0
    assert Limits().allowed_ms(10.0) == 1.0
    assert Limits().allowed_ms(1000.0) == 50.0
    assert Limits().allowed_late_ms(1000.0) == 50.0

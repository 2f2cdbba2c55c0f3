"""The definitions, by tables: what the first token is, what a gap is, what merging leaves open."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.analysis.definitions import MS, Gaps, Measured, measure
from loadgen.analysis.stats import Sample, describe
from loadgen.record import Event, Failure, Kind, Record


def ev(
    at: float, kind: Kind = Kind.CONTENT, *, low: float | None = None, tokens: int | None = None, choice: int = 0
) -> Event:
    """Times in milliseconds."""
    stamp = round(at * MS)
    return Event(stamp, stamp if low is None else round(low * MS), stamp, kind, tokens, choice)


def record(*events: Event, sent: float = 10, due: float = 8, end: float | None = None, **more: object) -> Record:
    last = max((event.at_ns for event in events), default=0)
    fields: dict[str, object] = {
        "index": 0,
        "id": "r",
        "prompt": "p",
        "due_ns": round(due * MS),
        "sent_ns": round(sent * MS),
        "end_ns": last if end is None else round(end * MS),
        "events": list(events),
        "status": 200,
    }
    return Record(**{**fields, **more})  # type: ignore[arg-type]


def itl(measured: Measured) -> Gaps:
    assert measured.itl is not None
    return measured.itl


@pytest.mark.parametrize("kind", [Kind.CONTENT, Kind.REASONING, Kind.TOOL])
def test_the_first_token_is_the_first_that_was_generated_and_never_the_role(kind: Kind) -> None:
    found = measure(record(ev(20, Kind.ROLE), ev(21, Kind.OTHER), ev(50, kind), ev(60)))
    assert found.ttft is not None and found.ttft_role is not None and found.ttft_due is not None  # noqa: PT018
    assert tuple(found.ttft) == (40, 40, 40)
    assert found.ttft_due.value == 42
    assert found.ttft_role.value == 10


def test_vllms_definitions_count_the_role_and_the_finish_and_end_at_the_last_choice() -> None:
    events = (ev(20, Kind.ROLE), ev(50), ev(60), ev(61, Kind.FINISH), ev(70, Kind.USAGE), ev(71, Kind.DONE))
    ours, theirs = (measure(record(*events, completion_tokens=2), way) for way in ("loadgen", "vllm"))
    assert (ours.e2e, theirs.e2e) == (61, 51)
    assert ours.ttft is not None and theirs.ttft is not None  # noqa: PT018
    assert (ours.ttft.value, theirs.ttft.value) == (40, 10)
    assert list(itl(ours).values) == [10]
    assert list(itl(theirs).values) == [30, 10, 1]


@pytest.mark.parametrize(("tokens", "tpot"), [(None, None), (0, None), (1, None), (2, 30), (4, 10)])
def test_tpot_is_by_usage_or_not_at_all(tokens: int | None, tpot: float | None) -> None:
    found = measure(record(ev(20), ev(50), completion_tokens=tokens)).tpot
    assert (found.value if found else None) == tpot


def test_tpot_of_several_choices_is_one_choices() -> None:
    events = [ev(20 + 10 * place, choice=choice) for place in range(3) for choice in (0, 1)]
    found = measure(record(*events, completion_tokens=6))
    assert found.tpot is not None
    assert found.tpot.value == 10
    assert list(itl(found).values) == [10, 10, 10, 10]
    assert found.by_tokens is False


def test_a_body_that_is_not_a_stream_has_an_end_and_no_first_token() -> None:
    found = measure(record(ev(90, Kind.WHOLE), stream=False, completion_tokens=9))
    assert (found.ttft, found.tpot, found.itl, found.e2e) == (None, None, None, 80)


def test_a_chunk_of_several_tokens_is_several_gaps_where_usage_says_so() -> None:
    found = measure(record(ev(20, tokens=1), ev(50, tokens=3), ev(60, tokens=0), ev(70, tokens=1)))
    assert found.by_tokens
    assert list(itl(found).values) == [10, 10, 10, 20]
    assert found.chunk_gaps is not None
    assert list(found.chunk_gaps.values) == [30, 10, 10]


def test_one_chunk_without_a_count_makes_the_gaps_those_of_chunks() -> None:
    found = measure(record(ev(20, tokens=1), ev(50), ev(60, tokens=1)))
    assert not found.by_tokens
    assert list(itl(found).values) == [30, 10]


@pytest.mark.parametrize(
    ("counts", "total", "by_tokens"),
    [
        ([1] * 10, 10, True),
        ([5, 5], 10, True),
        ([1] * 10, 11, True),  # the end of sequence has no text
        ([1] * 10, 15, True),  # nor have the closing tags of a tool call
        ([1] * 9 + [0], 10, True),
        ([1] + [0] * 9, 10, False),  # each chunk counts itself
        ([0] * 10, 10, False),
        ([0] * 5 + [5] + [0] * 4, 10, False),  # counted at every fifth chunk
        ([1] * 10, 30, False),
        ([3, 1, 2, 1, 1], 40, False),
    ],
)
def test_counts_that_do_not_grow_with_the_chunks_make_the_gaps_those_of_chunks(
    counts: list[int], total: int, by_tokens: bool
) -> None:
    """There was no ITL at all, or it lacked the longest gap: a stall of 1 s was not seen."""
    stall = [20.0 + 10 * place + (1000 if place > len(counts) // 2 else 0) for place in range(len(counts))]
    found = measure(
        record(*(ev(at, tokens=n) for at, n in zip(stall, counts, strict=True)), completion_tokens=total)
    )
    assert (found.by_tokens, found.miscounted) == (by_tokens, not by_tokens)
    assert sum(itl(found).values) == pytest.approx(stall[-1] - stall[0])
    if not by_tokens:
        assert max(itl(found).values) == (1010 if len(counts) > 2 else 10)


def test_text_held_back_until_the_last_chunk_keeps_its_gap() -> None:
    found = measure(record(ev(20, tokens=1), ev(30, tokens=1), ev(45, low=40, tokens=0)))
    assert [list(side) for side in (itl(found).values, itl(found).lows, itl(found).highs)] == [
        [10, 15], [10, 10], [10, 15],
    ]  # fmt: skip


@pytest.mark.parametrize(
    "failure", ["refused", "timeout", "status", "truncated", "error_frame", "garbage", "cancelled", "shed"]
)
def test_no_failure_has_a_latency(failure: Failure) -> None:
    found = measure(record(ev(20), ev(21), completion_tokens=2, failure=failure))
    assert (found.ttft, found.ttft_due, found.tpot, found.itl, found.e2e, found.e2e_due) == (None,) * 6
    assert list(found.arrivals) == []


def test_what_was_never_sent_waited_for_nothing() -> None:
    found = measure(record(failure="refused", sent_ns=None, end_ns=None))
    assert found.queued == 0
    assert not found.completed


@pytest.mark.parametrize("last", [Kind.DONE, Kind.FINISH])
def test_a_stream_ends_at_its_last_event_and_not_with_its_connection(last: Kind) -> None:
    """A connection that stayed open for 500 ms after `[DONE]` was 500 ms of decoding."""
    found = measure(record(ev(20), ev(50), ev(51, last), end=551, completion_tokens=2))
    assert found.tpot is not None
    assert (found.e2e, found.tpot.value, found.after_last) == (41, 31, 500)
    commented = measure(record(ev(20), ev(51, Kind.DONE), ev(300, Kind.OTHER), completion_tokens=2))
    assert commented.e2e == 41


def test_a_server_that_does_not_read_lengthens_the_sending_and_what_counts_from_due() -> None:
    found = measure(record(ev(60), ev(70), due=8, sent=50, write_ns=10 * MS))
    assert (found.queued, found.sending, found.e2e, found.e2e_due) == (2, 40, 20, 62)
    assert found.ttft is not None and found.ttft_due is not None  # noqa: PT018
    assert (found.ttft.value, found.ttft_due.value) == (10, 52)


# Merged reads


def test_merged_events_have_gaps_with_bounds_and_never_a_gap_of_zero() -> None:
    # Read at 20; nothing read until 50, where three events came together: the last is exact.
    found = itl(measure(record(ev(20), ev(50, low=20), ev(50, low=20), ev(50))))
    assert list(found.values) == [10, 10, 10]
    assert list(found.lows) == [0, 0, 0]
    assert list(found.highs) == [30, 30, 30]


def test_a_long_silence_before_a_merged_read_is_not_spread_over_it() -> None:
    # Ten gaps of 1 ms, then 100 ms of nothing, then two events in one read: most likely 100 and then a short one.
    events = [ev(20 + place) for place in range(100)]
    found = itl(measure(record(*events, ev(219, low=119), ev(219))))
    assert found.values[-1] == pytest.approx(199 / 101)
    assert sum(found.values) == pytest.approx(199)


def test_a_censored_first_token_is_taken_at_its_worst() -> None:
    found = measure(record(ev(50, low=30), ev(50), completion_tokens=2))
    assert tuple(found.ttft or ()) == (40, 20, 40)
    assert found.censored == 1


def test_an_interval_never_begins_before_the_request_was_sent() -> None:
    found = measure(record(ev(50, low=0), ev(50)))
    assert tuple(found.ttft or ()) == (40, 0, 40)
    assert list(itl(found).highs) == [40]


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[float], Record]:
    """A true schedule of one stream, and the record that reads at arbitrary moments leave of it."""
    gaps = draw(st.lists(st.integers(1, 40), min_size=1, max_size=30))
    times = [20.0]
    for gap in gaps:
        times.append(times[-1] + gap)
    cuts = draw(st.lists(st.booleans(), min_size=len(times), max_size=len(times)))
    events, before, group = [], 12.0, list[float]()
    for time, cut in zip(times, [*cuts[:-1], True], strict=True):
        group.append(time)
        if cut:
            events += [ev(time, low=before) for _ in group[:-1]] + [ev(time)]
            before, group = time, []
    return times, record(*events, completion_tokens=len(times))


@given(streams())
def test_the_truth_is_inside_every_bound_and_the_sum_is_kept(case: tuple[list[float], Record]) -> None:
    times, seen = case
    found = measure(seen)
    gaps = itl(found)
    for place, (before, after) in enumerate(itertools.pairwise(times)):
        assert gaps.lows[place] - 1e-6 <= after - before <= gaps.highs[place] + 1e-6
        assert gaps.lows[place] - 1e-6 <= gaps.values[place] <= gaps.highs[place] + 1e-6
        assert gaps.values[place] > 0
    assert found.ttft is not None
    assert found.ttft.low <= times[0] - 10 <= found.ttft.high
    sample = Sample()
    sample.add(gaps.values, gaps.lows, gaps.highs)
    assert describe(sample).n == len(times) - 1

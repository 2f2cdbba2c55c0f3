"""ab: the overhead is found below the noise, and a shared or failed answer is in no pair."""

from __future__ import annotations

import random

from loadgen.analysis.definitions import measure
from loadgen.analysis.paired import comparable_pairs, pair_up, pairs_of
from loadgen.record import Record
from tests.loadgen.kit.sampling import ab_records


def test_an_overhead_below_the_noise_is_found() -> None:
    """Requests differ by tens of milliseconds, the targets by 1.4."""
    found = pair_up([measure(one) for one in ab_records(200, overhead_ms=1.4)])
    assert found is not None
    ttft = found.measures["ttft"].difference.at(50)
    assert ttft is not None
    assert ttft.interval is not None
    assert ttft.interval.low < 1.4 < ttft.interval.high
    assert ttft.interval.high - ttft.interval.low < 0.4
    assert found.measures["ttft"].higher > 0.99


def test_pairs_are_found_in_any_order() -> None:
    seen = [measure(one) for one in ab_records(60)]
    mixed = seen[:]
    random.Random(3).shuffle(mixed)
    assert pair_up(mixed) == pair_up(seen)


def test_a_pair_counts_only_if_both_completed_and_neither_was_shared() -> None:
    seen: list[Record] = ab_records(40)
    for record in seen:
        record.failure = None if record.failure else record.failure
    seen[0].failure = "timeout"  # a of pair 0
    seen[3].failure = "status"  # b of pair 1
    seen[4].failure = seen[5].failure = "refused"
    seen[7].shared = "hit"
    found = pair_up([measure(one) for one in seen])
    assert found is not None
    assert (found.only_b, found.only_a, found.neither, found.shared) == (1, 1, 1, 1)
    assert found.paired == 36
    assert len(comparable_pairs(pairs_of([measure(one) for one in seen]))) == 36


def test_a_run_without_pairs_has_no_difference() -> None:
    assert pair_up([]) is None
    assert pair_up([measure(one) for one in ab_records(3) if one.target == "a"]) is None


def test_what_coming_second_does_is_taken_out() -> None:
    """Who comes second finds its prompt in the prefix cache and is 30 ms faster; b adds 1.4 ms in truth."""
    chance = random.Random(5)
    seen: list[Record] = ab_records(200, overhead_ms=1.4)
    for one, two in zip(seen[::2], seen[1::2], strict=True):
        order = [one, two] if chance.random() < 0.5 else [two, one]
        assert order[0].sent_ns is not None
        assert order[1].sent_ns is not None
        order[1].sent_ns += 1
        for event in order[0].events:
            event.at_ns += 30_000_000
            event.low_ns += 30_000_000
    found = pair_up([measure(one) for one in seen])
    assert found is not None
    ttft = found.measures["ttft"]
    assert ttft.adjusted is not None
    assert ttft.second is not None
    assert ttft.adjusted.interval.low < 1.4 < ttft.adjusted.interval.high
    assert ttft.adjusted.interval.high - ttft.adjusted.interval.low < 0.4
    assert -30.5 < ttft.second < -29.5
    raw = ttft.difference.at(50)
    assert raw is not None
    assert raw.interval is not None
    assert raw.interval.high - raw.interval.low > 20, "without it the overhead is lost"


def test_a_few_pairs_are_not_adjusted() -> None:
    found = pair_up([measure(one) for one in ab_records(8)])
    assert found is not None
    assert found.measures["ttft"].adjusted is None

"""ab: the overhead is found below the noise, and a shared or failed answer is in no pair."""

from __future__ import annotations

import random

from loadgen.measures import measure
from loadgen.paired import comparable, pair_up, pairs_of
from loadgen.record import Record
from tests.loadgen.sampling import ab_records


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
    assert len(comparable(pairs_of([measure(one) for one in seen]))) == 36


def test_a_run_without_pairs_has_no_difference() -> None:
    assert pair_up([]) is None
    assert pair_up([measure(one) for one in ab_records(3) if one.target == "a"]) is None

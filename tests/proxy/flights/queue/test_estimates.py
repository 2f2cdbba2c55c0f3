"""What is estimated of waiting, and from how many samples."""

from __future__ import annotations

from proxy.flights.queue.estimates import MAX_ANSWERS, MAX_POOLS, MIN_SAMPLES, WaitEstimator


def test_from_too_few_samples_nothing_is_estimated() -> None:
    estimates = WaitEstimator()
    for n in range(MIN_SAMPLES - 1):
        estimates.record_dispatch("m", float(n))
        estimates.record_answer("m", 3.0)
    assert (estimates.interval("m", 8.0), estimates.answer_time("m", 0.5)) == (0.0, 0.0)
    estimates.record_dispatch("m", 7.0)
    estimates.record_answer("m", 3.0)
    assert (estimates.interval("m", 16.0), estimates.answer_time("m", 0.5)) == (2.0, 3.0)
    assert (estimates.interval("other", 16.0), estimates.answer_time("other", 0.5)) == (0.0, 0.0)


def test_quantiles_are_of_the_last_answers_and_old_dispatches_are_dropped() -> None:
    estimates = WaitEstimator()
    estimates.record_answer(None, 99.0)
    for n in range(MAX_ANSWERS):
        estimates.record_answer(None, float(n))
    assert estimates.answer_time(None, 0.0) == 0.0
    assert estimates.answer_time(None, 0.75) == 0.75 * MAX_ANSWERS
    for n in range(5 * MIN_SAMPLES):
        estimates.record_dispatch(None, float(n))
    assert estimates.interval(None, 5.0 * MIN_SAMPLES) == 1.0
    estimates.forget_dispatches()
    assert estimates.interval(None, 5.0 * MIN_SAMPLES) == 0.0


def test_only_so_many_pools_are_remembered() -> None:
    estimates = WaitEstimator()
    for n in range(MAX_POOLS + 1):
        for _ in range(MIN_SAMPLES):
            estimates.record_answer(str(n), 1.0)
    assert estimates.answer_time("0", 0.5) == 0.0
    assert estimates.answer_time(str(MAX_POOLS), 0.5) == 1.0

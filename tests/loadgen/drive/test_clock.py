"""The kernel's clock on ours: drift between samples is interpolated, a step is seen."""

from __future__ import annotations

from loadgen.drive.capture.clock import TRIES, Clock


class Hands:
    """Two clocks that a test turns; reading them takes 10 ns each."""

    def __init__(self) -> None:
        self.mono = 1_000
        self.offset = 5_000_000

    def monotonic(self) -> int:
        self.mono += 10
        return self.mono

    def realtime(self) -> int:
        self.mono += 10
        return self.mono + self.offset


def test_a_stamp_is_converted_by_the_offset() -> None:
    hands = Hands()
    clock = Clock(hands.monotonic, hands.realtime)
    assert clock.from_kernel(2_000 + 5_000_000) == 2_000


def test_a_slew_is_shared_out_between_the_samples_around_a_stamp() -> None:
    hands = Hands()
    clock = Clock(hands.monotonic, hands.realtime)
    hands.mono += 1_000_000
    hands.offset += 1_000
    clock.sample()
    middle = 1_000 + 500_000
    assert abs(clock.from_kernel(middle + 5_000_500) - middle) <= 2
    assert clock.drift_ns == 1_000


def test_a_step_shows_as_the_largest_change_between_two_samples() -> None:
    hands = Hands()
    clock = Clock(hands.monotonic, hands.realtime)
    clock.sample()
    assert clock.step_ns == 0
    hands.offset -= 3_000_000
    clock.sample()
    hands.offset += 3_000_000
    clock.sample()
    assert clock.drift_ns == 0
    assert clock.step_ns == 3_000_000


def test_a_preemption_between_the_two_clocks_is_not_taken_for_an_offset() -> None:
    hands = Hands()
    calls = 0

    def preempted() -> int:
        nonlocal calls
        calls += 1
        if calls % TRIES:  # all but one of the tries
            hands.mono += 50_000
        return hands.realtime()

    clock = Clock(hands.monotonic, preempted)
    assert clock.from_kernel(9_000_000) == 9_000_000 - 5_000_000


def test_times_count_from_the_runs_start() -> None:
    hands = Hands()
    clock = Clock(hands.monotonic, hands.realtime)
    clock.zero = 10_000
    assert clock.since_start(10_500) == 500
    assert clock.start_unix_ns() == 10_000 + 5_000_000

"""Limits that several processes divide while they have no Redis in common."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.access.ratelimit.buckets import UNBOUNDED, Claim, Limit, Limits, LocalLimits, part_of


def admitted(limits: LocalLimits, bounds: Limits, count: int, now: float = 0.0) -> int:
    claims = [Claim(str(number), "caller", bounds, UNBOUNDED, tokens=0) for number in range(count)]
    return sum(limits.acquire(claim, now).over is None for claim in claims)


@pytest.mark.parametrize(("parts", "each"), [(1, 12), (2, 6), (4, 3), (24, 1)])
def test_each_process_admits_its_part(parts: int, each: int) -> None:
    bounds = Limits(requests=Limit(rate=12.0, size=12.0))
    assert admitted(LocalLimits(0.0, parts=parts), bounds, 20) == each
    assert admitted(LocalLimits(0.0, parts=parts), Limits(streams=12), 20) == each


def test_the_part_leaks_by_its_part_of_the_rate() -> None:
    limits, bounds = LocalLimits(0.0, parts=4), Limits(requests=Limit(rate=8.0, size=8.0))
    assert admitted(limits, bounds, 20) == 2
    assert admitted(limits, bounds, 20, now=1.0) == 2


@given(st.floats(0.1, 1e6), st.floats(1.0, 1e6), st.integers(1, 256))
def test_all_parts_together_are_the_limit_unless_it_is_smaller_than_their_number(
    rate: float, size: float, parts: int
) -> None:
    part = part_of(Limits(requests=Limit(rate, size)), parts).requests
    assert part is not None
    assert part.rate * parts == pytest.approx(rate)
    assert part.size * parts == pytest.approx(max(size, parts if parts > 1 else size))

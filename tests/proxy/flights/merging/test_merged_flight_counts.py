"""What a merged flight counts: a token that is like the one before, and nothing else."""

from __future__ import annotations

from tests.proxy.flights.merging.test_merger_riders import Ridden, flight, part


def test_a_frame_is_counted_where_it_is_like_the_one_before() -> None:
    merged = Ridden().merged(flight(stream=True), flight(stream=True))
    merged.add(part(0))
    assert merged.content_events == 0
    merged.add(part(0), same=True)
    merged.append_token(part(1))
    assert merged.content_events == 2

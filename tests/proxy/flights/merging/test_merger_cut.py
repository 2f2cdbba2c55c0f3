"""Members of a merged stream that was cut: a choice that has its finish alone is not whole."""

from __future__ import annotations

import pytest

from proxy.errors import GatewayError
from proxy.flights.phase import Phase
from proxy.flights.spec import Head
from tests.proxy.flights.merging.test_merger_riders import CUT, SHORT, Ridden, flight, part


@pytest.mark.parametrize(("error", "lands"), [(None, True), (SHORT, True), (CUT, False)])
def test_a_choice_that_waits_for_the_engine_s_fingerprint_lands_where_the_answer_is_whole(
    error: GatewayError | None, lands: bool
) -> None:
    ridden, members = Ridden(), [flight(stream=True), flight(stream=True)]
    merged = ridden.merged(*members)
    merged.head = Head(200)
    merged.append_token(part(0, finish="stop"))
    assert members[0].phase is Phase.QUEUED
    alone, _ = ridden.merger.finish(merged, error)
    assert list(alone) == (members[1:] if lands else members)
    assert members[0].phase is (Phase.LANDED if lands else Phase.QUEUED)

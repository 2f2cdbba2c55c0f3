"""An answer without a token counts as one: an owner of empty answers does not get every place."""

from __future__ import annotations

from proxy.flights.queue.ticket import TicketFactory
from proxy.wire.frames import Usage
from tests.proxy.flights.queue.test_ticket import flight


def test_an_empty_answer_counts_as_one_token() -> None:
    made = TicketFactory(lambda model: None, 512)
    for tokens, counted in ((0, 1), (1, 1), (2, 2)):
        one = flight(owner=b"%d" % tokens)
        made(one)
        one.reports(Usage(1, tokens, tokens + 1))
        made.landed(one)
        assert made._came[b"%d" % tokens] == (counted, one.queue_state.assumed)

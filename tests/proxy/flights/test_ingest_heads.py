"""What of an engine's head is passed on, in any order."""

from __future__ import annotations

import itertools

import pytest

from proxy.flights.spec import Mode
from proxy.wire.http.security import SECURITY_HEADERS
from tests.kit.clock import virtual
from tests.proxy.flights.test_ingest_answers import SSE, Fed


@pytest.mark.parametrize(
    "headers",
    list(
        itertools.permutations(
            [("content-length", "2"), ("location", "http://e0/x"), ("connection", "x"), ("content-type", "a/b")]
        )
    ),
)
@virtual
async def test_a_header_that_is_dropped_hides_none_after_it(headers: tuple[tuple[str, str], ...]) -> None:
    fed = Fed(Mode.RAW, key=None)
    fed.flight.backend = "http://e0"
    fed.ingest.head(200, list(headers))
    assert fed.flight.head is not None
    assert (fed.flight.head.length, ("content-type", "a/b") in fed.flight.head.headers) == (2, True)
    assert "connection" not in dict(fed.flight.head.headers)


@pytest.mark.parametrize("status", [200, 404])
@pytest.mark.parametrize("name", SECURITY_HEADERS)
@virtual
async def test_a_header_that_the_gateway_writes_in_every_answer_is_not_passed_on_too(
    name: str, status: int
) -> None:
    fed = Fed(Mode.RAW, key=None)
    fed.ingest.head(status, [("content-type", "text/plain"), (name, "of the engine"), ("content-length", "2")])
    assert fed.flight.head is not None
    assert ("content-type", "text/plain") in fed.flight.head.headers
    assert name not in dict(fed.flight.head.headers)


@virtual
async def test_a_comment_of_a_stream_that_passes_through_is_passed_on_and_is_no_answer() -> None:
    fed = Fed(Mode.RAW)
    fed.ingest.head(200, SSE)
    fed.now = 1.0
    for data, last, first in ((b": ping\n\n", 0.0, None), (b": a\n\ndata: b\n\n", 1.0, 1.0)):
        before = len(b"".join(fed.flight.log))
        fed.ingest.body(data)
        assert (fed.ingest.last, fed.flight.times.first) == (last, first)
        assert data in b"".join(fed.flight.log)[before:]
